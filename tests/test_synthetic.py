"""data/synthetic.py: reproducible files that the loader reads, with the planted structure."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import dataset_of

from data import prepare, synthetic
from data.formats import read_interactions
from data.graphs import nearest_neighbours
from utils import UserError
from world import Config

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--users", "300", "--items", "200"]
FILES = {
    "train.txt",
    "valid.txt",
    "test.txt",
    "text_feat.npy",
    "image_feat.npy",
    "item_ids.tsv",
    "user_ids.tsv",
    synthetic.MARK,
}


def make(root, *flags, name="toy"):
    """Run the tool in process with a small size. Returns the dataset folder."""
    assert synthetic.main([name, "--data_root", str(root), *SMALL, *flags]) == 0
    return Path(root) / name


@pytest.fixture(scope="module")
def full():
    """The default dataset, as arrays."""
    return synthetic.make_dataset(users=4000, items=2500, interactions_per_user=6.0, seed=3)


def share_users(dataset):
    """[items, items] bool: whether two different items have a user in common, over all splits."""
    n = len(dataset["topic"])
    user_item = np.zeros((len(dataset["splits"]["train"]), n), np.float32)
    for rows in dataset["splits"].values():
        for user, items in enumerate(rows):
            user_item[user, items] = 1
    shared = user_item.T @ user_item > 0
    np.fill_diagonal(shared, False)
    return shared


def share_of_neighbours(shared, features):
    """Fraction of the pairs (item, one of its 10 feature neighbours) that have a user in common."""
    neighbours = nearest_neighbours(features, 10, torch.device("cpu"))
    return np.take_along_axis(shared, neighbours, axis=1).mean()


def test_same_seed_same_files(tmp_path):
    first, again, other = (
        make(tmp_path / d, "--seed", seed) for d, seed in (("a", "7"), ("b", "7"), ("c", "8"))
    )
    assert {path.name for path in first.iterdir()} == FILES
    for name in FILES:
        assert (first / name).read_bytes() == (again / name).read_bytes()
    for name in ("train.txt", "text_feat.npy", "image_feat.npy"):
        assert (first / name).read_bytes() != (other / name).read_bytes()


def test_an_own_folder_is_replaced(tmp_path):
    before = (make(tmp_path, "--seed", "1") / "train.txt").read_bytes()
    assert (make(tmp_path, "--seed", "2") / "train.txt").read_bytes() != before


def test_what_was_made_of_an_older_dataset_is_removed(tmp_path):
    folder = make(tmp_path, "--seed", "1")
    others = ("toy.inter", "audio_feat.npy", "user_text_feat.npy", "features.json", "item_text.jsonl")
    for name in (*others, "user_profiles.jsonl", "user_prompts.jsonl", "notes.md"):
        (folder / name).write_text("old")
    assert make(tmp_path, "--seed", "2") == folder
    assert {path.name for path in folder.iterdir()} == FILES | {"notes.md"}


def test_a_folder_whose_replacement_was_interrupted_is_no_dataset_until_it_is_made_again(
    tmp_path, monkeypatch
):
    folder, expected = make(tmp_path, "--seed", "1"), make(tmp_path / "other", "--seed", "2")
    assert prepare.main(["toy", "--data_root", str(tmp_path), "--convert", "inter"]) == 0
    (folder / ".notes.tmp").write_text("mine")
    for failing in ("write_text", "atomic_write"):
        with monkeypatch.context() as patch:
            patch.setattr(synthetic, failing, interrupt)
            assert synthetic.main(["toy", "--data_root", str(tmp_path), *SMALL, "--seed", "2"]) == 130
        with pytest.raises(UserError, match="neither train"):
            read_interactions(folder)
    make(tmp_path, "--seed", "2")
    assert {path.name for path in folder.iterdir()} == FILES | {".notes.tmp"}
    assert all((folder / name).read_bytes() == (expected / name).read_bytes() for name in FILES)


def interrupt(*_):
    raise KeyboardInterrupt


def test_loader_reads_it(tmp_path):
    folder = make(tmp_path)
    data = read_interactions(folder, min_items=200)
    assert (data.n_users, data.n_items) == (300, 200)
    assert not any(data.merged.values())
    config = Config(dataset="toy", data_root=str(tmp_path), model="lgn_mm", item_knn_k=5)
    dataset = dataset_of(config)
    assert {m: tuple(x.shape) for m, x in dataset.features.items()} == {
        "text": (200, 96),
        "image": (200, 128),
    }
    for name, rows in (("user_ids.tsv", 300), ("item_ids.tsv", 200)):
        ids = [line.split("\t") for line in (folder / name).read_text().splitlines()]
        assert [int(row[0]) for row in ids] == list(range(rows))
        assert len({row[1] for row in ids}) == rows


def test_splits_are_disjoint_and_hold_every_user(full):
    splits = full["splits"]
    for train, valid, test in zip(splits["train"], splits["valid"], splits["test"]):
        assert min(len(train), len(valid), len(test)) >= 1
        everything = np.concatenate([train, valid, test])
        assert len(np.unique(everything)) == len(everything)


def test_split_is_8_1_1():
    """Long histories are split 8:1:1; short ones have one item in valid and one in test."""
    splits = synthetic.split_items([np.arange(30), np.arange(3)])
    assert [[len(row) for row in splits[split]] for split in ("train", "valid", "test")] == [
        [24, 1],
        [3, 1],
        [3, 1],
    ]


def test_interactions_are_sparse_with_a_long_tail(full):
    degree = np.bincount(np.concatenate(full["splits"]["train"]), minlength=2500)
    assert 3 < degree.sum() / 4000 < 5
    assert np.median(degree) <= 5 and degree.max() > 8 * np.median(degree) and (degree == 0).any()


@pytest.mark.parametrize("modality, min_ratio", [("text", 5), ("image", 1.5)])
def test_feature_neighbours_share_users(full, modality, min_ratio):
    """Neighbours by features share users far more often than chance; with permuted rows they do not."""
    shared, features = share_users(full), full["features"][modality]
    chance = shared.sum() / (len(shared) * (len(shared) - 1))
    shuffled = features[np.random.default_rng(0).permutation(len(features))]
    assert share_of_neighbours(shared, features) > min_ratio * chance
    assert 0.8 * chance < share_of_neighbours(shared, shuffled) < 1.25 * chance


def test_choices_follow_popularity_and_preference():
    """Item frequencies agree with sequential draws without replacement by NumPy (4 standard errors)."""
    rng, n = np.random.default_rng(0), 4000
    factors, popularity = rng.standard_normal((9, 2)), rng.standard_normal(9)
    preference = np.array([[1.0, 0.0]])
    rows = synthetic.draw_interactions(rng, np.repeat(preference, n, 0), factors, popularity, 1.5, 3)
    assert all(len(np.unique(row)) == len(row) == 3 for row in rows)
    probability = np.exp(1.5 * factors @ preference[0] + popularity)
    probability /= probability.sum()
    naive = [rng.choice(9, 3, replace=False, p=probability) for _ in range(n)]
    drawn, expected = (np.bincount(np.concatenate(x), minlength=9) / n for x in (rows, naive))
    assert (abs(drawn - expected) < 4 * np.sqrt(2 * np.maximum(expected * (1 - expected), 1e-3) / n)).all()


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "NAME"),
        (["toy", "--users", "0"], "--users 0"),
        (["toy", "--items", "29"], "--items 29"),
        (["toy", "--items", "many"], "--items"),
        (["toy", "--interactions-per-user", "2"], "--interactions-per-user"),
        (["toy", "--interactions-per-user", "nan"], "--interactions-per-user"),
        (["toy", "--items", "60", "--interactions-per-user", "11"], "sixth"),
        (["toy", "--seed", "-1"], "--seed -1"),
        (["toy", "--users", "1000000"], "10^8"),
        (["../toy"], "folder name"),
        (["toy", "--nonsense"], "--nonsense"),
    ],
)
def test_bad_arguments_end_in_one_line(flags, message, tmp_path, capsys):
    assert synthetic.main([*flags, "--data_root", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: ") and message in err
    assert not any(tmp_path.iterdir())


def test_a_folder_of_another_origin_is_not_changed(tmp_path, capsys):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "train.txt").write_text("0 1 2\n")
    assert synthetic.main(["real", "--data_root", str(tmp_path), *SMALL]) == 2
    assert "not made by this tool" in capsys.readouterr().err
    assert (tmp_path / "real" / "train.txt").read_text() == "0 1 2\n"


def test_make_dataset_raises_for_callers():
    with pytest.raises(UserError, match="--items"):
        synthetic.make_dataset(users=10, items=5, interactions_per_user=4, seed=0)


def test_as_a_command(tmp_path):
    """python -m data.synthetic prints one line."""
    command = [sys.executable, "-m", "data.synthetic", "toy", "--data_root", str(tmp_path), *SMALL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "300 users, 200 items" in done.stdout and done.stdout.count("\n") == 1
