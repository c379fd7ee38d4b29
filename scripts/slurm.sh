#!/usr/bin/env bash
#SBATCH --job-name=recgoat
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
# Train one model on all GPUs of a Slurm job: one torchrun on each node, one process on each GPU. The folders of
# the data and of the runs have to be visible from all nodes. Arguments are those of main.py:
# sbatch scripts/slurm.sh --dataset electronics --model lgn_mm --recdim 256
# Slurm sends SIGTERM two minutes before the time limit: the run is saved, and main.py --resume continues it.
set -euo pipefail
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# srun does not take over --cpus-per-task. Where one torchrun has failed, the others have nothing to wait for.
exec srun --kill-on-bad-exit=1 --cpus-per-task "${SLURM_CPUS_PER_TASK:-1}" .venv/bin/torchrun --nnodes "$SLURM_NNODES" --nproc_per_node "${SLURM_GPUS_ON_NODE:-1}" \
    --max_restarts 3 --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" --rdzv_endpoint "$head:29500" main.py "$@"
