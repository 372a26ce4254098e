#!/usr/bin/env bash
# Train under Slurm: [VARIABLE=VALUE ...] tools/slurm_train.sh PARTITION JOB_NAME CONFIG [ARGUMENTS OF apla-mm train]
# With GPUs, one process for each:
#   GPUS             GPUs in all (default 8)
#   GPUS_PER_NODE    of them on each node (default 8, or GPUS if that is less)
# Without GPUs:
#   GPUS_PER_NODE=0  asks for none
#   NTASKS           processes in all (default 1)
#   NTASKS_PER_NODE  of them on each node (default 1)
# With or without:
#   CPUS_PER_TASK    CPUs of each process and the workers of its data loaders (default 5)
#   SRUN_ARGS        more arguments of srun, such as "--time=08:00:00 --quotatype=spot"
#   PY_ARGS          more arguments of apla-mm train
#   MASTER_PORT      where processes meet (default: found from the job's number)
#   PYTHON           the interpreter (default python)
# It waits for the job. Either all nodes have GPUs or none, and they share this folder and the work dir. Where nodes do
# not find one another, GLOO_SOCKET_IFNAME (without GPUs) or NCCL_SOCKET_IFNAME names the network interface. For jobs
# that outlast a time limit or are preempted there is tools/slurm_requeue.sbatch.
set -euo pipefail

[ $# -ge 3 ] || { echo "usage: $0 PARTITION JOB_NAME CONFIG [ARGUMENTS OF apla-mm train]" >&2; exit 2; }
exec "$(dirname "$0")/slurm_run.sh" train.py "$@"
