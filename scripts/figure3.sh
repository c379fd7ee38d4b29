#!/usr/bin/env bash
# Figure 3 of the paper: (a) RecGOAT over the triangle of fusion weights, text + image + ID = 1, in steps of
# STEP hundredths (default 20); (b) its corners, where the item vector is one aligned modality or the ID
# alone, and the fusion.
#   scripts/figure3.sh baby
#   SMALL=1 JOBS=2 SEEDS=2025 STEP=25 scripts/figure3.sh baby
# scripts/paper.sh documents the other environment variables.
set -euo pipefail
source "$(dirname "$0")/paper.sh"
STEP=${STEP:-20}
for dataset in "${@:-baby}"; do
    settings "$dataset"
    # All runs have the same --name: the report tells them apart by their weights.
    BASE="${SETTINGS[RecGOAT]} --name RecGOAT"
    CORNERS=("ID alone" "text alone" "image alone") POINTS=()
    SETTINGS["ID alone"]="$BASE --beta 0 --alpha 0"
    SETTINGS["text alone"]="$BASE --beta 1 --alpha 0"
    SETTINGS["image alone"]="$BASE --beta 0 --alpha 1"
    for text in $(seq 0 "$STEP" 99); do
        for image in $(seq 0 "$STEP" $((100 - text))); do
            # The corners are runs already.
            if [ "$text $image" = "0 0" ] || [ "$image" = 100 ]; then continue; fi
            name="text $text image $image"
            SETTINGS["$name"]="$BASE --beta $(printf 0.%02d "$text") --alpha $(printf 0.%02d "$image")"
            POINTS+=("$name")
        done
    done
    run_all "${dataset}_$SIZE" "${CORNERS[@]}" RecGOAT "${POINTS[@]}"
    REPORT=figure3a_${dataset}_$SIZE report "${dataset}_$SIZE" "${CORNERS[@]}" "${POINTS[@]}" -- --triangle
    REPORT=figure3b_${dataset}_$SIZE report "${dataset}_$SIZE" "${CORNERS[@]}" RecGOAT -- --triangle
done
exit "$FAILED"
