#!/usr/bin/env bash
# Test with several processes on this node: tools/dist_test.sh CONFIG CHECKPOINT GPUS [ARGUMENTS OF apla-mm test]
# GPUS and the variables NNODES, NODE_RANK, MASTER_ADDR, PORT and PYTHON are those of tools/dist_train.sh.
set -euo pipefail

[ $# -ge 3 ] || { echo "usage: $0 CONFIG CHECKPOINT GPUS [ARGUMENTS OF apla-mm test]" >&2; exit 2; }
config=$1 checkpoint=$2 gpus=$3
shift 3
exec "$(dirname "$0")/dist_run.sh" test.py "$gpus" "$config" "$checkpoint" "$@"
