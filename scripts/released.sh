#!/usr/bin/env bash
# Effect of each difference between the authors' released code and the paper: RecGOAT as in the paper, with
# each difference alone, and with all of them.
#   scripts/released.sh baby
#   SMALL=1 JOBS=2 scripts/released.sh baby
# scripts/paper.sh documents the environment variables. --sum_proj has no row: it applies to --fusion sum
# only.
set -euo pipefail
source "$(dirname "$0")/paper.sh"
declare -A DEPARTURES=(
    [Paper]=""
    [repel]="--contrastive_sign repel"
    ["mean over pairs"]="--contrastive_reduction mean"
    ["pairs of negatives"]="--contrastive_items pos_neg"
    ["repeated items"]="--contrastive_dedup 0"
    ["squared cost"]="--ot_cost squared"
    ["plan of mass 1"]="--plan_scale mass"
    ["plain Sinkhorn"]="--ot_cost squared --ot_scale 100 --ot_epsilon 0.01 --ot_unit absolute --sinkhorn exp
        --plan_scale mass"
    ["plan every step"]="--plan_every 1"
    ["learned fusion"]="--learn_fusion_weights 1"
    ["feature map"]="--feat_proj 1"
    ["more dropout"]="--feat_dropout 0.1 --branch_dropout 0.1"
    ["positives as negatives"]="--neg_reject 0"
    ["dropout in scoring"]="--eval_dropout 1"
    ["selected on test"]="--select_on test"
)
ROWS=(
    Paper repel "user-item InfoNCE" "mean over pairs" "pairs of negatives" "repeated items" "squared cost"
    "plan of mass 1" "plain Sinkhorn" "plan every step" "learned fusion" "feature map" "more dropout"
    "positives as negatives" "dropout in scoring" "selected on test" "all of them"
)
for dataset in "${@:-baby}"; do
    settings "$dataset"
    # The paper's contrastive term covers modality pairs only; the released code adds InfoNCE(user, item) with
    # the same weight. `both` is the sum of the two weights, of which --modality_consistency_weight 0.5 goes
    # to the pairs.
    case $dataset-$SIZE in
        *-small) pairs=0.05 both=0.1 short="--epochs 24 --patience 0" ;;
        baby-*) pairs=0.032 both=0.064 short="" ;;
        sports-*) pairs=0.005 both=0.01 short="" ;;
        *) pairs=0.05 both=0.1 short="" ;;
    esac
    BASE="${SETTINGS[RecGOAT]} --contrastive_weight $pairs --modality_consistency_weight 1 $short"
    for name in "${!DEPARTURES[@]}"; do SETTINGS["$name"]="$BASE ${DEPARTURES[$name]}"; done
    SETTINGS["user-item InfoNCE"]="$BASE --contrastive_weight $both --modality_consistency_weight 0.5"
    SETTINGS["all of them"]="${SETTINGS["user-item InfoNCE"]} --recipe released"
    run_all "${dataset}_${SIZE}_released" "${ROWS[@]}"
    REPORT=released_${dataset}_$SIZE report "${dataset}_${SIZE}_released" "${ROWS[@]}" -- --ours Paper
done
exit "$FAILED"
