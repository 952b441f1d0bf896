#!/usr/bin/env bash
# Evaluates on several processes of one or more machines:
#   [NNODES=2 NODE_RANK=0 MASTER_ADDR=host PORT=29500] dist_test.sh CONFIG CHECKPOINT PROCESSES [ARGUMENTS...]
set -euo pipefail

CONFIG=${1:?usage: dist_test.sh CONFIG CHECKPOINT PROCESSES [ARGUMENTS...]}
CHECKPOINT=${2:?usage: dist_test.sh CONFIG CHECKPOINT PROCESSES [ARGUMENTS...]}
PROCESSES=${3:?usage: dist_test.sh CONFIG CHECKPOINT PROCESSES [ARGUMENTS...]}

torchrun \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$PROCESSES" \
    "$(dirname "$0")/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
