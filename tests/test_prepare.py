"""data/prepare.py: splits and k-core against naive loops, input formats, hostile and broken files, kills."""

import csv
import gzip
import hashlib
import json
import multiprocessing
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data import prepare, raw, splits
from data.formats import SPLITS, read_interactions
from data.interaction_log import InteractionLog, k_core
from utils import UserError, lock_file


def run(root, *flags, name="toy"):
    """Run the tool in process. Returns the dataset folder."""
    assert prepare.main([name, "--data_root", str(root), *map(str, flags)]) == 0
    return Path(root) / name


def refused(capsys, root, *flags):
    """The one error line of a command that exits with 2 and leaves nothing behind."""
    assert prepare.main(["toy", "--data_root", str(root / "out"), *map(str, flags)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: "), err
    assert not (root / "out").exists() or not any((root / "out").iterdir())
    return err


def events(seed=0, users=30, items=20, count=400):
    """[(user, item, rating, time)] with repeated pairs and equal times, in random order."""
    draw = random.Random(seed)
    return [
        (
            f"ü{draw.randrange(users):03}",
            f"item {draw.randrange(items)}",
            float(draw.randint(1, 5)),
            10**9 + 1000 * draw.randrange(200),
        )
        for _ in range(count)
    ]


def write_bytes(path, content):
    """Write a file, compressed if its name ends in .gz."""
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_csv(path, rows, header=("user", "item", "rating", "timestamp"), sep=","):
    """A table with a header; path may end in .gz."""
    text = "".join(sep.join(map(str, row)) + "\n" for row in ([header] if header else []) + list(rows))
    write_bytes(path, text.encode())
    return path


def contents(folder):
    """{file name: bytes} of all files except prepare.json."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != prepare.MARK}


def log_of(rows):
    """InteractionLog of (user, item[, time]) rows with ids from 0."""
    user, item = (np.array([row[column] for row in rows]) for column in (0, 1))
    time = np.array([row[2] for row in rows], float) if len(rows[0]) > 2 else None
    return InteractionLog(user, item, None, time, list(range(user.max() + 1)), list(range(item.max() + 1)))


# ---------------------------------------------------------------- the published split


def tsv_rows(path):
    """Rows of a tab-separated file with a header, without the header."""
    with open(path) as file:
        return list(csv.reader(file, delimiter="\t"))[1:]


def internal_ids(baby, kind):
    """{original id: internal id} of Baby's users (kind "u") or items ("i")."""
    return {original: int(row) for original, row in tsv_rows(baby / f"{kind}_id_mapping.csv")}


def baby_rows(baby):
    """(user, item) pairs of Baby with their original ids, shuffled."""
    users, items = ({row: name for name, row in internal_ids(baby, kind).items()} for kind in "ui")
    rows = [(users[int(row[0])], items[int(row[1])]) for row in tsv_rows(baby / "baby.inter")]
    random.Random(3).shuffle(rows)
    return rows


def test_baby_has_the_published_counts(baby, tmp_path, capsys):
    """The 5-core keeps everything, and every user has as many items in each split as published.

    The input has the original ids in random order.
    """
    table = write_csv(tmp_path / "baby.csv", baby_rows(baby), ("user", "item"))
    folder = run(
        tmp_path,
        "--interactions",
        table,
        "--text_feat",
        f"{baby}/text_feat_recon_d128.npy={baby}/i_id_mapping.csv",
    )
    ours, published = read_interactions(folder), read_interactions(baby, "txt")
    assert (ours.n_users, ours.n_items) == (19445, 7050)
    assert [len(getattr(ours, split)) for split in SPLITS] == [118551, 20559, 21682]
    number = internal_ids(baby, "u")
    theirs = [number[line.split("\t")[1]] for line in (folder / "user_ids.tsv").read_text().splitlines()]
    for split in SPLITS:
        counts, expected = (
            np.bincount(getattr(data, split)[:, 0], minlength=19445) for data in (ours, published)
        )
        assert (counts == expected[theirs]).all()
    item = dict(line.split("\t") for line in (folder / "item_ids.tsv").read_text().splitlines())
    features, original = np.load(folder / "text_feat.npy"), np.load(baby / "text_feat_recon_d128.npy")
    row = internal_ids(baby, "i")
    assert (features == original[[row[item[str(code)]] for code in range(7050)]]).all()


def test_baby_converts_there_and_back(baby, tmp_path):
    """txt -> inter -> txt gives the published files byte for byte."""
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    for split in SPLITS:
        (first / f"{split}.txt").write_bytes((baby / f"{split}.txt").read_bytes())
    assert prepare.main(["a", "--data_root", str(tmp_path), "--convert", "inter"]) == 0
    (second / "b.inter").write_bytes((first / "a.inter").read_bytes())
    assert prepare.main(["b", "--data_root", str(tmp_path), "--convert", "txt"]) == 0
    for split in SPLITS:
        assert (second / f"{split}.txt").read_bytes() == (baby / f"{split}.txt").read_bytes()


# ---------------------------------------------------------------- train.txt and test.txt alone


def folder_without_valid(folder, train, test):
    """The lines "user item item ..." of two splits as a folder of LightGCN-PyTorch."""
    folder.mkdir()
    (folder / "train.txt").write_text(train)
    (folder / "test.txt").write_text(test)
    return folder


def test_train_and_test_alone_get_a_valid_split(tmp_path, capsys):
    rng = random.Random(0)
    rows = {user: rng.sample(range(60), rng.randint(1, 45)) for user in range(40)}
    held = {user: [items.pop() for _ in range(len(items) // 9)] for user, items in rows.items()}
    train = "".join(f"{user} {' '.join(map(str, items + items[:1]))}\n" for user, items in rows.items())
    test = "".join(f"{user} {' '.join(map(str, items))}\n" for user, items in held.items())
    source = folder_without_valid(tmp_path / "source", train, test)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    folder = run(tmp_path, "--train_test", source, "--valid_share", "0.2", "--seed", "3")
    data = read_interactions(folder)
    for user, items in rows.items():
        kept, moved = (set(part[part[:, 0] == user][:, 1]) for part in (data.train, data.valid))
        assert kept | moved == set(items) and len(moved) == len(items) // 5 and not kept & moved
        assert set(data.test[data.test[:, 0] == user][:, 1]) == set(held[user])
    assert f"{len(data.train):,} / {len(data.valid):,} / {len(data.test):,}" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    again = run(tmp_path, "--train_test", source, "--valid_share", "0.2", "--seed", "3", name="again")
    other = run(tmp_path, "--train_test", source, "--valid_share", "0.2", "--seed", "4", name="other")
    assert (again / "valid.txt").read_bytes() == (folder / "valid.txt").read_bytes()
    assert (other / "valid.txt").read_bytes() != (folder / "valid.txt").read_bytes()


@pytest.mark.parametrize(
    "train, test, flags, message",
    [
        ("0 1 2\n", "0 3\n", [], "the valid split is empty"),
        (
            "0 1 2\n",
            "0 2\n",
            ["--valid_share", "0.5"],
            "test.txt, line 1: user 0 and item 2 are in an earlier",
        ),
        (
            "0 1 2\n9999999999 1 2\n",
            "0 3\n",
            ["--valid_share", "0.5"],
            "train.txt, line 2: user id 9999999999",
        ),
        ("0 1 x\n", "0 3\n", [], "train.txt, line 1: 'x'"),
        ("0 1 2\n", "0 3\n", ["--valid_share", "1"], "--valid_share 1.0: must be above 0 and below 1"),
        ("0 1 2\n", "0 3\n", ["--core", "2"], "cannot be combined with --core"),
    ],
)
def test_bad_train_and_test_end_in_one_line(tmp_path, capsys, train, test, flags, message):
    source = folder_without_valid(tmp_path / "source", train, test)
    assert message in refused(capsys, tmp_path, "--train_test", source, *flags)


def test_a_missing_valid_split_names_the_command_that_makes_one(tmp_path):
    source = folder_without_valid(tmp_path / "source", "0 1 2\n", "0 3\n")
    with pytest.raises(UserError, match=f"data.prepare NEW_NAME --train_test {source}"):
        read_interactions(source)


# ---------------------------------------------------------------- k-core, numbering, splits


@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_k_core_equals_a_naive_loop(k):
    rows = [(u, i) for u, i, *_ in events(k, 40, 40, 200)]
    left = set(rows)
    while True:
        users, items = Counter(u for u, _ in left), Counter(i for _, i in left)
        kept = {(u, i) for u, i in left if users[u] >= k and items[i] >= k}
        if kept == left:
            break
        left = kept
    unique = list(dict.fromkeys(rows))
    codes = [pd.factorize(pd.Series(column))[0] for column in zip(*unique)]
    keep = k_core(*codes, k)
    assert {row for row, kept in zip(unique, keep) if kept} == left
    assert k < 6 or 0 < len(left) < len(unique) or not left


def test_ids_are_numbered_by_first_appearance_after_the_filter(tmp_path):
    """Dropped users and items get no number; the others are numbered in the order of the file."""
    rows = [("dropped", "rare"), *[(u, i) for u in ("z", "a", "m") for i in ("i9", "i1", "i5")]]
    folder = run(
        tmp_path, "--interactions", write_csv(tmp_path / "t.csv", rows, ("user", "item")), "--core", 3
    )
    assert (folder / "user_ids.tsv").read_text() == "0\tz\n1\ta\n2\tm\n"
    assert (folder / "item_ids.tsv").read_text() == "0\ti9\n1\ti1\n2\ti5\n"


def test_repeated_pairs_keep_the_earliest(tmp_path, capsys):
    """With times the earliest of a pair is kept, without times the first in the file; a note counts them."""
    rows = [(u, i, 5, 100 + n) for n, (u, i) in enumerate((u, i) for u in "abc" for i in "xyz")]
    table = write_csv(tmp_path / "t.csv", [*rows, ("a", "x", 1, 7), ("a", "y", 2, 900)])
    folder = run(tmp_path, "--interactions", table, "--core", 1)
    table = pd.read_csv(folder / "toy.inter", sep="\t").set_index(["userID", "itemID"])
    assert len(table) == 9 and table.loc[(0, 1), "rating"] == 5
    assert tuple(table.loc[(0, 0), ["rating", "timestamp"]]) == (1, 7)
    assert "2 repeated (user, item) pairs left out" in capsys.readouterr().out
    untimed = run(
        tmp_path, "--interactions", tmp_path / "t.csv", "--core", 1, "--time_column", "", name="untimed"
    )
    table = pd.read_csv(untimed / "untimed.inter", sep="\t").set_index(["userID", "itemID"])
    assert "timestamp" not in table and table.loc[(0, 0), "rating"] == 5


def test_mmrec_rule_for_every_length():
    """n < 10: n - 2 / 1 / 1 per user; else floor(0.2 n) are held out, floor(half) of them for valid."""
    rows = [(user, item) for user in range(60) for item in range(user + 1)]
    label = splits.split(log_of(rows), "mmrec", None, 0)
    for user in range(60):
        n, got = user + 1, Counter(label[[u == user for u, _ in rows]].tolist())
        held = int(0.2 * n)
        expected = (
            (n, 0, 0) if n < 3 else (n - 2, 1, 1) if n < 10 else (n - held, held // 2, held - held // 2)
        )
        assert (got[0], got[1], got[2]) == expected


def test_mmrec_draws_held_out_items_uniformly():
    """Over seeds, each item of a user is in test equally often (5 standard errors)."""
    rows = [(0, item) for item in range(8)] + [(1, item) for item in range(8)]
    held = np.mean(
        [splits.split(log_of(rows), "mmrec", None, seed) == splits.TEST for seed in range(2000)], axis=0
    )
    assert (abs(held - 1 / 8) < 5 * np.sqrt(1 / 8 * 7 / 8 / 2000)).all()


def test_leave_one_out_takes_the_last_two():
    rows = [
        (0, 0, 5.0),
        (0, 1, 9.0),
        (0, 2, 7.0),
        (1, 0, 1.0),
        (1, 1, 2.0),
        (2, 3, 4.0),
        (2, 4, 4.0),
        (2, 5, 4.0),
    ]
    assert splits.split(log_of(rows), "leave_one_out", None, 0).tolist() == [0, 2, 1, 0, 0, 0, 1, 2]
    untimed = [
        splits.split(log_of([row[:2] for row in rows]), "leave_one_out", None, seed) for seed in range(30)
    ]
    assert {tuple(np.bincount(label, minlength=3)) for label in untimed} == {(4, 2, 2)}
    assert len({tuple(label) for label in untimed}) > 10


def test_temporal_has_the_same_cuts_for_all_users(tmp_path, capsys):
    """Train is before valid and valid before test; equal times stay together; cold users are counted."""
    folder = run(
        tmp_path,
        "--interactions",
        write_csv(tmp_path / "t.csv", events()),
        "--core",
        2,
        "--split",
        "temporal",
        "--test_share",
        0.2,
    )
    table = pd.read_csv(folder / "toy.inter", sep="\t")
    times = [table.timestamp[table.x_label == k] for k in range(3)]
    assert times[0].max() < times[1].min() and times[1].max() < times[2].min()
    assert abs((table.x_label == 2).mean() - 0.2) < 0.02 and abs((table.x_label == 1).mean() - 0.1) < 0.02
    out, train = capsys.readouterr().out, table[table.x_label == 0]
    cold = {k: len(set(table.userID[table.x_label == k]) - set(train.userID)) for k in (1, 2)}
    for k, name in ((1, "valid"), (2, "test")):
        rows = json.loads((folder / prepare.MARK).read_text())["counts"]
        assert next(row for row in rows if row[""] == name)["cold users"] == cold[k]
    assert "valid from 2001-09-" in out


def test_temporal_with_a_tiny_share_holds_out_the_last_time(tmp_path):
    table = write_csv(tmp_path / "t.csv", events())
    shares = ["--split", "temporal", "--test_share", "1e-17"]
    table = pd.read_csv(run(tmp_path, "--interactions", table, *shares) / "toy.inter", sep="\t")
    assert set(table.timestamp[table.x_label == 2]) == {table.timestamp.max()}


def test_temporal_reads_dates(tmp_path):
    """ISO 8601 dates are ordered as times, including time zones."""
    rows = [
        ("a", "x", "2024-01-01"),
        ("a", "y", "2024-01-01T12:00:00+02:00"),
        ("b", "x", "2024-01-01T11:00:00Z"),
        ("b", "y", "2024-01-02"),
        ("a", "z", "2024-01-05"),
        ("b", "z", "2023-12-31"),
    ]
    folder = run(
        tmp_path,
        "--interactions",
        write_csv(tmp_path / "t.csv", rows, ("user", "item", "timestamp")),
        "--core",
        1,
        "--split",
        "temporal",
        "--valid_share",
        0.25,
        "--test_share",
        0.25,
    )
    table = pd.read_csv(folder / "toy.inter", sep="\t").set_index(["userID", "itemID"]).x_label
    pairs = ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (1, 2))
    assert [int(table[pair]) for pair in pairs] == [0, 0, 1, 2, 2, 0]


def test_random_has_exact_shares():
    rows = sorted({(u, i) for u in range(30) for i in range(30)})
    label = splits.split(log_of(rows), "random", (0.1, 0.2), 5)
    assert np.bincount(label).tolist() == [630, 90, 180]
    assert (label == splits.split(log_of(rows), "random", (0.1, 0.2), 5)).all()
    assert (label != splits.split(log_of(rows), "random", (0.1, 0.2), 6)).any()


def test_cold_holds_items_out_entirely_and_splits_the_rest():
    rows = sorted({(u, i) for u in range(30) for i in range(40)})
    log = log_of(rows)
    label = splits.split(log, "cold", (0.1, 0.2, 0.3), 5)
    labels = [set(label[log.item == item].tolist()) for item in range(40)]
    assert (labels.count({1}), labels.count({2}), labels.count({0, 1, 2})) == (6, 6, 28)
    warm = np.isin(log.item, [item for item in range(40) if len(labels[item]) == 3])
    assert np.bincount(label[warm]).tolist() == [588, 84, 168]
    other = splits.split(log, "cold", (0.1, 0.2, 0.3), 6)
    assert (label == splits.split(log, "cold", (0.1, 0.2, 0.3), 5)).all() and (label != other).any()


def test_a_dataset_of_the_cold_split_says_which_items_are_cold(tmp_path, capsys):
    rows = sorted({(u, i) for u in range(20) for i in range(20)})
    table = write_csv(tmp_path / "t.csv", [(f"u{u}", f"i{i}") for u, i in rows], ("user", "item"))
    flags = ("--interactions", table, "--split", "cold", "--cold_share", 0.25)
    folder = run(tmp_path, *flags)
    data = read_interactions(folder)
    cold = set(data.cold_items.tolist())
    assert len(cold) == 5 and not cold & set(data.train[:, 1].tolist())
    assert json.loads((folder / "prepare.json").read_text())["settings"]["cold_share"] == 0.25
    assert "items have no train interaction" in capsys.readouterr().out


@pytest.mark.parametrize("rule", splits.RULES)
def test_every_pair_is_in_one_split_determined_by_the_seed(rule, tmp_path):
    table = write_csv(tmp_path / "t.csv", events())
    first, again, other = (
        run(tmp_path / d, "--interactions", table, "--split", rule, "--seed", seed)
        for d, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    data = read_interactions(first)
    pairs = {(u, i) for split in SPLITS for u, i in getattr(data, split).tolist()}
    assert len(pairs) == sum(len(getattr(data, split)) for split in SPLITS)
    assert len(pairs) == len({row[:2] for row in events()})
    assert contents(first) == contents(again)
    assert (contents(first) == contents(other)) == (rule in ("leave_one_out", "temporal"))


# ---------------------------------------------------------------- formats


def written_as(kind, path, rows):
    """Write the same interactions in one of the formats. Returns (file, flags)."""
    frame = pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])
    amazon = [
        {"reviewerID": u, "asin": i, "reviewText": "it's\n", "overall": r, "unixReviewTime": t}
        for u, i, r, t in rows
    ]
    if kind == "ratings":
        return write_csv(path / "ratings_Toy.csv", rows, None), []
    if kind == "columns":
        return write_csv(path / "t.tsv.gz", [(t, i, u) for u, i, r, t in rows], None, "\t"), [
            "--columns",
            "timestamp,item,user",
            "--rating_column",
            "",
        ]
    if kind == "named":
        return write_csv(path / "t.csv.gz", rows, ("who", "what", "rating", "when")), [
            "--user_column",
            "who",
            "--item_column",
            "what",
            "--time_column",
            "when",
        ]
    if kind == "parquet":
        pytest.importorskip("pyarrow", reason="pip install -c constraints.txt -e '.[features]'")
        frame.assign(
            timestamp=pd.to_datetime(frame.timestamp, unit="s", utc=True), list=[[1]] * len(frame)
        ).to_parquet(path / "t.parquet")
        return path / "t.parquet", []
    if kind == "reviews":
        (path / "reviews_Toy_5.json.gz").write_bytes(
            gzip.compress("\n".join(map(json.dumps, amazon)).encode())
        )
        return path / "reviews_Toy_5.json.gz", []
    if kind == "literals":
        (path / "t.json").write_text("\n".join(map(repr, amazon)))
        return path / "t.json", []
    return write_csv(path / "t.tsv", rows, sep="\t"), []


@pytest.mark.parametrize("kind", ["ratings", "columns", "named", "parquet", "reviews", "literals", "tsv"])
def test_every_format_gives_the_same_folder(kind, tmp_path):
    rows = events()
    expected = run(tmp_path / "csv", "--interactions", write_csv(tmp_path / "t.csv", rows), "--core", 3)
    path, flags = written_as(kind, tmp_path, rows)
    got = contents(run(tmp_path / kind, "--interactions", path, "--core", 3, *flags))
    want = contents(expected)
    # This table has no ratings.
    if kind == "columns":
        table = pd.read_csv(expected / "toy.inter", sep="\t").drop(columns="rating")
        want["toy.inter"] = table.to_csv(sep="\t", index=False).encode()
    assert got == want


@pytest.mark.parametrize("name", ["ratings_mine.csv", "ratings_mine.csv.gz"])
def test_a_header_in_a_file_named_as_amazons_is_read(name, tmp_path):
    rows, header = events(), ("item", "user", "timestamp", "rating")
    swapped = [(i, u, t, r) for u, i, r, t in rows]
    expected = run(tmp_path / "a", "--interactions", write_csv(tmp_path / "t.csv", rows), "--core", 2)
    mine = write_csv(tmp_path / name, swapped, header)
    assert (run(tmp_path / "b", "--interactions", mine, "--core", 2) / "toy.inter").read_bytes() == (
        expected / "toy.inter"
    ).read_bytes()


def test_the_chunk_size_does_not_matter(tmp_path, monkeypatch):
    table = write_csv(tmp_path / "t.csv", events())
    whole = run(tmp_path / "a", "--interactions", table)
    monkeypatch.setattr(raw, "CHUNK", 7)
    assert contents(run(tmp_path / "b", "--interactions", table)) == contents(whole)


def test_txt_and_inter_hold_the_same_interactions(tmp_path):
    table = write_csv(tmp_path / "t.csv", events())
    one, two = (
        read_interactions(run(tmp_path / form, "--interactions", table, "--format", form))
        for form in ("inter", "txt")
    )
    for split in SPLITS:
        assert (getattr(one, split) == getattr(two, split)).all()
    assert one.train_rating is not None


def test_ids_are_kept_verbatim(tmp_path):
    """Leading zeros, quotes, non-ASCII letters and JSON numbers are kept."""
    names = ["007", "7", 'a "quoted", one', "NA", "猫"]
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"user": u, "item": i}) + "\n" for u in names for i in (1, 2, 3))
    )
    folder = run(tmp_path, "--interactions", tmp_path / "t.jsonl", "--core", 1)
    assert (folder / "user_ids.tsv").read_text(encoding="utf-8").splitlines() == [
        f"{code}\t{name}" for code, name in enumerate(names)
    ]
    frame = pd.DataFrame([(u, i) for u in names for i in (1, 2, 3)], columns=["user", "item"])
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert contents(run(tmp_path / "csv", "--interactions", tmp_path / "t.csv", "--core", 1)) == contents(
        folder
    )


def test_inputs_are_recorded_with_their_checksums(tmp_path):
    table = write_csv(tmp_path / "t.csv.gz", events())
    facts = json.loads((run(tmp_path, "--interactions", table) / prepare.MARK).read_text())
    assert facts["inputs"] == [
        {
            "file": "t.csv.gz",
            "bytes": table.stat().st_size,
            "sha256": hashlib.sha256(table.read_bytes()).hexdigest(),
        }
    ]


# ---------------------------------------------------------------- texts and features

META = [
    {
        "asin": "item 1",
        "title": "A &amp; B",
        "price": 1.5,
        "related": {"also_bought": ["item 2"]},
        "categories": [["Baby", "Toys"], ["Gifts"]],
        "description": "two\n lines, it's",
    },
    {"asin": "item 2", "brand": "Basin", "title": 'says "asin": "item 3"'},
    {"asin": "nobody", "title": "not in the data"},
    {"asin": "item 1", "title": "a second record"},
    {"description": "the id comes last", "asin": "item 5"},
]


@pytest.mark.parametrize("write", [repr, json.dumps])
def test_item_texts(write, tmp_path):
    """Python literals and JSON, nested categories, entities, repeated and foreign ids."""
    (tmp_path / "meta_Toy.json.gz").write_bytes(gzip.compress("\n".join(map(write, META)).encode()))
    folder = run(
        tmp_path,
        "--interactions",
        write_csv(tmp_path / "t.csv", events()),
        "--core",
        1,
        "--meta",
        tmp_path / "meta_Toy.json.gz",
    )
    rows = [json.loads(line) for line in (folder / "item_text.jsonl").read_text().splitlines()]
    names = [line.split("\t")[1] for line in (folder / "item_ids.tsv").read_text().splitlines()]
    assert [(row["item"], row["id"]) for row in rows] == list(enumerate(names))
    text = {
        row["id"]: {key: row[key] for key in ("title", "brand", "categories", "description")} for row in rows
    }
    assert text["item 1"] == {
        "title": "A & B",
        "brand": "",
        "categories": "Baby, Toys, Gifts",
        "description": "two lines, it's",
    }
    assert text["item 2"] == {
        "title": 'says "asin": "item 3"',
        "brand": "Basin",
        "categories": "",
        "description": "",
    }
    assert set(text["item 3"].values()) == {""} and text["item 5"]["description"] == "the id comes last"
    assert json.loads((folder / prepare.MARK).read_text())["item_text.jsonl"] == {
        "found": 3,
        "missing": len(names) - 3,
        "title": 2,
        "brand": 1,
        "categories": 1,
        "description": 2,
    }


def test_item_texts_from_a_table(tmp_path):
    table = write_csv(
        tmp_path / "meta.csv", [("item 4", '"A, ""big"" one"', "sofa")], ("item", "title", "category")
    )
    folder = run(
        tmp_path, "--interactions", write_csv(tmp_path / "t.csv", events()), "--core", 1, "--meta", table
    )
    rows = map(json.loads, (folder / "item_text.jsonl").read_text().splitlines())
    row = next(row for row in rows if row["id"] == "item 4")
    assert (row["title"], row["categories"], row["description"]) == ('A, "big" one', "sofa", "")


def write_images(path, records):
    """[(id, vector)] as Amazon's image features."""
    block = np.array([(name.encode().ljust(10), vector) for name, vector in records], raw.IMAGE)
    block["id"] = [name.encode() for name, _ in records]
    write_bytes(path, block.tobytes())
    return path


@pytest.mark.parametrize("name", ["image_features_Toy.b", "image_features_Toy.b.gz"])
def test_missing_images_get_the_mean(name, tmp_path, capsys):
    rng, rows = np.random.default_rng(0), [(u, f"B{i:09}") for u in range(5) for i in range(4)]
    vectors = rng.standard_normal((4, 4096)).astype(np.float32)
    broken = vectors[1].copy()
    broken[7] = np.nan
    records = [
        ("B000000002", vectors[2]),
        ("elsewhere", vectors[3]),
        ("B000000001", broken),
        ("B000000000", vectors[0]),
        ("B000000002", vectors[3]),
    ]
    folder = run(
        tmp_path,
        "--interactions",
        write_csv(tmp_path / "t.csv", rows, ("user", "item")),
        "--core",
        1,
        "--image_features",
        write_images(tmp_path / name, records),
    )
    features = np.load(folder / "image_feat.npy")
    mean = (vectors[0] + vectors[2]).astype(np.float64) / 2
    assert features.dtype == np.float32
    assert (features[[0, 2]] == vectors[[0, 2]]).all()
    np.testing.assert_allclose(features[[1, 3]], [mean, mean], rtol=1e-6, atol=1e-7)
    report = capsys.readouterr().out
    assert "image_feat.npy: found 2, missing 2, unfit 1; missing rows have the mean" in report


@pytest.mark.parametrize("layout", ["one a line", "row and id", "id and row with a header", "csv"])
def test_own_features_are_reordered(layout, tmp_path):
    rng, names = np.random.default_rng(1), [f"i{n}" for n in range(8)]
    features = rng.standard_normal((8, 3)).astype(np.float16)
    text, ids = {
        "one a line": (names, "ids.txt"),
        "row and id": ([f"{r}\t{n}" for r, n in reversed(list(enumerate(names)))], "ids.tsv"),
        "id and row with a header": (
            ["asin\titemID", *(f"{n}\t{r}" for r, n in enumerate(names))],
            "map.csv",
        ),
        "csv": (["row,id", *(f"{r},{n}" for r, n in enumerate(names))], "ids.csv"),
    }[layout]
    (tmp_path / ids).write_text("\n".join(text) + "\n")
    np.save(tmp_path / "f.npy", features)
    rows = [(u, i) for u in "abc" for i in ("i5", "i2", "unknown", "i7")]
    folder = run(
        tmp_path,
        "--interactions",
        write_csv(tmp_path / "t.csv", rows, ("user", "item")),
        "--core",
        1,
        "--audio_feat",
        f"{tmp_path}/f.npy={tmp_path}/{ids}",
    )
    got = np.load(folder / "audio_feat.npy")
    assert got.dtype == np.float16 and (got[[0, 1, 3]] == features[[5, 2, 7]]).all()
    np.testing.assert_allclose(got[2], features[[5, 2, 7]].astype(float).mean(axis=0), rtol=2e-3)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_user_features_are_ordered_by_user_ids(encoding, tmp_path):
    np.save(tmp_path / "f.npy", np.eye(3))
    (tmp_path / "ids.txt").write_text("c\na\nb\n", encoding)
    rows = [(u, i) for u in "abc" for i in "xyz"]
    folder = run(
        tmp_path,
        "--interactions",
        write_csv(tmp_path / "t.csv", rows, ("user", "item")),
        "--core",
        1,
        "--user_text_feat",
        f"{tmp_path}/f.npy={tmp_path}/ids.txt",
    )
    assert (np.load(folder / "user_text_feat.npy") == np.eye(3)[[1, 2, 0]]).all()


# ---------------------------------------------------------------- bad input

GOOD = "user,item,rating,timestamp\n" + "".join(
    f"{u},{i},5,{n}\n" for n, (u, i) in enumerate((u, i) for u in "abcd" for i in "wxyz")
)


def dated(*dates):
    """A CSV table with one interaction at each date."""
    return "user,item,timestamp\n" + "".join(f"u{n},i,{date}\n" for n, date in enumerate(dates))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("t.csv", GOOD + ",x,5,1\n", "line 18: user '' is empty"),
        ("t.csv", GOOD + 'a,"x\ty",5,1\n', "line 18: item 'x\\ty' contains a tab"),
        ("t.csv", GOOD + "a,x\u2028y,5,1\n", "line 18: item"),
        ("t.csv", GOOD + "a,i0\x92,5,1\na,i0\x93,5,1\n", "line 18: item"),
        ("t.jsonl", '{"user": "a", "item": "i\\ud800"}\n', "line 1: item"),
        ("t.csv", GOOD + f"a,{'x' * 2000},5,1\n", "longer than 1000"),
        ("t.csv", GOOD + "a,new,much,1\n", "line 18: rating 'much' is not a number"),
        ("t.csv", GOOD + "a,new,0,1\n", "line 18: rating '0.0' is not positive"),
        ("t.csv", GOOD + "a,new,5,soon\n", "line 18: time 'soon'"),
        ("t.csv", GOOD + "a,new,5,inf\n", "line 18: time 'inf'"),
        ("t.csv", GOOD + "a,new,5\n", "line 18: time ''"),
        ("t.csv", GOOD + "a,new,5,1,9\n", "line 18"),
        ("t.csv", "user,item\na,b,c\n", "line 2: has more cells"),
        ("t.csv", "who,item\na,b\n", "has no column user"),
        ("t.csv", "", "is not a CSV table"),
        ("t.csv", "user,item\n", "holds no interactions"),
        ("t.csv", b"user,item\na,\xff\n", "UTF-8"),
        ("t.csv", "user,item\na,b\n", "nothing is left of 5 interactions per user and item"),
        ("t.csv.gz", GOOD, "is not a complete gzip file"),
        ("t.csv.gz", gzip.compress(GOOD.encode())[:-9], "is not a complete gzip file"),
        ("t.xls", GOOD, "is not named .csv"),
        (
            "t.csv",
            dated("9999-12-31"),
            "line 2: time '9999-12-31' is neither a number nor an ISO 8601 date of",
        ),
        ("t.csv", dated("2024-01-01", "1066-10-14"), "line 3: time '1066-10-14' is neither"),
        ("t.parquet", GOOD, "Parquet"),
        ("t.jsonl", '{"user": "a", "item": "b"}\n[1]\n', "line 2: holds a list"),
        ("t.jsonl", '{"user": "a", "item": "b"}\n{"user": "a"}\n', "line 2: item '' is empty"),
        (
            "t.jsonl",
            '{"user": "a", "item": "b"}\n\n{"user": "a", "item": true}\n',
            "line 3: item '' is empty",
        ),
        ("t.jsonl", '{"user": "a"\n', "line 1: is neither"),
        ("t.jsonl", "__import__('os').abort()\n", "line 1: is neither"),
        ("t.jsonl", "{'user': 'a', 'item': __import__('os').abort()}\n", "line 1: is neither"),
        ("t.jsonl", "[" * 100000 + "\n", "line 1: is neither"),
        ("t.jsonl", "-" * 100000 + "1\n", "line 1: is neither"),
        ("t.jsonl", "1" + "+1" * 100000 + "\n", "line 1: is neither"),
        ("t.jsonl", '{"user": ' + "1" * 10000 + "}\n", "line 1: is neither"),
        ("t.jsonl", '{"user": "' + "a" * (1 << 20) + '"}\n', "line 1: is longer than"),
    ],
)
def test_bad_tables_end_in_one_line(name, text, message, tmp_path, capsys):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="pip install -c constraints.txt -e '.[features]'")
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    error = refused(capsys, tmp_path, "--interactions", path)
    assert message in error and str(path) in error


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--interactions FILE, --convert or --train_test"),
        (["--core", "0"], "--core 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--user_column", "who"], "no column who"),
        (["--columns", "a,b,c,d"], "no column user"),
        (["--columns", "user,item,user"], "names user twice"),
        (["--valid_share", "0.2"], "its own rule"),
        (["--split", "random", "--valid_share", "0.6", "--test_share", "0.4"], "less than 1 together"),
        (["--split", "random", "--valid_share", "0.001"], "leaves the valid split empty"),
        (["--split", "temporal", "--time_column", ""], "no times"),
        (["--split", "temporal", "--valid_share", "1e-17", "--test_share", "1e-17"], "valid split empty"),
        (["--convert", "txt"], "cannot be combined with --interactions"),
        (["--train_test", "{tmp}"], "cannot be combined with --interactions"),
        (["--text_feat", "f.npy"], "FILE.npy=IDS"),
        (["--image_features", "x.b", "--image_feat", "f.npy=ids"], "give one"),
        (["--meta", "{tmp}/none.json"], "cannot be read"),
        (["--nonsense", "1"], "--nonsense"),
    ],
)
def test_bad_flags_end_in_one_line(flags, message, tmp_path, capsys):
    (tmp_path / "t.csv").write_text(GOOD)
    flags = [flag.replace("{tmp}", str(tmp_path)) for flag in flags]
    table = ["--interactions", tmp_path / "t.csv"] if flags else []
    assert message in refused(
        capsys,
        tmp_path,
        *table,
        *(
            []
            if "--core" in flags
            else ["--core", "3"]
            if flags and not {"--convert", "--train_test"} & set(flags)
            else []
        ),
        *flags,
    )


@pytest.mark.parametrize(
    "content, message",
    [
        ("{'asin': 'nobody'}\n", "describes none of the 4 items"),
        ("{'title': 'no id'}\n", "line 1: has no item id"),
        ("{'asin': 'w', 'title': open('x')}\n", "line 1: is neither"),
    ],
)
def test_bad_metadata(content, message, tmp_path, capsys):
    (tmp_path / "t.csv").write_text(GOOD)
    (tmp_path / "meta.json").write_text(content)
    assert message in refused(
        capsys, tmp_path, "--interactions", tmp_path / "t.csv", "--core", 3, "--meta", tmp_path / "meta.json"
    )


def test_bad_features(tmp_path, capsys):
    (tmp_path / "t.csv").write_text(GOOD)
    base = ["--interactions", tmp_path / "t.csv", "--core", 3]
    (tmp_path / "i.b").write_bytes(b"x" * (raw.IMAGE.itemsize + 5))
    assert "record 2: ends after 5 of 16394 bytes" in refused(
        capsys, tmp_path, *base, "--image_features", tmp_path / "i.b"
    )
    (tmp_path / "i.b").write_bytes(b"x" * raw.IMAGE.itemsize)
    assert "has features for none of the 4 ids" in refused(
        capsys, tmp_path, *base, "--image_features", tmp_path / "i.b"
    )
    np.save(tmp_path / "f.npy", np.eye(4))
    for text in ("w\nx\n", "0\tw\n0\tx\n2\ty\n3\tz\n", "", "w\tx\ty\n" * 4):
        (tmp_path / "ids").write_text(text)
        assert "does not name an id for each of 4 rows" in refused(
            capsys, tmp_path, *base, "--text_feat", f"{tmp_path}/f.npy={tmp_path}/ids"
        )
    np.save(tmp_path / "f.npy", np.array([{}], object), allow_pickle=True)
    assert "not a plain .npy" in refused(
        capsys, tmp_path, *base, "--text_feat", f"{tmp_path}/f.npy={tmp_path}/ids"
    )


@pytest.mark.parametrize(
    "names, twice", [(["user", "item", "item"], "item"), (["user", "item", "x", "x"], "")]
)
def test_parquet_with_a_repeated_column(names, twice, tmp_path, capsys):
    """Is refused if it is the column of a role."""
    pa = pytest.importorskip("pyarrow", reason="pip install -c constraints.txt -e '.[features]'")
    from pyarrow import parquet

    rows = [(f"u{user}", f"i{(user + n) % 6}") for user in range(6) for n in range(4)]
    columns = [pa.array([row[min(n, 1)] for row in rows]) for n in range(len(names))]
    parquet.write_table(pa.Table.from_arrays(columns, names), tmp_path / "t.parquet")
    flags = ["--interactions", tmp_path / "t.parquet", "--core", 3]
    if twice:
        assert f"t.parquet: has several columns {twice}; give" in refused(capsys, tmp_path, *flags)
    else:
        run(tmp_path, *flags)


@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz"])
@pytest.mark.parametrize(
    "names, twice",
    [
        (["user", "item", "item"], "item"),
        (["\ufeffuser", "item", "user"], "user"),
        (["user", "item", "x", "x"], ""),
        (["user", "item", '"a name\r\nof two lines"'], ""),
    ],
)
def test_a_table_with_a_repeated_column(ending, names, twice, tmp_path, capsys):
    """Is refused if it is the column of a role: pandas would read the first and call the second item.1."""
    path, separator = tmp_path / f"t.{ending}", "\t" if ending == "tsv" else ","
    if ending == "tsv":
        names = [name.replace("\r\n", " ") for name in names]
    rows = [names, *([f"u{user}", f"i{(user + n) % 6}", "0", "0"] for user in range(6) for n in range(4))]
    text = "".join(separator.join(row[: len(names)]) + "\r\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    if twice:
        error = refused(capsys, tmp_path, "--interactions", path, "--core", 3)
        assert f"t.{ending}: has several columns {twice}; give" in error
    else:
        run(tmp_path, "--interactions", path, "--core", 3)


def test_parquet_without_pyarrow_names_the_package(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    assert "pip install -c constraints.txt -e '.[features]'" in refused(
        capsys, tmp_path, "--interactions", tmp_path / "t.parquet"
    )


def test_conversion_refuses_to_overwrite_and_invalid_folders(tmp_path, capsys):
    folder = run(tmp_path, "--interactions", write_csv(tmp_path / "t.csv", events()))
    assert prepare.main(["toy", "--data_root", str(tmp_path), "--convert", "inter"]) == 2
    assert "exists already" in capsys.readouterr().err
    (folder / "toy.inter").write_text("userID\titemID\tx_label\n0\t0\t0\n0\t0\t1\n0\t1\t2\n")
    assert prepare.main(["toy", "--data_root", str(tmp_path), "--convert", "txt"]) == 2
    assert "earlier split" in capsys.readouterr().err
    assert not (folder / "train.txt").exists()


# ---------------------------------------------------------------- complete or absent


def everything(path):
    """Write inputs of every kind. Returns the flags that use them."""
    rows = [(u, f"B{i:09}", 5.0, 10 * u + i) for u in range(8) for i in range(6)]
    write_csv(path / "t.csv", rows)
    write_images(path / "i.b", [(f"B{i:09}", np.full(4096, i, np.float32)) for i in range(5)])
    (path / "meta.json").write_text("\n".join(repr({"asin": f"B{i:09}", "title": f"t{i}"}) for i in range(6)))
    np.save(path / "f.npy", np.eye(6))
    (path / "ids.txt").write_text("".join(f"B{i:09}\n" for i in range(6)))
    return [
        "--interactions",
        path / "t.csv",
        "--meta",
        path / "meta.json",
        "--image_features",
        path / "i.b",
        "--text_feat",
        f"{path}/f.npy={path}/ids.txt",
    ]


def die_at(step, argv):
    """Run the tool in a forked process, and kill it with SIGKILL before the step-th file is complete."""
    original, count = os.fsync, [0]

    def fsync(handle):
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        original(handle)

    os.fsync = fsync
    os._exit(prepare.main(argv))


def test_killed_and_restarted_gives_the_same_bytes(tmp_path, capsys):
    """Killed before any file is complete, no folder exists, and the next run gives the same bytes."""
    flags = list(map(str, everything(tmp_path)))
    whole = run(tmp_path / "whole", *flags)
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert set(files) == {
        "toy.inter",
        "user_ids.tsv",
        "item_ids.tsv",
        "item_text.jsonl",
        "image_feat.npy",
        "text_feat.npy",
        "prepare.json",
    }
    for step in range(1, len(files) + 1):
        root = tmp_path / f"killed{step}"
        process = multiprocessing.get_context("fork").Process(
            target=die_at, args=(step, ["toy", "--data_root", str(root), *flags])
        )
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert not (root / "toy").exists() and any(root.glob(".toy.partial/.*.tmp"))
        again = run(root, *flags)
        assert {path.name: path.read_bytes() for path in again.iterdir()} == files
        assert [path.name for path in root.iterdir()] == ["toy"]


def test_a_full_disk_leaves_no_files(tmp_path, capsys, monkeypatch):
    flags = everything(tmp_path)
    monkeypatch.setattr(
        os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    assert prepare.main(["toy", "--data_root", str(tmp_path / "out"), *map(str, flags)]) == 1
    assert "No space left" in capsys.readouterr().err
    assert not any((tmp_path / "out").iterdir())


def test_an_existing_folder_is_not_changed(tmp_path, capsys):
    folder = run(tmp_path, "--interactions", write_csv(tmp_path / "t.csv", events()))
    before = contents(folder)
    assert (
        prepare.main(
            ["toy", "--data_root", str(tmp_path), "--interactions", str(tmp_path / "t.csv"), "--seed", "9"]
        )
        == 2
    )
    assert "exists already" in capsys.readouterr().err and contents(folder) == before


def test_two_processes_do_not_share_a_work_folder(tmp_path, capsys):
    write_csv(tmp_path / "t.csv", events())
    (tmp_path / ".toy.partial").mkdir()
    with lock_file(tmp_path / ".toy.partial" / ".lock"):
        assert (
            prepare.main(["toy", "--data_root", str(tmp_path), "--interactions", str(tmp_path / "t.csv")])
            == 2
        )
    assert "another process is at work in this folder" in capsys.readouterr().err
