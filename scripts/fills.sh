#!/usr/bin/env bash
# What takes the place of missing features: FREEDOM and RecGOAT with each value of --missing_fill, where a share of the
# items lacks its text and, drawn by itself, its images.
#   scripts/fills.sh baby
#   SMALL=1 SEEDS=2025 SHARE=0.3 scripts/fills.sh baby    # default of SHARE: 0.5
# Runs that missing.sh has finished are reused. scripts/paper.sh documents the other environment variables.
set -euo pipefail
source "$(dirname "$0")/paper.sh"
missing=text:${SHARE:-0.5},image:${SHARE:-0.5}
for dataset in "${@:-baby}"; do
    settings "$dataset"
    ROWS=()
    # --missing_fill id needs modality vectors, which FREEDOM does not have.
    for run in FREEDOM:{zero,mean,neighbours} RecGOAT:{zero,mean,neighbours,id}; do
        model=${run%:*} fill=${run#*:}
        row="$model missing $missing $fill"
        SETTINGS["$row"]="${SETTINGS[$model]} --name $model --missing $missing --missing_fill $fill"
        ROWS+=("$row")
    done
    run_all "${dataset}_$SIZE" "${ROWS[@]}"
    REPORT=fills_${dataset}_$SIZE report "${dataset}_$SIZE" "${ROWS[@]}" -- --curve missing_fill
done
exit "$FAILED"
