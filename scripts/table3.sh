#!/usr/bin/env bash
# Table 3 of the paper, the ablation: LightGCN, concatenation and sum without alignment, CMCL only, OAT only,
# both.
#   scripts/table3.sh baby sports electronics
#   SMALL=1 JOBS=2 scripts/table3.sh baby
# Runs that table1.sh has finished are reused. scripts/paper.sh documents the environment variables.
set -euo pipefail
source "$(dirname "$0")/paper.sh"
ROWS=(LightGCN Concat Sum "CMCL only" "OAT only" RecGOAT)
for dataset in "${@:-baby}"; do
    settings "$dataset"
    run_all "${dataset}_$SIZE" "${ROWS[@]}"
    REPORT=table3_${dataset}_$SIZE report "${dataset}_$SIZE" "${ROWS[@]}"
done
exit "$FAILED"
