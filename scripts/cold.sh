#!/usr/bin/env bash
# Models on a split in which a share of the items is held out entirely: a table of warm, cold and all items.
#   scripts/cold.sh baby
#   SMALL=1 SEEDS=2025 scripts/cold.sh baby
#   SMALL=1 TEXT=FILE.npy scripts/cold.sh lastfm
#   COLD=0.2      share of the items, half of it for validation and half for test
# The split is made, once, in the folder $RUNS/data/DATASET_cold, of the .inter file in $DATA_ROOT/DATASET or
# $DATA_ROOT/DATASET_raw; `python -m data.prepare DATASET --convert inter` makes one of three .txt files.
# scripts/paper.sh documents the other environment variables.
set -euo pipefail
source "$(dirname "$0")/paper.sh"
COLD=${COLD:-0.2}
rows LightGCN VBPR FREEDOM RecGOAT

# make_split DATASET: the interactions and features of a dataset, split anew.
make_split() {
    local folder=$DATA_ROOT/$1 m file features=()
    [ -e "$folder" ] || folder+=_raw
    [ -e "$folder/$1.inter" ] ||
        { echo "$folder/$1.inter is missing; make it: python -m data.prepare $1 --convert inter" >&2; exit 2; }
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
    $PYTHON -m data.prepare "$1_cold" --data_root "$RUNS/data" --interactions "$folder/$1.inter" \
        --user_column userID --item_column itemID --core 1 --split cold --cold_share "$COLD" "${features[@]}"
}

for dataset in "${@:-baby}"; do
    [ -e "$RUNS/data/${dataset}_cold" ] || make_split "$dataset"
    DATA_ROOT=$RUNS/data TEXT="" IMAGE="" AUDIO="" settings "$dataset"
    COMMON=${COMMON/--dataset $dataset /--dataset ${dataset}_cold }
    run_all "${dataset}_cold_$SIZE" "${ROWS[@]}"
    REPORT=cold_${dataset}_$SIZE report "${dataset}_cold_$SIZE" "${ROWS[@]}"
done
exit "$FAILED"
