#!/usr/bin/env bash
# One recipe on several machines. Run the same line again after any end: it goes on from the newest checkpoint, also on
# another number of machines. The run folder (`output` of the recipe) and the data lie where all machines see them.
#
# By hand, on every machine (HEAD is the name of the first one):
#   NODES=4 NODE=0 HEAD=node0 runs/multi_node.sh recipes/small/stage1.yaml device=cuda parallel=fsdp shard_ranks=8
#   NODES=4 NODE=1 HEAD=node0 runs/multi_node.sh ...          # and so on
#
# With Slurm, from anywhere (a job that nears its time limit saves, ends well, and queues itself again):
#   sbatch --nodes 4 --gres gpu:8 --time 24:00:00 runs/multi_node.sh recipe.yaml device=cuda parallel=fsdp shard_ranks=8
#
# On one machine: NODES=1 GPUS=8 runs/multi_node.sh ...; without GPUs: GPUS=2 ... device=cpu
# Ascend: device=npu with torch_npu installed; processes then speak HCCL.
#
#SBATCH --job-name=echat
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

HERE=${ECHAT_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}}
cd "$HERE"
PYTHON=${PYTHON:-.venv/bin/python}
GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-8}} # processes per machine, one for each
PORT=${PORT:-29400}
export OMP_NUM_THREADS=${THREADS:-1}
export TORCH_DEVICE_BACKEND_AUTOLOAD=1 # accelerators that come as a package of their own announce themselves

[ $# -gt 0 ] || { echo "usage: NODES=2 NODE=0 HEAD=host $0 recipe.yaml [key=value ...]" >&2; exit 2; }

launch() { # NODES HEAD, then the recipe and its overrides; torchrun finds out which machine is which
  local nodes=$1 head=$2
  shift 2
  local meet=(--nnodes "$nodes" --nproc-per-node "$GPUS")
  if [ "$nodes" = 1 ]; then
    meet+=(--standalone)
  else
    meet+=(--rdzv-backend c10d --rdzv-endpoint "$head:$PORT" --rdzv-id "${SLURM_JOB_ID:-echat}")
    [ -z "${NODE:-}" ] || meet+=(--node-rank "$NODE")
  fi
  exec "$PYTHON" -m torch.distributed.run "${meet[@]}" -m echat train "$@" --resume
}

if [ -z "${SLURM_JOB_ID:-}" ]; then
  launch "${NODES:-1}" "${HEAD:-localhost}" "$@"
fi
if [ -n "${SLURM_STEP_ID:-}" ] && [ -n "${ECHAT_HEAD:-}" ]; then # this is one machine of the job
  launch "$SLURM_NNODES" "$ECHAT_HEAD" "$@"
fi

output() { # the run folder of a recipe and its overrides
  "$PYTHON" -c 'import sys; from echat.train.recipe import load_recipe; print(load_recipe(sys.argv[1], sys.argv[2:]).output)' "$@"
}

ECHAT_HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export ECHAT_HEAD ECHAT_HOME=$HERE
stopped=0
srun --kill-on-bad-exit=1 bash "$HERE/runs/multi_node.sh" "$@" &
job=$!
# A file rather than a signal: torchrun kills what has not ended 30 s after one, and a checkpoint may take longer.
trap 'stopped=1; touch "$(output "$@")/stop"' TERM
wait "$job" || status=$?
if [ "$stopped" = 1 ]; then
  wait "$job" || status=$?
  [ "${status:-0}" -gt 128 ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "${status:-0}"
