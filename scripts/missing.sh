#!/usr/bin/env bash
# Models where a share of the items lacks its text, its images, or either: a table over shares.
#   scripts/missing.sh baby
#   SMALL=1 SEEDS=2025 SHARES="0.3 0.7" FILL=mean scripts/missing.sh baby
#   SHARES=0.5           shares of the items (default: 0.3 0.5 0.7); without missing items each model is trained too
#   MODALITIES="text"    modalities that items lack, each with a draw of its own (default: text image)
#   FILL=zero            what takes the place of the features: --missing_fill
# scripts/paper.sh documents the other environment variables.
set -euo pipefail
source "$(dirname "$0")/paper.sh"
SHARES=${SHARES:-0.3 0.5 0.7} MODALITIES=${MODALITIES:-text image} FILL=${FILL:-zero}
for dataset in "${@:-baby}"; do
    settings "$dataset"
    ROWS=(LightGCN VBPR FREEDOM RecGOAT)
    for share in $SHARES; do
        # shellcheck disable=SC2086  # one word per modality
        missing=$(printf ",%s:$share" $MODALITIES)
        for model in VBPR FREEDOM RecGOAT; do
            row="$model missing ${missing:1} $FILL"
            SETTINGS["$row"]="${SETTINGS[$model]} --name $model --missing ${missing:1} --missing_fill $FILL"
            ROWS+=("$row")
        done
    done
    run_all "${dataset}_$SIZE" "${ROWS[@]}"
    REPORT=missing_${FILL}_${dataset}_$SIZE report "${dataset}_$SIZE" "${ROWS[@]}" -- --curve missing
done
exit "$FAILED"
