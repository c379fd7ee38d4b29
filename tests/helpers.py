"""Shared by the tests: dataset folders, random data, naive nearest neighbours, events during a training."""

import math

import numpy as np
import torch

from dataloader import Sampler, load_dataset
from models.registry import find_model

SPLITS = ("train", "valid", "test")


def random_pairs(seed, n_users, n_items, per_user):
    """{split: [n, 2] int64}, disjoint: per_user train items a user, then one valid and one test item.

    The last user has no train item but one in valid and in test; the last item occurs nowhere.
    """
    rng = np.random.default_rng(seed)
    pairs = {split: [] for split in SPLITS}
    for user in range(n_users):
        items = rng.permutation(n_items - 1)[: per_user + 2]
        if user < n_users - 1:
            pairs["train"] += [(user, item) for item in items[2:]]
        pairs["valid"].append((user, items[0]))
        pairs["test"].append((user, items[1]))
    return {split: np.array(rows, dtype=np.int64) for split, rows in pairs.items()}


def pair_set(pairs):
    """Return [n, 2] pairs as a set of tuples of int."""
    return {(int(user), int(item)) for user, item in pairs}


def random_features(n, dim, seed=0):
    """Return normally distributed features [n, dim] float32."""
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def naive_neighbours(features, k):
    """Return the k nearest rows by cosine, by loops in float64.

    A row of zeros is no neighbour of any row. Rows with fewer than k neighbours are padded with themselves.
    """
    x = features.astype(np.float64)
    norm = [math.sqrt(sum(value**2 for value in row)) for row in x.tolist()]
    result = []
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i and norm[j] > 0 and norm[i] > 0]
        cosine = {j: float(np.dot(x[i], x[j])) / norm[i] / norm[j] for j in others}
        best = sorted(others, key=lambda j: -cosine[j])[:k]
        result.append(best + [i] * (k - len(best)))
    return np.array(result)


def write_txt(folder, train, valid, test):
    """train.txt, valid.txt, test.txt with 'user item item ...' lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, pairs in zip(SPLITS, (train, valid, test)):
        items = {}
        for user, item in pairs:
            items.setdefault(int(user), []).append(str(int(item)))
        (folder / f"{split}.txt").write_text(
            "".join(f"{user} {' '.join(row)}\n" for user, row in items.items())
        )


def write_inter(folder, train, valid, test, ratings=None):
    """<folder name>.inter; ratings: one a row of train, valid and test in this order."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = np.concatenate([np.asarray(split).reshape(-1, 2) for split in (train, valid, test)])
    labels = np.repeat([0, 1, 2], [len(train), len(valid), len(test)])
    columns = {"userID": pairs[:, 0], "itemID": pairs[:, 1]}
    if ratings is not None:
        columns["rating"] = ratings
    columns["x_label"] = labels
    lines = ["\t".join(columns)] + ["\t".join(map(str, row)) for row in zip(*columns.values())]
    (folder / f"{folder.name}.inter").write_text("\n".join(lines) + "\n")


def stop_after(monkeypatch, steps, happening):
    """Let something happen in the n-th training step from now on."""
    calls, original = [], Sampler.epoch

    def epoch(self, skip=0):
        for batch in original(self, skip):
            calls.append(1)
            if len(calls) == steps:
                happening()
            yield batch

    monkeypatch.setattr(Sampler, "epoch", epoch)


def dataset_of(config):
    """The dataset that the model of a config needs."""
    return load_dataset(config, find_model(config.model).data_needs(config), torch.device("cpu"))


def write_small_dataset(root):
    """Write the dataset of the fixture small_dataset to <root>/data/small. Returns this folder."""
    folder = root / "data" / "small"
    write_txt(folder, **random_pairs(0, 40, 30, 6))
    rng = np.random.default_rng(1)
    np.save(folder / "text_feat.npy", rng.standard_normal((30, 12)).astype(np.float32))
    np.save(folder / "image_feat.npy", rng.standard_normal((30, 20)).astype(np.float16))
    return folder
