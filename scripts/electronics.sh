#!/usr/bin/env bash
# The published Electronics command on data/electronics_raw (it says --dataset electronics; the loader finds the _raw folder).
# What you add is added to it: scripts/electronics.sh --epochs 1
set -euo pipefail
source "$(dirname "$0")/setup.sh"
exec $PYTHON -u main.py --dataset electronics --model lgn_mm --use_multimodal 1 \
    --text_feat ./data/electronics_raw/text_feat.npy --image_feat ./data/electronics_raw/image_feat.npy \
    --item_knn_k 20 --item_branch_layers 1 --epochs 2000 --recdim 200 --layer 3 --lr 8e-4 --bpr_batch 4096 \
    --topks "[10]" --fusion oat --contrastive_weight 0.05 "$@"
