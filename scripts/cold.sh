#!/usr/bin/env bash
# Models on a split in which a share of the items is held out entirely: a table of warm, cold and all items.
#   scripts/cold.sh baby
#   SMALL=1 SEEDS=2025 scripts/cold.sh baby
#   SMALL=1 TEXT=FILE.npy scripts/cold.sh lastfm
#   COLD=0.2      share of the items, half of it for validation and half for test
# The split is made, once, in the folder $RUNS/data/DATASET_cold (DATASET_cold_SHARE for another share than 0.2), of the
# .inter file in $DATA_ROOT/DATASET or $DATA_ROOT/DATASET_raw. `python -m data.prepare FOLDER --data_root $DATA_ROOT
# --convert inter` makes one of three .txt files, where FOLDER is DATASET or DATASET_raw.
# scripts/paper.sh documents the other environment variables.
set -euo pipefail
source "$(dirname "$0")/paper.sh"
COLD=${COLD:-0.2}
KIND=cold
[ "$COLD" = 0.2 ] || KIND=cold_$COLD
rows LightGCN VBPR FREEDOM RecGOAT

# make_split DATASET: the interactions and features of a dataset, split anew.
make_split() {
    local folder=$DATA_ROOT/$1 m file remedy features=()
    [ -e "$folder" ] || folder+=_raw
    if [ ! -e "$folder/$1.inter" ]; then
        remedy="python -m data.prepare ${folder##*/} --data_root $DATA_ROOT --convert inter"
        echo "$folder/$1.inter: is missing; make it: $remedy" >&2
        exit 2
    fi
    for m in text image audio; do
        file=${m^^}
        file=${!file:-$folder/${m}_feat.npy}
        [ ! -e "$file" ] || features+=("--${m}_feat" "$file=$RUNS/data/$1.ids")
    done
    [ ${#features[@]} -gt 0 ] || { echo "$folder: has no features (text_feat.npy, ...)" >&2; exit 2; }
    mkdir -p "$RUNS/data"
    # Row r of the features is item r.
    $PYTHON -c 'import sys; import numpy as np; print(*range(len(np.load(sys.argv[1], mmap_mode="r"))), sep="\n")' \
        "${features[1]%%=*}" >"$RUNS/data/$1.ids"
    $PYTHON -m data.prepare "$1_$KIND" --data_root "$RUNS/data" --interactions "$folder/$1.inter" \
        --user_column userID --item_column itemID --core 1 --split cold --cold_share "$COLD" "${features[@]}"
}

for dataset in "${@:-baby}"; do
    [ -e "$RUNS/data/${dataset}_$KIND" ] || make_split "$dataset"
    DATA_ROOT=$RUNS/data TEXT="" IMAGE="" AUDIO="" settings "$dataset"
    COMMON=${COMMON/--dataset $dataset /--dataset ${dataset}_$KIND }
    run_all "${dataset}_${KIND}_$SIZE" "${ROWS[@]}"
    REPORT=${KIND}_${dataset}_$SIZE report "${dataset}_${KIND}_$SIZE" "${ROWS[@]}"
done
exit "$FAILED"
