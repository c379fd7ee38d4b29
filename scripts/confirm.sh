#!/usr/bin/env bash
# The best trial of each study of search.sh against the settings in paper.sh, on VALIDATION.
#   JOBS=2 scripts/confirm.sh baby
#   ONLY="MGCN,SMORE" scripts/confirm.sh baby    # these models
#   SEEDS="1 2"    seeds that the studies have not used (default): their own favours the best trial
# The runs with the settings in paper.sh are those of table1.sh. scripts/paper.sh documents the other variables.
set -euo pipefail
SMALL=1 SEEDS=${SEEDS:-1 2}
source "$(dirname "$0")/paper.sh"
rows ItemKNN MF VBPR BM3 LightGCN LATTICE MGCN FREEDOM SMORE RecGOAT
for dataset in "${@:-baby}"; do
    settings "$dataset"
    TRIALS=() FOUND=()
    for name in "${ROWS[@]}"; do
        best=$RUNS/search/${dataset}_${name,,}.best.sh
        [ -e "$best" ] || { echo "$best: not found; scripts/search.sh makes it" >&2; exit 2; }
        # The last line is: python main.py FLAG... "$@"
        SETTINGS["$name trial"]=$(sed -n '$ s/^python main\.py \(.*\) "\$@"$/\1/p' "$best")
        TRIALS+=("$name trial")
    done
    run_all "${dataset}_$SIZE" "${ROWS[@]}"
    run_all "${dataset}_trials" "${TRIALS[@]}"
    [ "$UNFINISHED" = 0 ] || continue
    finished_runs "${dataset}_$SIZE" "${ROWS[@]}"
    finished_runs "${dataset}_trials" "${TRIALS[@]}"
    $PYTHON scripts/table.py --mean --split valid "${FOUND[@]}"
done
exit "$FAILED"
