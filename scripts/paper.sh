# Sourced by table*.sh, figure*.sh and released.sh: settings of the experiments, and runs that are made once.
#   SMALL=1           sizes for a CPU: recdim 64, settings tuned for it on the validation split of Baby
#   SEEDS="2025 1"    which seeds; default ten, and three with SMALL=1
#   JOBS=2            runs at a time
#   RUNS=runs/paper   where runs are kept; finished ones are skipped, others go on where they stopped
#   REPORTS=report    where the tables and figures go
#   DATA_ROOT=data TEXT= IMAGE=    where datasets are, and feature files by other names than text_feat.npy and image_feat.npy
#   PRECISION=fp32    or bf16, tf32, for RecGOAT (the baselines have no large products)
#   FLAGS=""          more flags for every run, the last word on each setting (they make other runs: give another RUNS too)
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
SMALL=${SMALL:-0} JOBS=${JOBS:-1} RUNS=${RUNS:-runs/paper} REPORTS=${REPORTS:-report} DATA_ROOT=${DATA_ROOT:-data} PRECISION=${PRECISION:-fp32} FLAGS=${FLAGS:-}
if [ "$SMALL" = 1 ]; then SIZE=small SEEDS=${SEEDS:-2025 1 2}; else SIZE=full SEEDS=${SEEDS:-2025 1 2 3 4 5 6 7 8 9}; fi
FAILED=0
trap 'trap - INT TERM; echo "stopping the runs; start this script again to go on" >&2; kill -TERM $(jobs -p) 2>/dev/null; wait; exit 143' INT TERM

# Settings of a dataset: common ones in COMMON, those of each row of the tables in SETTINGS[name].
settings() {
    local dataset=$1 recdim knn weight
    case $dataset in
        baby) recdim=800 knn=20 weight=0.032 ;;
        sports) recdim=600 knn=30 weight=0.005 ;;
        electronics) recdim=200 knn=20 weight=0.05 ;;
        *) echo "$dataset: name datasets among baby, sports, electronics" >&2; exit 2 ;;
    esac
    COMMON="--dataset $dataset --data_root $DATA_ROOT --cache_dir $RUNS/.cache --bpr_batch 4096 --topks 10,20 --valid_metric ndcg@20"
    COMMON+="${TEXT:+ --text_feat $TEXT}${IMAGE:+ --image_feat $IMAGE}"
    if [ "$SMALL" = 1 ]; then
        COMMON+=" --recdim 64 --threads 1"
        MF="--lr 5e-3 --decay 3e-2" LIGHTGCN="--lr 5e-3 --decay 1e-2" VBPR="--lr 5e-3 --decay 3e-2" FREEDOM="--lr 5e-3 --decay 1e-2"
        BASELINE="--epochs 150 --eval_every 5 --patience 6"
        RECGOAT="--precision $PRECISION --item_branch_layers 1 --item_knn_k 10 --fusion oat --beta 0.1 --alpha 0.05 --residual_init zeros --fuse_norm none
            --contrastive_weight 0.15 --modality_consistency_weight 0.33 --lr 5e-3 --decay 8e-3 --modality_decay 0.3
            --epochs 45 --eval_every 3 --patience 4"
    else    # RecGOAT as published; the baselines at the same size and step, with the decay that suits them at 64
        COMMON+=" --recdim $recdim"
        MF="--lr 8e-4 --decay 3e-2" LIGHTGCN="--lr 8e-4 --decay 1e-2" VBPR="--lr 8e-4 --decay 3e-2" FREEDOM="--lr 8e-4 --decay 1e-2"
        BASELINE="--epochs 1000"
        RECGOAT="--precision $PRECISION --item_branch_layers 1 --item_knn_k $knn --epochs 1000 --lr 8e-4 --fusion oat --contrastive_weight $weight"
    fi
    declare -gA SETTINGS=(
        [MF]="--model mf $MF $BASELINE"
        [LightGCN]="--model lgn $LIGHTGCN $BASELINE"
        [VBPR]="--model vbpr $VBPR $BASELINE"
        [FREEDOM]="--model freedom --layer 2 --item_knn_k 10 $FREEDOM $BASELINE"
        [RecGOAT]="--model lgn_mm $RECGOAT"
        [Concat]="--model lgn_mm $RECGOAT --fusion concat --contrastive_weight 0"
        [Sum]="--model lgn_mm $RECGOAT --fusion sum --contrastive_weight 0"
        [CMCL only]="--model lgn_mm $RECGOAT --transport none"
        [OAT only]="--model lgn_mm $RECGOAT --contrastive_weight 0"
    )
}

# run_all GROUP NAME...: a run of every name and seed in $RUNS/GROUP/NAME/seed_S, JOBS at a time.
run_all() {
    local group=$1 name seed
    shift
    for seed in $SEEDS; do
        for name in "$@"; do
            while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n || true; done
            run_one "$RUNS/$group/${name// /_}/seed_$seed" --name "$name" --seed "$seed" $COMMON ${SETTINGS[$name]} $FLAGS &
        done
    done
    wait
    for name in "$@"; do
        for seed in $SEEDS; do is_finished "$RUNS/$group/${name// /_}/seed_$seed" || { FAILED=1; echo "$name, seed $seed: not finished"; }; done
    done
}

is_finished() { grep -qs '"status": "finished"' "$1"/*/result.json; }

# run_one FOLDER FLAG...: makes the run, resumes it, or skips it; what it says goes to FOLDER/log.
run_one() {
    local folder=$1 begun
    shift
    mkdir -p "$folder"
    if [ -e "$folder/flags" ] && [ "$(cat "$folder/flags")" != "$*" ]; then
        echo "$folder: was made with other settings; remove it, or give another RUNS=" >&2
        return
    fi
    is_finished "$folder" && return
    echo "$*" >"$folder/flags"
    begun=$(ls -d "$folder"/*/config.json 2>/dev/null | tail -1 || true)
    echo "$folder${begun:+ (resumed)}"
    # exec, so that a signal to the job reaches python
    exec $PYTHON main.py "$@" ${begun:+--resume "${begun%/config.json}"} --path "$folder" >>"$folder/log" 2>&1
}

# report GROUP NAME... [-- FLAG...]: tables and figures of these rows in report/GROUP.
report() {
    local group=$1 folders=()
    shift
    while [ $# -gt 0 ] && [ "$1" != -- ]; do folders+=("$RUNS/$group/${1// /_}"); shift; done
    shift || true
    $PYTHON report.py "${folders[@]}" --output "$REPORTS/${REPORT:-$group}" "$@"
}
