#!/usr/bin/env bash
# What tools/dist_train.sh and tools/dist_test.sh have in common: tools/dist_run.sh TOOL GPUS ARGUMENTS
set -euo pipefail

[ $# -ge 3 ] || { echo "usage: $0 train.py|test.py GPUS ARGUMENTS; see tools/dist_train.sh" >&2; exit 2; }
tools=$(cd "$(dirname "$0")" && pwd)
tool=$1 gpus=$2
shift 2
[[ $gpus =~ ^[1-9][0-9]*$ ]] || { echo "GPUS must be a number of processes, at least 1, and is '$gpus'" >&2; exit 2; }

nodes=${NNODES:-1}
if [ "$nodes" = 1 ] && [ -z "${PORT:-}" ]; then
    meeting=(--standalone)  # any free port
elif [ "$nodes" != 1 ] && [ -z "${MASTER_ADDR:-}" ]; then
    echo "NNODES=$nodes: set MASTER_ADDR to the address of node 0, and NODE_RANK on each node" >&2
    exit 2
else
    meeting=(--nnodes="$nodes" --node-rank="${NODE_RANK:-0}")
    meeting+=(--master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}")
fi

export PYTHONPATH="${tools%/*}${PYTHONPATH:+:$PYTHONPATH}"
# how long torchrun, told to stop, lets its processes save
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}
exec "${PYTHON:-python}" -m torch.distributed.run "${meeting[@]}" --nproc-per-node="$gpus" \
    "$tools/$tool" "$@" --launcher pytorch
