#!/usr/bin/env bash
# Table 1 of the paper: nine baselines and RecGOAT with the same features and embedding size.
#   scripts/table1.sh baby sports electronics
#   SMALL=1 JOBS=2 scripts/table1.sh baby
# scripts/paper.sh documents the environment variables.
set -euo pipefail
source "$(dirname "$0")/paper.sh"
rows MF ItemKNN VBPR LightGCN BM3 LATTICE MGCN FREEDOM SMORE RecGOAT
for dataset in "${@:-baby}"; do
    settings "$dataset"
    run_all "${dataset}_$SIZE" "${ROWS[@]}"
    REPORT=table1_${dataset}_$SIZE report "${dataset}_$SIZE" "${ROWS[@]}"
done
exit "$FAILED"
