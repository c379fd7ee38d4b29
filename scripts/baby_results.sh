#!/usr/bin/env bash
# The Baby table of the README: LightGCN, RecGOAT and its ablations at one size, settings tuned on the validation split.
#   scripts/baby_results.sh
#   RECDIM=128 SEED=1 JOBS=2 ONLY="lightgcn full" scripts/baby_results.sh
# TEXT and IMAGE name the feature files. Finished runs are skipped; what a run says goes to runs/baby_<recdim>/*.log.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
RECDIM=${RECDIM:-64} SEED=${SEED:-2025} JOBS=${JOBS:-2} ONLY=${ONLY:-full lightgcn cmcl_only oat_only sum concat}
TEXT=${TEXT:-data/baby_raw/text_feat.npy} IMAGE=${IMAGE:-data/baby_raw/image_feat.npy}
RUNS=runs/baby_$RECDIM/seed_$SEED
COMMON="--dataset baby_raw --recdim $RECDIM --seed $SEED --bpr_batch 4096 --topks 10,20 --valid_metric ndcg@20 --threads 1"
FULL="--model lgn_mm --text_feat $TEXT --image_feat $IMAGE --item_branch_layers 1 --item_knn_k 10
    --fusion oat --beta 0.1 --alpha 0.05 --residual_init zeros --fuse_norm none
    --contrastive_weight 0.15 --modality_consistency_weight 0.33
    --lr 5e-3 --decay 8e-3 --modality_decay 0.3 --epochs 45 --eval_every 3 --patience 4"

declare -A SETTINGS=(
    [lightgcn]="--model lgn --lr 5e-3 --decay 1e-2 --epochs 150 --eval_every 5 --patience 8"
    [full]="$FULL"
    [cmcl_only]="$FULL --transport none"
    [oat_only]="$FULL --contrastive_weight 0"
    [sum]="$FULL --fusion sum --contrastive_weight 0"
    [concat]="$FULL --fusion concat --contrastive_weight 0"
)
mkdir -p "$RUNS"
for name in $ONLY; do
    while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
    compgen -G "$RUNS/$name/*/result.json" >/dev/null && continue
    echo "$name: $RUNS/$name.log"
    $PYTHON main.py $COMMON --path "$RUNS/$name" ${SETTINGS[$name]} >"$RUNS/$name.log" 2>&1 &
done
wait
$PYTHON scripts/table.py "$RUNS"/*/*/
