#!/usr/bin/env bash
# The walk-through of the README, "A dataset of your own": from a CSV with ids of any kind and a folder of pictures to
# recommendations with these ids. Without arguments it first makes a toy shop to walk through with, in shop/.
#   scripts/own_data.sh
#   TEXT_MODEL=FOLDER IMAGE_MODEL=FOLDER scripts/own_data.sh      # models of your own disk, no hub
set -euo pipefail
EXTRAS=data/requirements.txt
source "$(dirname "$0")/setup.sh"
TEXT_MODEL=${TEXT_MODEL:-sentence-transformers/all-MiniLM-L6-v2} IMAGE_MODEL=${IMAGE_MODEL:-openai/clip-vit-base-patch32}

[ -d shop ] || $PYTHON - <<'TOY'
import random
from pathlib import Path
from PIL import Image, ImageDraw
random.seed(7)
THEMES = {"garden": ((60, 140, 60), "spade rake hose pot seed"), "kitchen": ((200, 120, 40), "pan knife bowl whisk kettle"),
          "office": ((70, 90, 170), "pen lamp stapler folder desk"), "bath": ((80, 180, 190), "towel soap brush mirror mat"),
          "toys": ((200, 60, 140), "puzzle robot kite blocks doll"), "music": ((120, 70, 160), "guitar drum flute stand strings")}
Path("shop/pictures").mkdir(parents=True)
items = [(f"SKU-{t[:2].upper()}{n:02d}", t) for t in THEMES for n in range(20)]
with open("shop/items.csv", "w") as file:
    print("sku,title,description", file=file)
    for sku, theme in items:
        colour, words = THEMES[theme]
        thing = random.choice(words.split())
        print(f"{sku},{theme} {thing},A {random.choice(['small', 'large', 'red', 'blue'])} {thing} for the {theme}", file=file)
        picture = Image.new("RGB", (64, 64), tuple(c + random.randint(-25, 25) for c in colour))
        at = random.randint(5, 25)
        ImageDraw.Draw(picture).ellipse((at, at, at + 30, at + 30), fill=tuple(255 - c for c in colour))
        picture.save(f"shop/pictures/{sku}.png")
with open("shop/orders.csv", "w") as file:
    print("customer,sku,when", file=file)
    for customer in range(400):
        likes = random.sample(list(THEMES), 2)
        for day in sorted(random.sample(range(1000), random.randint(6, 14))):
            theme = random.choice(likes if random.random() < 0.9 else list(THEMES))
            print(f"c{customer:04d}@example.org,{random.choice([s for s, t in items if t == theme])},{1_700_000_000 + 86_400 * day}", file=file)
TOY

rm -rf data/shop
$PYTHON -m data.prepare shop --interactions shop/orders.csv --user_column customer --item_column sku --time_column when --core 3 --meta shop/items.csv
$PYTHON -m data.features text shop --model "$TEXT_MODEL"
$PYTHON -m data.features image shop --model "$IMAGE_MODEL" --pictures shop/pictures --ids original
$PYTHON -m data.check shop
$PYTHON main.py --dataset shop --model lgn_mm --recdim 32 --item_knn_k 5 --item_branch_layers 1 --lr 1e-2 --epochs 60 --path runs/shop
RUN=$(ls -td runs/shop/*/ | head -1)
$PYTHON recommend.py --checkpoint "$RUN" --topk 3 --exclude train,valid,test --output shop/recommendations.tsv
head -7 shop/recommendations.tsv
