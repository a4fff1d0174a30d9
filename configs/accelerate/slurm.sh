#!/bin/bash
# sbatch configs/accelerate/slurm.sh --config configs/vit_large.yaml --dataset_name my/images --output_dir runs/vit_large
#SBATCH --job-name=poa
#SBATCH --nodes=4                 # 4 nodes of 8 GPUs and 50 images each are the published 1600 images a step
#SBATCH --ntasks-per-node=1       # torchrun starts the processes of a node
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=88        # 11 for each GPU: its process and the recipes' 10 workers (dataloader_num_workers)
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120         # two minutes before the end: a checkpoint is saved
#SBATCH --requeue                 # a run that was cut off goes on from its last checkpoint
#SBATCH --open-mode=append
set -euo pipefail
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=1          # the workers are processes; threads would only fight for the cores

srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head_node:29500" \
    --signals-to-handle SIGTERM,SIGINT,SIGUSR1 --shutdown-timeout 100 \
    examples/pretrain.py "$@" --resume_from_checkpoint
