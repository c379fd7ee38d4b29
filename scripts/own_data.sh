#!/usr/bin/env bash
# The walk-through of the README, "Your own data": from CSV files with arbitrary ids and a folder of
# pictures to recommendations with these ids. Generates a toy shop in toy_shop/ unless that folder exists, and makes
# data/toy_shop anew.
#   scripts/own_data.sh
#   TEXT_MODEL=FOLDER scripts/own_data.sh                         a text model from disk, not from a hub (90 MB)
#   IMAGE_MODEL=openai/clip-vit-base-patch32 scripts/own_data.sh  a picture model (600 MB) instead of colours
set -euo pipefail
EXTRAS=features
source "$(dirname "$0")/setup.sh"
TEXT_MODEL=${TEXT_MODEL:-sentence-transformers/all-MiniLM-L6-v2}
IMAGE_MODEL=${IMAGE_MODEL:-colours}

[ -d toy_shop ] || $PYTHON - <<'TOY'
import random
import shutil
from pathlib import Path

from PIL import Image, ImageDraw

THEMES = {
    "garden": ((60, 140, 60), "spade rake hose pot seed"),
    "kitchen": ((200, 120, 40), "pan knife bowl whisk kettle"),
    "office": ((70, 90, 170), "pen lamp stapler folder desk"),
    "bath": ((80, 180, 190), "towel soap brush mirror mat"),
    "toys": ((200, 60, 140), "puzzle robot kite blocks doll"),
    "music": ((120, 70, 160), "guitar drum flute stand strings"),
}
random.seed(7)
# Renamed when it is complete.
shop = Path("toy_shop.tmp")
shutil.rmtree(shop, ignore_errors=True)
(shop / "pictures").mkdir(parents=True)
items = [(f"SKU-{theme[:2].upper()}{n:02d}", theme) for theme in THEMES for n in range(20)]

with open(shop / "items.csv", "w") as file:
    print("sku,title,description", file=file)
    for sku, theme in items:
        colour, products = THEMES[theme]
        product = random.choice(products.split())
        description = f"A {random.choice(['small', 'large', 'red', 'blue'])} {product} for the {theme}"
        print(f"{sku},{theme} {product},{description}", file=file)
        picture = Image.new("RGB", (64, 64), tuple(channel + random.randint(-25, 25) for channel in colour))
        left = random.randint(5, 25)
        contrast = tuple(255 - channel for channel in colour)
        ImageDraw.Draw(picture).ellipse((left, left, left + 30, left + 30), fill=contrast)
        picture.save(shop / "pictures" / f"{sku}.png")

# Every customer likes two themes and follows them in nine orders of ten. themes.csv is for the check at the end.
with open(shop / "orders.csv", "w") as file, open(shop / "themes.csv", "w") as themes:
    print("customer,sku,when", file=file)
    print("customer,first,second", file=themes)
    for customer in range(400):
        liked = random.sample(list(THEMES), 2)
        print(f"c{customer:04d}@example.org", *liked, sep=",", file=themes)
        for day in sorted(random.sample(range(1000), random.randint(6, 14))):
            theme = random.choice(liked if random.random() < 0.9 else list(THEMES))
            sku = random.choice([sku for sku, item_theme in items if item_theme == theme])
            print(f"c{customer:04d}@example.org,{sku},{1_700_000_000 + 86_400 * day}", file=file)
shop.rename("toy_shop")
TOY

rm -rf data/toy_shop
$PYTHON -m data.prepare toy_shop --interactions toy_shop/orders.csv --user_column customer --item_column sku \
    --time_column when --core 3 --meta toy_shop/items.csv
$PYTHON -m data.features text toy_shop --model "$TEXT_MODEL"
$PYTHON -m data.features image toy_shop --model "$IMAGE_MODEL" --pictures toy_shop/pictures --ids original
$PYTHON -m data.check toy_shop
# Small data: small batches, so that an epoch has a dozen steps; the best epoch by recall@20, which is less noisy than
# ndcg@10 where a customer has one order to find.
$PYTHON main.py --dataset toy_shop --model lgn_mm --recdim 32 --item_knn_k 5 --item_branch_layers 1 --lr 1e-2 \
    --bpr_batch 256 --epochs 40 --valid_metric recall@20 --path runs/toy_shop
# Run folders are named by time, so the last one is the latest.
RUNS=(runs/toy_shop/toy_shop_lgn_mm_*/)
$PYTHON recommend.py --checkpoint "${RUNS[-1]}" --topk 3 --exclude train,valid,test \
    --output toy_shop/recommendations.tsv
head -7 toy_shop/recommendations.tsv
[ ! -f toy_shop/themes.csv ] || $PYTHON - <<'CHECK'
import csv

with open("toy_shop/themes.csv") as file:
    liked = {row["customer"]: {row["first"], row["second"]} for row in csv.DictReader(file)}
with open("toy_shop/recommendations.tsv") as file:
    hits = [row["title"].split()[0] in liked[row["user"]] for row in csv.DictReader(file, delimiter="\t")]
print(f"{sum(hits)} of {len(hits)} recommended items are of the customer's two themes ({sum(hits) / len(hits):.1%})")
CHECK
