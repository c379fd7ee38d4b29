# shellcheck shell=bash
# Sourced by table*.sh, figure*.sh, released.sh, lastfm.sh, ...: settings of the experiments, and functions that run and
# report them.
# Environment variables:
#   SMALL=1            settings for a CPU: recdim 64, tuned for it on the validation split of Baby
#   SEEDS="2025 1"     seeds (default: ten, or three with SMALL=1 and for lastfm)
#   JOBS=2             runs at a time (default 1)
#   RUNS=runs/paper    folder of the runs; finished runs are skipped, others are resumed
#   REPORTS=report     folder of the tables and figures
#   DATA_ROOT=data     folder of the datasets
#   TEXT= IMAGE= AUDIO=    feature files, if not text_feat.npy, ... of the dataset
#                      (RUNS, DATA_ROOT and these may not contain white space)
#   PRECISION=fp32     or bf16, tf32: precision of the large products of RecGOAT, MGCN and SMORE
#   ONLY="MF,RecGOAT"  rows of table1.sh, released.sh, cold.sh, search.sh or confirm.sh (default: all)
#   FLAGS=""           flags appended to every run, overriding its settings; use another RUNS with them
# Datasets: baby, sports, electronics and, at the size of SMALL=1, lastfm.
# RecGOAT has the settings of presets/DATASET-paper.json, with SMALL=1 of presets/baby-small.json.
# The flags of a run are split into words, so none of the paths that they name may contain white space.
for NAME in RUNS DATA_ROOT TEXT IMAGE AUDIO; do
    case ${!NAME:-} in
        *[[:space:]]*)
            echo "$NAME='${!NAME}': contains white space; move the files, or link to them by a path without" >&2
            exit 2
            ;;
    esac
done
EXTRAS=${EXTRAS:-report}
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
SMALL=${SMALL:-0} JOBS=${JOBS:-1} PRECISION=${PRECISION:-fp32} ONLY=${ONLY:-} FLAGS=${FLAGS:-}
RUNS=${RUNS:-runs/paper} REPORTS=${REPORTS:-report} DATA_ROOT=${DATA_ROOT:-data}
# What the caller asked for: settings() decides SMALL and SEEDS anew for each dataset.
ASKED_SMALL=$SMALL ASKED_SEEDS=${SEEDS:-}
# Exit status of the calling script: run_all sets it to 1 when a run has not finished with these settings. UNFINISHED
# says the same of the dataset of the last settings().
FAILED=0 UNFINISHED=0

stop() {
    trap - INT TERM
    echo "stopping the runs; start this script again to resume them" >&2
    # shellcheck disable=SC2046  # one word per process
    kill -TERM $(jobs -p) 2>/dev/null || true
    wait
    exit 143
}
trap stop INT TERM

# settings DATASET: sets SMALL, SIZE and SEEDS, COMMON, the flags of every run, and SETTINGS[name], the flags of
# each row of the tables.
settings() {
    local dataset=$1 recdim=64 mf lightgcn vbpr freedom bm3 lattice mgcn smore baseline short recgoat plus
    local mf_term lightgcn_term vbpr_term freedom_term smore_term
    UNFINISHED=0 SMALL=$ASKED_SMALL
    case $dataset in
        baby) recdim=800 ;;
        sports) recdim=600 ;;
        electronics) recdim=200 ;;
        lastfm) SMALL=1 ;;
        *) echo "$dataset: unknown dataset; choose from baby, sports, electronics, lastfm" >&2; exit 2 ;;
    esac
    # shellcheck disable=SC2034  # SIZE is read by the calling script
    if [ "$SMALL" = 1 ]; then
        SIZE=small SEEDS=${ASKED_SEEDS:-2025 1 2}
    else
        SIZE=full SEEDS=${ASKED_SEEDS:-2025 1 2 3 4 5 6 7 8 9}
    fi
    COMMON="--dataset $dataset --data_root $DATA_ROOT --cache_dir $RUNS/.cache --bpr_batch 4096 --topks 10,20
        --valid_metric ndcg@20 ${TEXT:+ --text_feat $TEXT}${IMAGE:+ --image_feat $IMAGE}${AUDIO:+ --audio_feat $AUDIO}"
    if [ "$SMALL" = 1 ]; then
        COMMON+=" --recdim 64 --threads 1"
        mf="--lr 5e-3 --decay 3e-2"
        lightgcn="--layer 4 --lr 1.5e-2 --decay 4.3e-3"
        vbpr="--lr 5e-3 --decay 3e-2"
        freedom="--lr 5e-3 --decay 1e-2"
        bm3="--layer 1 --lr 2e-3 --decay 1e-6 --bm3_weight 2 --bm3_train_features 1 --bpr_batch 2048"
        lattice="--layer 1 --item_knn_k 20 --lattice_initial 0.9 --lr 3.3e-3 --decay 6.2e-3"
        mgcn="--layer 3 --item_knn_k 10 --lr 3e-3 --decay 7.3e-4 --mgcn_contrast 3.2e-3"
        smore="--layer 3 --item_knn_k 20 --lr 4e-3 --decay 2e-3"
        baseline="--epochs 400 --eval_every 5 --patience 6"
        short="--epochs 80 --eval_every 2 --patience 4"
        recgoat="--preset baby-small --precision $PRECISION"
        plus="--preset baby-plus --precision $PRECISION"
        mf_term="--lr 1.8e-2 --decay 3.4e-2 --neighbour_weight 4"
        vbpr_term="--lr 1e-2 --decay 3.1e-2 --neighbour_weight 7.5"
        lightgcn_term="--layer 4 --lr 1e-2 --decay 6e-3 --neighbour_weight 11"
        freedom_term="$freedom --neighbour_weight 8"
        smore_term="--lr 7.6e-3 --decay 3.4e-3 --smore_contrast 3.6e-3 --neighbour_weight 6.5 --bpr_batch 2048
            --epochs 40 --eval_every 2 --patience 4"
    else
        # The baselines have RecGOAT's size and learning rate, and the decay tuned at recdim 64.
        COMMON+=" --recdim $recdim"
        mf="--lr 8e-4 --decay 3e-2"
        lightgcn="--layer 4 --lr 8e-4 --decay 4.3e-3"
        vbpr="--lr 8e-4 --decay 3e-2"
        freedom="--lr 8e-4 --decay 1e-2"
        bm3="--layer 1 --lr 8e-4 --decay 1e-6 --bm3_weight 2 --bm3_train_features 1"
        lattice="--layer 1 --item_knn_k 20 --lattice_initial 0.9 --lr 8e-4 --decay 6.2e-3"
        mgcn="--layer 3 --item_knn_k 10 --lr 8e-4 --decay 7.3e-4 --mgcn_contrast 3.2e-3"
        smore="--layer 3 --item_knn_k 20 --lr 8e-4 --decay 2e-3"
        baseline="--epochs 1000" short="--epochs 1000"
        recgoat="--preset $dataset-paper --precision $PRECISION --epochs 1000"
        plus="$recgoat --neighbour_weight 4"
        mf_term="$mf --neighbour_weight 8"
        vbpr_term="$vbpr --neighbour_weight 8"
        lightgcn_term="$lightgcn --neighbour_weight 8"
        freedom_term="$freedom --neighbour_weight 8"
        smore_term="--lr 8e-4 --decay 3.4e-3 --smore_contrast 3.6e-3 --neighbour_weight 6.5 --epochs 1000"
    fi
    if [ "$dataset" = lastfm ]; then
        # Those of LightGCN and RecGOAT are of docs/lastfm.md; the other baselines have LightGCN's.
        mf="--lr 5e-3 --decay 3e-4" baseline="--epochs 400 --eval_every 10 --patience 5"
        lightgcn=$mf vbpr=$mf freedom=$mf bm3=$mf lattice=$mf mgcn=$mf smore=$mf short=$baseline
        recgoat="--preset lastfm --precision $PRECISION"
        plus=$recgoat
    fi
    declare -gA SETTINGS=(
        [MF]="--model mf $mf $baseline"
        [LightGCN]="--model lgn $lightgcn $baseline"
        [VBPR]="--model vbpr $vbpr $baseline"
        [FREEDOM]="--model freedom --layer 2 --item_knn_k 10 $freedom $baseline"
        [ItemKNN]="--model itemknn"
        [BM3]="--model bm3 $bm3 $baseline"
        [LATTICE]="--model lattice $lattice $short"
        [MGCN]="--model mgcn $mgcn $short --precision $PRECISION"
        [SMORE]="--model smore $smore $short --precision $PRECISION"
        [RecGOAT]="--model lgn_mm $recgoat"
        [Concat]="--model lgn_mm $recgoat --fusion concat --contrastive_weight 0"
        [Sum]="--model lgn_mm $recgoat --fusion sum --contrastive_weight 0"
        [CMCL only]="--model lgn_mm $recgoat --transport none"
        [OAT only]="--model lgn_mm $recgoat --contrastive_weight 0"
        [MF + neighbours]="--model mf $mf_term $baseline --item_knn_k 20"
        [LightGCN + neighbours]="--model lgn $lightgcn_term $baseline --item_knn_k 20"
        [VBPR + neighbours]="--model vbpr $vbpr_term $baseline --item_knn_k 20"
        [FREEDOM + neighbours]="--model freedom --layer 2 --item_knn_k 20 $freedom_term $baseline"
        [SMORE + neighbours]="--model smore --layer 3 --item_knn_k 20 $smore_term --precision $PRECISION"
        [RecGOAT + neighbours]="--model lgn_mm $plus"
        [W alone]="--model itemknn --item_knn_k 20 --itemknn_similarity neighbours"
        [EASE]="--model ease"
    )
}

# rows NAME...: set ROWS, the rows of a table, to these, or to those that ONLY names.
rows() {
    # shellcheck disable=SC2034  # ROWS is read by the calling script
    if [ -n "$ONLY" ]; then IFS=, read -ra ROWS <<<"${ONLY//, /,}"; else ROWS=("$@"); fi
}

# check_rows ARRAY NAME...: exit unless the associative array, of settings by row, has all of these.
check_rows() {
    local -n known=$1
    local name
    shift
    for name in "$@"; do
        if [ -z "${known[$name]+set}" ]; then
            echo "ONLY='$ONLY': there is no row '$name'; choose from: $(IFS=,; echo "${!known[*]}")" >&2
            exit 2
        fi
    done
}

# run_all GROUP NAME...: run every name with every seed in $RUNS/GROUP/NAME/seed_SEED, JOBS at a time.
run_all() {
    local group=$1 name seed folder words
    shift
    check_rows SETTINGS "$@"
    for seed in $SEEDS; do
        for name in "$@"; do
            while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n || true; done
            run_flags "$name" "$seed"
            run_one "$(run_folder "$group" "$name" "$seed")" "${words[@]}" &
        done
    done
    wait
    for name in "$@"; do
        for seed in $SEEDS; do
            folder=$(run_folder "$group" "$name" "$seed")
            run_flags "$name" "$seed"
            # run_one has said what is wrong with other settings.
            if ! has_other_flags "$folder" "${words[@]}"; then
                is_finished "$folder" && continue
                echo "$name, seed $seed: not finished"
            fi
            # shellcheck disable=SC2034  # read by the calling script
            FAILED=1 UNFINISHED=1
        done
    done
}

# run_folder GROUP NAME SEED: print the folder of a run.
run_folder() { echo "$RUNS/$1/${2// /_}/seed_$3"; }

# run_flags NAME SEED: set words to the flags of a run.
run_flags() {
    # shellcheck disable=SC2206  # the settings are lists of words
    words=(--name "$1" --seed "$2" $COMMON ${SETTINGS["$1"]} $FLAGS)
}

# is_finished FOLDER: does the folder hold a finished run?
is_finished() { grep -qs '"status": "finished"' "$1"/*/result.json; }

# finished_runs GROUP NAME...: add the folders of the finished runs of these names to FOUND.
finished_runs() {
    local group=$1 name seed result
    shift
    for name in "$@"; do
        for seed in $SEEDS; do
            for result in "$(run_folder "$group" "$name" "$seed")"/*/result.json; do
                if grep -qs '"status": "finished"' "$result"; then FOUND+=("${result%/*}"); fi
            done
        done
    done
}

# has_other_flags FOLDER FLAG...: does the folder hold a run with other flags? A script that was killed as it opened
# the file leaves it empty.
has_other_flags() { [ -s "$1/flags" ] && [ "$(cat "$1/flags")" != "${*:2}" ]; }

# run_one FOLDER FLAG...: start the run, resume it, or skip it if it has finished. Its output goes to
# FOLDER/log.
run_one() {
    local folder=$1 configs arguments
    shift
    mkdir -p "$folder"
    if has_other_flags "$folder" "$@"; then
        echo "$folder: was made with other settings; remove it, or set another RUNS" >&2
        return
    fi
    if is_finished "$folder"; then return; fi
    echo "$*" >"$folder/flags"
    # The folders of attempts are named by time, so the last one is the latest. It has these settings.
    shopt -s nullglob
    configs=("$folder"/*/config.json)
    if [ ${#configs[@]} = 0 ]; then
        echo "$folder"
        arguments=("$@" --path "$folder")
    else
        echo "$folder (resumed)"
        arguments=(--resume "$(dirname "${configs[-1]}")")
    fi
    # exec: signals sent to the job have to reach Python.
    exec $PYTHON main.py "${arguments[@]}" >>"$folder/log" 2>&1
}

# report GROUP NAME... [-- FLAG...]: write tables and figures of these rows to $REPORTS/${REPORT:-GROUP}, unless one of
# the runs of the dataset has not finished.
report() {
    local group=$1 folders=()
    shift
    if [ "$UNFINISHED" = 1 ]; then
        echo "$REPORTS/${REPORT:-$group}: not made: correct the runs named above, or leave their rows out" >&2
        return
    fi
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        folders+=("$RUNS/$group/${1// /_}")
        shift
    done
    shift || true
    $PYTHON report.py "${folders[@]}" --output "$REPORTS/${REPORT:-$group}" "$@"
}
