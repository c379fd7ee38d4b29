#!/usr/bin/env bash
# The search for the settings that SMALL=1 has in table 1: a study of tune.py for each model, all of the same
# size, on validation.
#   JOBS=2 scripts/search.sh baby
#   TRIALS=30     finished trials of each study; a larger number continues the studies
#   ONLY="FREEDOM,SMORE"    these models (default: all of table 1)
# Studies, trials and logs are in $RUNS/search, JOBS studies run at a time. `.venv/bin/python tune.py --study NAME
# --storage FILE.db --best` prints what a study found. scripts/paper.sh documents the other environment variables.
set -euo pipefail
SMALL=1 EXTRAS="report tune"
source "$(dirname "$0")/paper.sh"
TRIALS=${TRIALS:-30}
rows ItemKNN MF VBPR BM3 LightGCN LATTICE MGCN FREEDOM SMORE RecGOAT

both="lr=1e-3..1e-2:log decay=1e-4..3e-2:log"
# Without a contrastive term or item graphs the best decay is stronger.
strong="lr=1e-3..2e-2:log decay=1e-3..1e-1:log"
graph="layer=1..3 item_knn_k=5,10,20"
slow="--epochs 150 --eval_every 5 --patience 4"
quick="--epochs 80 --eval_every 2 --patience 4"
declare -A STUDIES=(
    [ItemKNN]="--model itemknn --space itemknn_k=1..1000:log"
    [MF]="--model mf $slow --space $strong"
    [VBPR]="--model vbpr $slow --space $strong"
    [LightGCN]="--model lgn $slow --space $strong layer=1..4"
    [BM3]="--model bm3 $slow --space $both layer=1,2 bm3_dropout=0.3,0.5 bm3_weight=1e-2..2:log
        bm3_train_features=0,1"
    [LATTICE]="--model lattice $quick --space $both $graph lattice_initial=0.5,0.7,0.9"
    [MGCN]="--model mgcn $quick --precision $PRECISION --space $both $graph mgcn_contrast=1e-3..1e-1:log"
    [FREEDOM]="--model freedom --layer 2 $slow --space $both item_knn_k=5,10,20 item_graph_image=0..1
        edge_dropout=0..0.9 feature_bpr_weight=1e-5..1e-1:log"
    [SMORE]="--model smore $quick --precision $PRECISION --space $both $graph smore_contrast=1e-3..1e-1:log"
    # What is not searched, such as the fusion weights, is as in the preset.
    [RecGOAT]="--preset baby-small --precision $PRECISION --space $both item_knn_k=5,10,20
        contrastive_weight=2e-2..0.5:log modality_consistency_weight=0.1..1 modality_decay=1e-2..1:log"
)
check_rows STUDIES "${ROWS[@]}"
mkdir -p "$RUNS/search"
for dataset in "${@:-baby}"; do
    settings "$dataset"
    for name in "${ROWS[@]}"; do
        while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n || FAILED=1; done
        study=${dataset}_${name,,}
        echo "$RUNS/search/$study.db"
        # Pruned later than by default, because a strong decay starts slowly.
        # shellcheck disable=SC2086  # the settings are lists of words
        $PYTHON tune.py --study "$study" --storage "$RUNS/search/$study.db" --path "$RUNS/search/$study" \
            --trials "$TRIALS" --warm_up 6 $COMMON ${STUDIES["$name"]} --seed 2025 $FLAGS \
            >>"$RUNS/search/$study.log" 2>&1 &
    done
done
while [ "$(jobs -rp | wc -l)" -gt 0 ]; do wait -n || FAILED=1; done
exit "$FAILED"
