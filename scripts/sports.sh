#!/usr/bin/env bash
# Train RecGOAT with the command published for Sports, on data/sports_raw.
# Arguments are appended: scripts/sports.sh --epochs 1
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec $PYTHON -u main.py --dataset sports_raw --model lgn_mm --use_multimodal 1 \
    --text_feat ./data/sports_raw/text_feat.npy --image_feat ./data/sports_raw/image_feat.npy \
    --item_knn_k 30 --item_branch_layers 1 --epochs 1000 --recdim 600 --layer 3 --lr 8e-4 --bpr_batch 4096 \
    --topks "[10]" --fusion oat --contrastive_weight 0.005 "$@"
