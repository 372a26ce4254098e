#!/usr/bin/env bash
# Train with several processes on this node: tools/dist_train.sh CONFIG GPUS [ARGUMENTS OF apla-mm train]
#   GPUS         processes on this node: one for each GPU, or any number on a node without GPUs
# On several nodes, run it on each of them with
#   NNODES       how many nodes there are (default 1)
#   NODE_RANK    which of them this is, from 0 (default 0)
#   MASTER_ADDR  the address of node 0
#   PORT         a free port of node 0 (default 29500; on one node any free port)
# and a work dir that all nodes share. PYTHON picks the interpreter. Where nodes do not find one another,
# GLOO_SOCKET_IFNAME (without GPUs) or NCCL_SOCKET_IFNAME names the network interface. On SIGTERM or Ctrl-C training
# saves and leaves, and the script with 1, as torchrun does; --resume goes on.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 CONFIG GPUS [ARGUMENTS OF apla-mm train]" >&2; exit 2; }
config=$1 gpus=$2
shift 2
exec "$(dirname "$0")/dist_run.sh" train.py "$gpus" "$config" "$@"
