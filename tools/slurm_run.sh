#!/usr/bin/env bash
# What tools/slurm_train.sh and tools/slurm_test.sh share: tools/slurm_run.sh TOOL PARTITION JOB_NAME ARGUMENTS
set -euo pipefail

[ $# -ge 4 ] || { echo "usage: $0 TOOL PARTITION JOB_NAME ARGUMENTS; see tools/slurm_train.sh" >&2; exit 2; }
tools=$(cd "$(dirname "$0")" && pwd)
tool=$1 partition=$2 name=$3
shift 3

gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
if [ "$per_node" = 0 ]; then
    tasks=(--ntasks="${NTASKS:-1}" --ntasks-per-node="${NTASKS_PER_NODE:-1}")
else
    tasks=(--gres="gpu:$per_node" --ntasks="$gpus" --ntasks-per-node="$per_node")
fi
# as in mmseg's and mmdet's scripts, several arguments separated by spaces
read -ra srun_args <<<"${SRUN_ARGS:-}"
read -ra py_args <<<"${PY_ARGS:-}"

export PYTHONPATH="${tools%/*}${PYTHONPATH:+:$PYTHONPATH}"
exec srun --partition="$partition" --job-name="$name" "${tasks[@]}" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 "${srun_args[@]}" \
    "${PYTHON:-python}" -u "$tools/$tool" "$@" "${py_args[@]}" --launcher slurm
