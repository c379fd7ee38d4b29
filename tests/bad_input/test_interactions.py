"""Invalid interactions in both formats: exit code 2 and one line that names file, line and remedy."""

import numpy as np
import pytest
from broken import (
    append_line,
    assert_training_refused,
    edit_lines,
    empty_file,
    no_change,
    remove_file,
    replace_by_folder,
)
from helpers import random_pairs, write_inter, write_txt

# ---------------------------------------------------------------- .txt


def append_pair_of_train(name):
    """Return a function that appends the first training pair to another split."""

    def break_dataset(folder):
        first = " ".join((folder / "train.txt").read_text().split()[:2])
        append_line(name, first)(folder)

    return break_dataset


# 40 users: train.txt has 39 lines, valid.txt and test.txt have 40.
TXT = {
    "missing train.txt": (remove_file("train.txt"), ["small", "train.txt", ".inter", "README"]),
    "missing valid.txt": (
        remove_file("valid.txt"),
        ["valid.txt: cannot be read", "needs train.txt, valid.txt and test.txt"],
    ),
    "missing test.txt": (remove_file("test.txt"), ["test.txt: cannot be read", "needs"]),
    "id with a letter": (
        append_line("train.txt", "3 4x 5"),
        ["train.txt, line 40: '4x'", "whole numbers from 0"],
    ),
    "negative id": (append_line("valid.txt", "3 -4"), ["valid.txt, line 41: '-4'", "whole numbers from 0"]),
    "float id": (append_line("test.txt", "3.0 4"), ["test.txt, line 41: '3.0'", "whole numbers from 0"]),
    "id in digits that are not ASCII": (
        append_line("test.txt", "3 \u0663"),
        ["test.txt, line 41", "whole numbers from 0"],
    ),
    "huge id of twenty digits": (
        append_line("train.txt", "3 99999999999999999999"),
        ["train.txt, line 40", "more than 10 digits", "from 0"],
    ),
    "huge id of ten digits": (
        append_line("train.txt", "9999999999 3"),
        ["train.txt, line 40: user id 9999999999", "from 0"],
    ),
    "item id with a large gap": (
        append_line("valid.txt", "3 2000000"),
        ["valid.txt, line 41: item id 2000000", "without large gaps"],
    ),
    "user id with a large gap": (
        edit_lines("test.txt", lambda lines: ["2000000 3", *lines]),
        ["test.txt, line 1: user id 2000000", "without large gaps"],
    ),
    "empty train.txt": (empty_file("train.txt"), ["train split is empty", "needs at least one"]),
    "empty valid.txt": (empty_file("valid.txt"), ["valid split is empty", "needs at least one"]),
    "empty test.txt": (empty_file("test.txt"), ["test split is empty", "needs at least one"]),
    "users without items": (
        edit_lines("test.txt", lambda lines: ["1", "2"]),
        ["test split is empty", "needs at least one"],
    ),
    "pair in train and valid": (
        append_pair_of_train("valid.txt"),
        ["valid.txt, line 41: user 0 and item", "one split only"],
    ),
    "pair in train and test": (
        append_pair_of_train("test.txt"),
        ["test.txt, line 41: user 0 and item", "one split only"],
    ),
    "folder in place of a file": (replace_by_folder("test.txt"), ["test.txt: cannot be read", "needs"]),
    "binary": (
        lambda folder: (folder / "valid.txt").write_bytes(b"0 1\n\xff\xfe 2\n"),
        ["valid.txt, line 2", "whole numbers"],
    ),
}


@pytest.mark.parametrize("case", TXT)
def test_txt(case, small_dataset, capsys):
    break_dataset, words = TXT[case]
    break_dataset(small_dataset)
    assert_training_refused(small_dataset, capsys, [], [".txt", *words])


# ---------------------------------------------------------------- folders


def user_with_every_item(folder):
    write_txt(folder, train=[(0, 0), (0, 1), (0, 2), (1, 0)], valid=[(1, 1)], test=[(1, 2)])


def inter_with_a_column_without_header(folder):
    """Write rows with one more cell than the header: all cells would be read one column off."""
    for name in ("train.txt", "valid.txt", "test.txt"):
        (folder / name).unlink()
    (folder / "small.inter").write_text(
        "userID\titemID\tx_label\n9\t0\t1\t0\n9\t0\t2\t1\n9\t1\t1\t2\n9\t0\t0\t2\n"
    )


# case: (break_dataset, flags, words)
FOLDERS = {
    "no folder": (
        no_change,
        ["--dataset", "nowhere"],
        ["nowhere: no such dataset folder", "--dataset", "--data_root"],
    ),
    "name outside the root": (
        no_change,
        ["--dataset", "../data/small"],
        ["--dataset ../data/small", "--data_root"],
    ),
    "name with ..": (
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
    "all rows of the table too long": (
        inter_with_a_column_without_header,
        ["--topks", "2"],
        ["small.inter", "tab"],
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folder(case, small_dataset, capsys):
    break_dataset, extra, words = FOLDERS[case]
    break_dataset(small_dataset)
    assert_training_refused(small_dataset, capsys, extra, words)


# ---------------------------------------------------------------- .inter


@pytest.fixture
def inter(small_dataset):
    """small_dataset as small.inter (columns userID, itemID, rating, x_label) instead of .txt files."""
    pairs = random_pairs(0, 40, 30, 6)
    for name in ("train.txt", "valid.txt", "test.txt"):
        (small_dataset / name).unlink()
    write_inter(small_dataset, **pairs, ratings=np.full(sum(map(len, pairs.values())), 4))
    return small_dataset


def change_line(number, change):
    """Return a function that changes one line of small.inter; line 1 is the header."""

    def change_lines(lines):
        return [change(text) if i == number else text for i, text in enumerate(lines, 1)]

    return edit_lines("small.inter", change_lines)


def change_cell(number, column, value):
    def change(text):
        return "\t".join(value if i == column else cell for i, cell in enumerate(text.split("\t")))

    return change_line(number, change)


def without_split(label):
    return edit_lines(
        "small.inter", lambda lines: [text for text in lines if not text.endswith(f"\t{label}")]
    )


def append_train_pair_as(label):
    return edit_lines("small.inter", lambda lines: [*lines, lines[1].rsplit("\t", 1)[0] + f"\t{label}"])


def append_cell(numbers):
    """Return a function that appends a cell to the lines of small.inter with these numbers."""

    def change_lines(lines):
        return [f"{text}\t0" if i in numbers else text for i, text in enumerate(lines, 1)]

    return edit_lines("small.inter", change_lines)


# The number of lines of small.inter.
LAST = 1 + 39 * 6 + 40 + 40
INTER = {
    "no x_label": (
        change_line(1, lambda text: text.replace("x_label", "split")),
        ["line 1", "lacks x_label", "0 train, 1 valid, 2 test"],
    ),
    "no userID, no itemID": (
        change_line(1, lambda text: text.replace("userID", "u").replace("itemID", "i")),
        ["line 1", "lacks userID, itemID"],
    ),
    "userID twice": (
        change_line(1, lambda text: text.replace("rating", "userID")),
        ["line 1", "repeats userID", "own name"],
    ),
    "two columns twice": (
        edit_lines("small.inter", lambda lines: [f"{text}\tx_label\titemID" for text in lines]),
        ["line 1", "repeats itemID, x_label", "own name"],
    ),
    "another column twice": (
        edit_lines("small.inter", lambda lines: [f"{text}\tnote\tnote" for text in lines]),
        ["line 1", "repeats note", "own name"],
    ),
    "commas": (
        edit_lines("small.inter", lambda lines: [text.replace("\t", ",") for text in lines]),
        ["line 1", "separated by tabs"],
    ),
    "x_label 7": (change_cell(5, 3, "7"), ["line 5: x_label '7'", "0 (train), 1 (valid) or 2 (test)"]),
    "x_label empty": (change_cell(5, 3, ""), ["line 5: x_label ''", "0 (train)"]),
    "id with a letter": (change_cell(6, 0, "u6"), ["line 6: userID 'u6'", "whole numbers from 0"]),
    "negative id": (change_cell(7, 1, "-2"), ["line 7: itemID '-2'", "whole numbers from 0"]),
    "float id": (change_cell(8, 0, "1.0"), ["line 8: userID '1.0'", "whole numbers from 0"]),
    "empty id": (change_cell(8, 0, ""), ["line 8: userID ''", "whole numbers from 0"]),
    "huge id": (change_cell(9, 1, "9" * 20), ["line 9: itemID", "from 0"]),
    "large gap": (change_cell(LAST, 1, "3000000"), [f"line {LAST}: item id 3000000", "without large gaps"]),
    "rating that is not a number": (change_cell(4, 2, "good"), ["line 4: rating 'good'", "positive number"]),
    "rating zero": (change_cell(4, 2, "0"), ["line 4: rating '0'", "positive number"]),
    "short row": (change_line(9, lambda text: text.rsplit("\t", 1)[0]), ["line 9", "x_label"]),
    "long row": (append_cell([9]), ["line 9", "tab"]),
    "long first row": (append_cell([2]), ["line 2", "tab"]),
    "all rows long": (append_cell(range(2, LAST + 1)), ["line 2", "tab"]),
    "empty train": (without_split(0), ["train split is empty", "needs at least one"]),
    "empty valid": (without_split(1), ["valid split is empty", "needs at least one"]),
    "empty test": (without_split(2), ["test split is empty", "needs at least one"]),
    "header only": (
        edit_lines("small.inter", lambda lines: lines[:1]),
        ["split is empty", "needs at least one"],
    ),
    "empty file": (empty_file("small.inter"), ["is not a tab-separated table", "header"]),
    "pair in train and valid": (
        append_train_pair_as(1),
        [f"line {LAST + 1}: user 0 and item", "one split only"],
    ),
    "pair in train and test": (
        append_train_pair_as(2),
        [f"line {LAST + 1}: user 0 and item", "one split only"],
    ),
    "not UTF-8": (
        lambda folder: (folder / "small.inter").write_bytes(
            (folder / "small.inter").read_bytes() + b"\xff\xfe\t1\t4\t0\n"
        ),
        ["utf-8", "tab-separated table"],
    ),
}


@pytest.mark.parametrize("case", INTER)
def test_inter(case, inter, capsys):
    break_dataset, words = INTER[case]
    break_dataset(inter)
    assert_training_refused(inter, capsys, [], ["small.inter", *words])


def two_tables(folder):
    (folder / "small.inter").rename(folder / "a.inter")
    (folder / "b.inter").write_text("")


TABLES = {
    "two tables": (two_tables, [], ["2 .inter tables", "small.inter", "keep one"]),
    "--data_format txt without .txt files": (
        no_change,
        ["--data_format", "txt"],
        ["train.txt: cannot be read", "needs"],
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables(case, inter, capsys):
    break_dataset, extra, words = TABLES[case]
    break_dataset(inter)
    assert_training_refused(inter, capsys, extra, words)


CASES = {
    **TXT,
    **{f"folder: {name}": case for name, case in FOLDERS.items()},
    **{f"table: {name}": case for name, case in INTER.items()},
    **TABLES,
}
