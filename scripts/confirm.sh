#!/usr/bin/env bash
# The best trial of each study of search.sh against the settings in paper.sh, on VALIDATION.
#   JOBS=2 scripts/confirm.sh baby
#   ONLY="MGCN,SMORE" scripts/confirm.sh baby    # these models
#   SEEDS="1 2"    seeds that the studies have not used (default): their own favours the best trial
# The runs with the settings in paper.sh are those of table1.sh. scripts/paper.sh documents the other variables.
set -euo pipefail
SMALL=1 SEEDS=${SEEDS:-1 2}
source "$(dirname "$0")/paper.sh"
rows BM3 LATTICE MGCN FREEDOM SMORE RecGOAT
for dataset in "${@:-baby}"; do
    settings "$dataset"
    TRIALS=() FOLDERS=()
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
    for seed in $SEEDS; do
        for name in "${ROWS[@]}"; do FOLDERS+=("$(run_folder "${dataset}_$SIZE" "$name" "$seed")"); done
        for name in "${TRIALS[@]}"; do FOLDERS+=("$(run_folder "${dataset}_trials" "$name" "$seed")"); done
    done
    grep -lr --include=result.json '"status": "finished"' "${FOLDERS[@]}" |
        xargs -d '\n' dirname | xargs -d '\n' "$PYTHON" scripts/table.py --mean --split valid
done
exit "$FAILED"
