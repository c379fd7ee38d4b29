"""The training commands in the README of the paper's repository, without "python -u main.py"."""

COMMANDS = {
    "baby": (
        "--dataset baby_raw   --model lgn_mm --use_multimodal 1 --text_feat ./data/baby_raw/text_feat.npy "
        "--image_feat ./data/baby_raw/image_feat.npy --item_knn_k 20 --item_branch_layers 1 --epochs 1000 "
        '--recdim 800 --layer 3 --lr 8e-4 --bpr_batch 4096 --topks "[10]" --fusion oat '
        "--contrastive_weight 0.032"
    ),
    "sports": (
        "--dataset sports_raw --model lgn_mm --use_multimodal 1 --text_feat ./data/sports_raw/text_feat.npy "
        "--image_feat ./data/sports_raw/image_feat.npy --item_knn_k 30 --item_branch_layers 1 --epochs 1000 "
        '--recdim 600 --layer 3 --lr 8e-4 --bpr_batch 4096 --topks "[10]" --fusion oat '
        "--contrastive_weight 0.005"
    ),
    "electronics": (
        "--dataset electronics --model lgn_mm --use_multimodal 1 "
        "--text_feat ./data/electronics_raw/text_feat.npy "
        "--image_feat ./data/electronics_raw/image_feat.npy --item_knn_k 20 --item_branch_layers 1 "
        '--epochs 2000 --recdim 200 --layer 3 --lr 8e-4 --bpr_batch 4096 --topks "[10]" --fusion oat '
        "--contrastive_weight 0.05"
    ),
}
