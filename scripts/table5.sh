#!/usr/bin/env bash
# Table 5 of the paper: seconds per training epoch and per evaluation, of five models. Needs an idle
# machine.
#   scripts/table5.sh baby
#   SMALL=1 EPOCHS=5 scripts/table5.sh baby
# One run at a time on all cores; medians over EPOCHS epochs (default 10) with an evaluation after each.
# scripts/paper.sh documents the other environment variables.
set -euo pipefail
JOBS=1 SEEDS=${SEEDS:-2025}
source "$(dirname "$0")/paper.sh"
ROWS=(MF LightGCN VBPR FREEDOM RecGOAT)
for dataset in "${@:-baby}"; do
    settings "$dataset"
    for name in "${ROWS[@]}"; do
        SETTINGS["$name"]+=" --threads 0 --epochs ${EPOCHS:-10} --eval_every 1 --patience 0"
    done
    run_all "${dataset}_${SIZE}_seconds" "${ROWS[@]}"
    REPORT=table5_${dataset}_$SIZE report "${dataset}_${SIZE}_seconds" "${ROWS[@]}"
done
exit "$FAILED"
