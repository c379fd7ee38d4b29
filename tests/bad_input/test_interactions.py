"""Broken interactions, as text and as a table."""

import numpy as np
import pytest
from broken import append, check, edit, empty, no_change, remove
from helpers import random_pairs, write_inter, write_txt


def pair_of_train_again(name):
    """The first training pair as the last line of another split."""

    def breaking(folder):
        first = " ".join((folder / "train.txt").read_text().split()[:2])
        append(name, first)(folder)

    return breaking


TXT = {  # 40 users: train.txt has 39 lines, valid.txt and test.txt 40
    "missing train.txt": (remove("train.txt"), ["small", "train.txt", ".inter", "README"]),
    "missing valid.txt": (
        remove("valid.txt"),
        ["valid.txt: cannot be read", "needs train.txt, valid.txt and test.txt"],
    ),
    "missing test.txt": (remove("test.txt"), ["test.txt: cannot be read", "needs"]),
    "malformed id": (append("train.txt", "3 4x 5"), ["train.txt, line 40: '4x'", "whole numbers from 0"]),
    "negative id": (append("valid.txt", "3 -4"), ["valid.txt, line 41: '-4'", "whole numbers from 0"]),
    "float id": (append("test.txt", "3.0 4"), ["test.txt, line 41: '3.0'", "whole numbers from 0"]),
    "id that is no ASCII digit": (
        append("test.txt", "3 \u0663"),
        ["test.txt, line 41", "whole numbers from 0"],
    ),
    "huge id of twenty digits": (
        append("train.txt", "3 99999999999999999999"),
        ["train.txt, line 40", "more than 10 digits", "from 0"],
    ),
    "huge id of ten digits": (
        append("train.txt", "9999999999 3"),
        ["train.txt, line 40: user id 9999999999", "from 0"],
    ),
    "item id with a large gap": (
        append("valid.txt", "3 2000000"),
        ["valid.txt, line 41: item id 2000000", "without large gaps"],
    ),
    "user id with a large gap": (
        edit("test.txt", lambda lines: ["2000000 3"] + lines),
        ["test.txt, line 1: user id 2000000", "without large gaps"],
    ),
    "empty train.txt": (empty("train.txt"), ["train split is empty", "needs at least one"]),
    "empty valid.txt": (empty("valid.txt"), ["valid split is empty", "needs at least one"]),
    "empty test.txt": (empty("test.txt"), ["test split is empty", "needs at least one"]),
    "users without items": (
        edit("test.txt", lambda lines: ["1", "2"]),
        ["test split is empty", "needs at least one"],
    ),
    "pair in train and valid": (
        pair_of_train_again("valid.txt"),
        ["valid.txt, line 41: user 0 and item", "one split only"],
    ),
    "pair in train and test": (
        pair_of_train_again("test.txt"),
        ["test.txt, line 41: user 0 and item", "one split only"],
    ),
    "a directory in place of a file": (
        lambda folder: (remove("test.txt")(folder), (folder / "test.txt").mkdir()),
        ["test.txt: cannot be read", "needs"],
    ),
    "binary": (
        lambda folder: (folder / "valid.txt").write_bytes(b"0 1\n\xff\xfe 2\n"),
        ["valid.txt, line 2", "whole numbers"],
    ),
}


@pytest.mark.parametrize("case", TXT)
def test_txt(case, small_dataset, capsys):
    breaking, words = TXT[case]
    breaking(small_dataset)
    check(small_dataset, capsys, [], [".txt", *words])


def user_with_every_item(folder):
    write_txt(folder, train=[(0, 0), (0, 1), (0, 2), (1, 0)], valid=[(1, 1)], test=[(1, 2)])


def table_with_a_column_before_the_ids(folder):
    """Read as userID, itemID, x_label, its rows would be shifted by one."""
    for name in ("train.txt", "valid.txt", "test.txt"):
        (folder / name).unlink()
    (folder / "small.inter").write_text(
        "userID\titemID\tx_label\n9\t0\t1\t0\n9\t0\t2\t1\n9\t1\t1\t2\n9\t0\t0\t2\n"
    )


FOLDERS = {  # breaking, flags, words
    "no folder": (
        no_change,
        ["--dataset", "nowhere"],
        ["nowhere: no such dataset folder", "--dataset", "--data_root"],
    ),
    "name that leaves the root": (
        no_change,
        ["--dataset", "../data/small"],
        ["--dataset ../data/small", "--data_root"],
    ),
    "name with .. inside": (
        no_change,
        ["--dataset", "small/../small"],
        ["--dataset small/../small", "--data_root"],
    ),
    "absolute name": (no_change, ["--dataset", "/etc"], ["--dataset /etc", "--data_root"]),
    "empty name": (no_change, ["--dataset", ""], ["--dataset", "--data_root"]),
    "user with every item": (
        user_with_every_item,
        ["--model", "lgn", "--use_multimodal", "0", "--topks", "2"],
        ["train", "no negative to draw", "remove that user"],
    ),
    "rows of the table too long": (
        table_with_a_column_before_the_ids,
        ["--topks", "2"],
        ["small.inter", "tab"],
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folder(case, small_dataset, capsys):
    breaking, extra, words = FOLDERS[case]
    breaking(small_dataset)
    check(small_dataset, capsys, extra, words)


# ---------------------------------------------------------------- as a table


@pytest.fixture
def inter(small_dataset):
    """small_dataset with small.inter (columns userID itemID rating x_label) in place of the text files."""
    pairs = random_pairs(0, 40, 30, 6)
    for name in ("train.txt", "valid.txt", "test.txt"):
        (small_dataset / name).unlink()
    write_inter(small_dataset, **pairs, ratings=np.full(sum(map(len, pairs.values())), 4))
    return small_dataset


def line(number, change):
    """A case that changes one line (numbers from 1) of small.inter."""
    return edit(
        "small.inter", lambda lines: lines[: number - 1] + [change(lines[number - 1])] + lines[number:]
    )


def cell(number, column, value):
    return line(
        number,
        lambda text: "\t".join(value if at == column else word for at, word in enumerate(text.split("\t"))),
    )


def without_split(label):
    return edit("small.inter", lambda lines: [text for text in lines if not text.endswith(f"\t{label}")])


def train_pair_as(label):
    return edit("small.inter", lambda lines: lines + [lines[1].rsplit("\t", 1)[0] + f"\t{label}"])


def extra_column(rows):
    """The same cell too many in some rows (numbers from 1; all but the header for None)."""
    return edit(
        "small.inter",
        lambda lines: [
            text + "\t0" if (at in rows if rows else at > 1) else text for at, text in enumerate(lines, 1)
        ],
    )


LAST = 1 + 39 * 6 + 40 + 40  # lines of small.inter
INTER = {
    "no x_label": (
        line(1, lambda text: text.replace("x_label", "split")),
        ["line 1", "lacks x_label", "0 train, 1 valid, 2 test"],
    ),
    "no userID, no itemID": (
        line(1, lambda text: text.replace("userID", "u").replace("itemID", "i")),
        ["line 1", "lacks userID, itemID"],
    ),
    "userID twice": (
        line(1, lambda text: text.replace("rating", "userID")),
        ["line 1", "repeats userID", "own name"],
    ),
    "two columns twice": (
        edit("small.inter", lambda lines: [f"{text}\tx_label\titemID" for text in lines]),
        ["line 1", "repeats itemID, x_label", "own name"],
    ),
    "another column twice": (
        edit("small.inter", lambda lines: [f"{text}\tnote\tnote" for text in lines]),
        ["line 1", "repeats note", "own name"],
    ),
    "commas": (
        edit("small.inter", lambda lines: [text.replace("\t", ",") for text in lines]),
        ["line 1", "separated by tabs"],
    ),
    "x_label 7": (cell(5, 3, "7"), ["line 5: x_label '7'", "0 (train), 1 (valid) or 2 (test)"]),
    "x_label empty": (cell(5, 3, ""), ["line 5: x_label ''", "0 (train)"]),
    "malformed id": (cell(6, 0, "u6"), ["line 6: userID 'u6'", "whole numbers from 0"]),
    "negative id": (cell(7, 1, "-2"), ["line 7: itemID '-2'", "whole numbers from 0"]),
    "float id": (cell(8, 0, "1.0"), ["line 8: userID '1.0'", "whole numbers from 0"]),
    "empty id": (cell(8, 0, ""), ["line 8: userID ''", "whole numbers from 0"]),
    "huge id": (cell(9, 1, "9" * 20), ["line 9: itemID", "from 0"]),
    "large gap": (cell(LAST, 1, "3000000"), [f"line {LAST}: item id 3000000", "without large gaps"]),
    "rating that is no number": (cell(4, 2, "good"), ["line 4: rating 'good'", "positive number"]),
    "rating zero": (cell(4, 2, "0"), ["line 4: rating '0'", "positive number"]),
    "short row": (line(9, lambda text: text.rsplit("\t", 1)[0]), ["line 9", "x_label"]),
    "long row": (extra_column([9]), ["line 9", "tab"]),
    "long first row": (extra_column([2]), ["line 2", "tab"]),
    "all rows long": (extra_column(None), ["line 2", "tab"]),
    "empty train": (without_split(0), ["train split is empty", "needs at least one"]),
    "empty valid": (without_split(1), ["valid split is empty", "needs at least one"]),
    "empty test": (without_split(2), ["test split is empty", "needs at least one"]),
    "header alone": (edit("small.inter", lambda lines: lines[:1]), ["split is empty", "needs at least one"]),
    "empty file": (empty("small.inter"), ["is not a tab-separated table", "header"]),
    "pair in train and valid": (train_pair_as(1), [f"line {LAST + 1}: user 0 and item", "one split only"]),
    "pair in train and test": (train_pair_as(2), [f"line {LAST + 1}: user 0 and item", "one split only"]),
    "not UTF-8": (
        lambda folder: (folder / "small.inter").write_bytes(
            (folder / "small.inter").read_bytes() + b"\xff\xfe\t1\t4\t0\n"
        ),
        ["utf-8", "tab-separated table"],
    ),
}


@pytest.mark.parametrize("case", INTER)
def test_inter(case, inter, capsys):
    breaking, words = INTER[case]
    breaking(inter)
    check(inter, capsys, [], ["small.inter", *words])


def two_tables(folder):
    (folder / "small.inter").rename(folder / "a.inter")
    (folder / "b.inter").write_text("")


TABLES = {
    "two tables": (two_tables, [], ["2 .inter tables", "small.inter", "keep one"]),
    "forced format without its files": (
        no_change,
        ["--data_format", "txt"],
        ["train.txt: cannot be read", "needs"],
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables(case, inter, capsys):
    breaking, extra, words = TABLES[case]
    breaking(inter)
    check(inter, capsys, extra, words)


CASES = {
    **TXT,
    **{f"folder: {name}": case for name, case in FOLDERS.items()},
    **{f"table: {name}": case for name, case in INTER.items()},
    **TABLES,
}
