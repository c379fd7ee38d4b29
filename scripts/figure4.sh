#!/usr/bin/env bash
# Figure 4 of the paper: RecGOAT with k = 10 to 50 neighbours in the item graphs.
#   scripts/figure4.sh baby
#   SMALL=1 JOBS=2 SEEDS=2025 scripts/figure4.sh baby
# scripts/paper.sh documents the environment variables.
set -euo pipefail
source "$(dirname "$0")/paper.sh"
for dataset in "${@:-baby}"; do
    settings "$dataset"
    ROWS=()
    for k in 10 20 30 40 50; do
        SETTINGS["k $k"]="${SETTINGS[RecGOAT]} --item_knn_k $k --name RecGOAT"
        ROWS+=("k $k")
    done
    run_all "${dataset}_$SIZE" "${ROWS[@]}"
    REPORT=figure4_${dataset}_$SIZE report "${dataset}_$SIZE" "${ROWS[@]}" -- --curve item_knn_k
done
exit "$FAILED"
