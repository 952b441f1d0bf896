#!/usr/bin/env bash
# Evaluates on a slurm cluster:
#   [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS=...] slurm_test.sh PARTITION JOB CONFIG CHECKPOINT [ARGUMENTS...]
set -euo pipefail

usage='usage: slurm_test.sh PARTITION JOB CONFIG CHECKPOINT [ARGUMENTS...]'
PARTITION=${1:?$usage}
JOB=${2:?$usage}
CONFIG=${3:?$usage}
CHECKPOINT=${4:?$usage}
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-8}

# SRUN_ARGS holds several arguments and is split on purpose.
# shellcheck disable=SC2086
srun -p "$PARTITION" \
    --job-name="$JOB" \
    --gres="gpu:$GPUS_PER_NODE" \
    --ntasks="$GPUS" \
    --ntasks-per-node="$GPUS_PER_NODE" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    python -u "$(dirname "$0")/test.py" "$CONFIG" "$CHECKPOINT" --launcher slurm "${@:5}"
