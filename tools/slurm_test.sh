#!/usr/bin/env bash
# Test under Slurm:
#   [VARIABLE=VALUE ...] tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [ARGUMENTS OF apla-mm test]
# The variables are those of tools/slurm_train.sh.
set -euo pipefail

[ $# -ge 4 ] || { echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [ARGUMENTS OF apla-mm test]" >&2; exit 2; }
exec "$(dirname "$0")/slurm_run.sh" test.py "$@"
