#!/usr/bin/env bash
# Train RecGOAT with the command published for Electronics, on data/electronics_raw: the published command
# says --dataset electronics, and the loader finds the folder with _raw. Arguments are appended:
# scripts/electronics.sh --epochs 1
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec $PYTHON -u main.py --dataset electronics --model lgn_mm --use_multimodal 1 \
    --text_feat ./data/electronics_raw/text_feat.npy --image_feat ./data/electronics_raw/image_feat.npy \
    --item_knn_k 20 --item_branch_layers 1 --epochs 2000 --recdim 200 --layer 3 --lr 8e-4 --bpr_batch 4096 \
    --topks "[10]" --fusion oat --contrastive_weight 0.05 "$@"
