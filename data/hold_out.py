"""A validation split for data that have train.txt and test.txt alone, as those of LightGCN-PyTorch.

split_train(Path("data/gowalla"), Path("downloads/gowalla"), share=0.1, seed=2025)
"""

from pathlib import Path

import numpy as np
import pandas as pd

from data.formats import SPLITS, count_ids, join_splits, read_txt
from data.raw import Inputs, hash_input
from data.splits import TEST, TRAIN, VALID, rank_per_user
from data.writers import new_folder, write_txt
from utils import write_json


def split_train(folder: Path, source: Path, share: float, seed: int) -> str:
    """Make a dataset folder from source/train.txt and source/test.txt, in which part of train is valid.

    share: of each user's train items that go to valid, drawn at random; their number is rounded down. Ids
    stay as they are. Returns what was made, in a line. Raises UserError for input that the trainer would
    refuse, for a share that leaves valid empty, and if `folder` exists.
    """
    inputs: Inputs = {}
    parts = []
    for name in ("train", "test"):
        path = source / f"{name}.txt"
        # A pair that is repeated in train must not come to both train and valid.
        parts.append(read_txt(path).drop_duplicates(["user", "item"]))
        hash_input(path, inputs)
    n_train = len(parts[0])
    table = pd.concat(parts, ignore_index=True)
    for column in ("user", "item"):
        count_ids(table, column, 0)  # refuses ids that are far too large
    user, item = table["user"].to_numpy(), table["item"].to_numpy()
    rank, n = rank_per_user(user[:n_train], np.random.default_rng(seed).permutation(n_train))
    label = np.full(len(table), TEST)
    label[:n_train] = np.where(rank < (share * n).astype(int), VALID, TRAIN)
    # Raises an error for anything that the trainer would refuse.
    made = join_splits({name: table[label == code] for code, name in enumerate(SPLITS)}, str(source), 0, 0)
    with new_folder(folder) as work:
        write_txt(work, user, item, label, made.n_users)
        files = [{"file": Path(path).name, **facts} for path, facts in inputs.items()]
        write_json(work / "prepare.json", {"settings": {"valid_share": share, "seed": seed}, "inputs": files})
    sizes = " / ".join(f"{len(part):,}" for part in (made.train, made.valid, made.test))
    return f"{folder}: {sizes} interactions (train / valid / test)"
