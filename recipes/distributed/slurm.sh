#!/bin/bash
# Several machines under Slurm: one torchrun a machine, which starts a process for each GPU (DDP).
#   sbatch recipes/distributed/slurm.sh recipes/qwen3-4b-math.yaml runs/math
# The same line submitted again goes on with the run. All machines must see recipe, models, data and run folder.
#SBATCH --job-name=sdzero
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

RECIPE=${1:?name a recipe}
RUN=${2:?name a run folder that all machines see}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HF_HUB_OFFLINE=1

srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" \
  --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$HEAD:29500" \
  --rdzv-id "$SLURM_JOB_ID" \
  -m sdzero run "$RECIPE" --output "$RUN"
