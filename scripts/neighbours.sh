#!/usr/bin/env bash
# Every model with the neighbourhood term (docs/neighbours.md), and item weights alone: W of that term, EASE.
#   SMALL=1 JOBS=2 scripts/neighbours.sh baby
# scripts/paper.sh documents the environment variables. The settings of each model were chosen with SMALL=1 on Baby.
set -euo pipefail
source "$(dirname "$0")/paper.sh"
ROWS=("MF + neighbours" "VBPR + neighbours" "LightGCN + neighbours" "FREEDOM + neighbours" "SMORE + neighbours"
    "RecGOAT + neighbours" "W alone" EASE)
for dataset in "${@:-baby}"; do
    settings "$dataset"
    run_all "${dataset}_$SIZE" "${ROWS[@]}"
    REPORT=neighbours_${dataset}_$SIZE report "${dataset}_$SIZE" "${ROWS[@]}" -- --ours "RecGOAT + neighbours"
done
exit "$FAILED"
