"""Broken datasets and command lines: exit code 2, one line on stderr that says what, where and the remedy, no run folder."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import random_pairs, write_inter, write_txt
from main import main
from world import Config, choose_device

ROOT = Path(__file__).resolve().parents[1]


def command(folder, *extra):
    tmp = folder.parents[1]
    return ["--dataset", "small", "--data_root", str(folder.parent), "--path", str(tmp / "runs"), "--cuda", "0", "--epochs", "1",
            "--tensorboard", "0", "--item_knn_k", "5", "--user_knn_k", "5", *map(str, extra)]


def assert_refused(code, err, words):
    assert code == 2
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    for word in words:
        assert word in err, (word, err)


def check(folder, capsys, extra, words):
    code = main(command(folder, *extra))
    assert_refused(code, capsys.readouterr().err, words)
    assert not (folder.parents[1] / "runs").exists()


# ---------------------------------------------------------------- interactions as text

def edit(name, change):
    """A case that rewrites the lines of a file."""
    def breaking(folder):
        path = folder / name
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    return breaking


def append(name, line):
    return edit(name, lambda lines: lines + [line])


def remove(name):
    return lambda folder: (folder / name).unlink()


def empty(name):
    return lambda folder: (folder / name).write_text("")


def pair_of_train_again(name):
    """The first training pair as the last line of another split."""
    def breaking(folder):
        first = " ".join((folder / "train.txt").read_text().split()[:2])
        append(name, first)(folder)
    return breaking


TXT = {   # 40 users: train.txt has 39 lines, valid.txt and test.txt 40
    "missing train.txt": (remove("train.txt"), ["small", "train.txt", ".inter", "README"]),
    "missing valid.txt": (remove("valid.txt"), ["valid.txt: cannot be read", "needs train.txt, valid.txt and test.txt"]),
    "missing test.txt": (remove("test.txt"), ["test.txt: cannot be read", "needs"]),
    "malformed id": (append("train.txt", "3 4x 5"), ["train.txt, line 40: '4x'", "whole numbers from 0"]),
    "negative id": (append("valid.txt", "3 -4"), ["valid.txt, line 41: '-4'", "whole numbers from 0"]),
    "float id": (append("test.txt", "3.0 4"), ["test.txt, line 41: '3.0'", "whole numbers from 0"]),
    "id that is no ASCII digit": (append("test.txt", "3 \u0663"), ["test.txt, line 41", "whole numbers from 0"]),
    "huge id of twenty digits": (append("train.txt", "3 99999999999999999999"), ["train.txt, line 40", "from 0"]),
    "huge id of ten digits": (append("train.txt", "9999999999 3"), ["train.txt, line 40: user id 9999999999", "from 0"]),
    "item id with a large gap": (append("valid.txt", "3 2000000"), ["valid.txt, line 41: item id 2000000", "without large gaps"]),
    "user id with a large gap": (edit("test.txt", lambda lines: ["2000000 3"] + lines),
                                 ["test.txt, line 1: user id 2000000", "without large gaps"]),
    "empty train.txt": (empty("train.txt"), ["train split is empty", "needs at least one"]),
    "empty valid.txt": (empty("valid.txt"), ["valid split is empty", "needs at least one"]),
    "empty test.txt": (empty("test.txt"), ["test split is empty", "needs at least one"]),
    "users without items": (edit("test.txt", lambda lines: ["1", "2"]), ["test split is empty", "needs at least one"]),
    "pair in train and valid": (pair_of_train_again("valid.txt"), ["valid.txt, line 41: user 0 and item", "one split only"]),
    "pair in train and test": (pair_of_train_again("test.txt"), ["test.txt, line 41: user 0 and item", "one split only"]),
    "a directory in place of a file": (lambda folder: (remove("test.txt")(folder), (folder / "test.txt").mkdir()),
                                       ["test.txt: cannot be read", "needs"]),
    "binary": (lambda folder: (folder / "valid.txt").write_bytes(b"0 1\n\xff\xfe 2\n"), ["valid.txt, line 2", "whole numbers"]),
}


@pytest.mark.parametrize("case", TXT)
def test_txt(case, small_dataset, capsys):
    breaking, words = TXT[case]
    breaking(small_dataset)
    check(small_dataset, capsys, [], [".txt", *words])


def test_missing_folder(small_dataset, capsys):
    check(small_dataset, capsys, ["--dataset", "nowhere"], ["nowhere: no such dataset folder", "--dataset", "--data_root"])


def test_user_with_every_item(small_dataset, capsys):
    write_txt(small_dataset, train=[(0, 0), (0, 1), (0, 2), (1, 0)], valid=[(1, 1)], test=[(1, 2)])
    check(small_dataset, capsys, ["--model", "lgn", "--use_multimodal", "0", "--topks", "2"], ["train", "no negative to draw", "drop that user"])


# ---------------------------------------------------------------- interactions as a table

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
    return edit("small.inter", lambda lines: lines[:number - 1] + [change(lines[number - 1])] + lines[number:])


def cell(number, column, value):
    return line(number, lambda text: "\t".join(value if at == column else word for at, word in enumerate(text.split("\t"))))


def without_split(label):
    return edit("small.inter", lambda lines: [text for text in lines if not text.endswith(f"\t{label}")])


def train_pair_as(label):
    return edit("small.inter", lambda lines: lines + [lines[1].rsplit("\t", 1)[0] + f"\t{label}"])


def extra_column(rows):
    """The same cell too many in some rows (numbers from 1; all but the header for None)."""
    return edit("small.inter", lambda lines: [text + "\t0" if (at in rows if rows else at > 1) else text
                                              for at, text in enumerate(lines, 1)])


LAST = 1 + 39 * 6 + 40 + 40     # lines of small.inter
INTER = {
    "no x_label": (line(1, lambda text: text.replace("x_label", "split")), ["line 1", "lacks x_label", "0 train, 1 valid, 2 test"]),
    "no userID, no itemID": (line(1, lambda text: text.replace("userID", "u").replace("itemID", "i")), ["line 1", "lacks userID, itemID"]),
    "commas": (edit("small.inter", lambda lines: [text.replace("\t", ",") for text in lines]), ["line 1", "separated by tabs"]),
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
    "not UTF-8": (lambda folder: (folder / "small.inter").write_bytes((folder / "small.inter").read_bytes() + b"\xff\xfe\t1\t4\t0\n"),
                  ["utf-8", "tab-separated table"]),
}


@pytest.mark.parametrize("case", INTER)
def test_inter(case, inter, capsys):
    breaking, words = INTER[case]
    breaking(inter)
    check(inter, capsys, [], ["small.inter", *words])


def test_a_row_too_long_is_not_read_as_shifted_columns(small_dataset, capsys):
    rows = "9\t0\t1\t0\n9\t0\t2\t1\n9\t1\t1\t2\n9\t0\t0\t2\n"      # a column before userID
    for name in ("train.txt", "valid.txt", "test.txt"):
        (small_dataset / name).unlink()
    (small_dataset / "small.inter").write_text("userID\titemID\tx_label\n" + rows)
    check(small_dataset, capsys, ["--topks", "2"], ["small.inter", "tab"])


def test_two_tables(inter, capsys):
    (inter / "small.inter").rename(inter / "a.inter")
    (inter / "b.inter").write_text("")
    check(inter, capsys, [], ["2 .inter tables", "small.inter", "keep one"])


def test_forced_format_without_its_files(inter, capsys):
    check(inter, capsys, ["--data_format", "txt"], ["train.txt: cannot be read", "needs"])


# ---------------------------------------------------------------- features

def text_as(array):
    return lambda folder: np.save(folder / "text_feat.npy", array, allow_pickle=True)


def text_bytes(content):
    return lambda folder: (folder / "text_feat.npy").write_bytes(content)


def with_value(row, value):
    features = np.ones((30, 12), np.float32)
    features[row, 3] = value
    return features


def too_few_rows(folder):
    np.save(folder / "text_feat.npy", np.ones((20, 12), np.float32))
    (folder / "image_feat.npy").unlink()


FEATURES = {
    "pickled objects": (text_as(np.array([[{}], [1]], dtype=object)), ["not a plain .npy array", "numpy.save"]),
    "rank 1": (text_as(np.ones(30, np.float32)), ["shape (30,)", "matrix of items x dimensions"]),
    "rank 3": (text_as(np.ones((30, 2, 2), np.float32)), ["shape (30, 2, 2)", "matrix of items x dimensions"]),
    "no columns": (text_as(np.ones((30, 0), np.float32)), ["shape (30, 0)", "matrix of items x dimensions"]),
    "integers": (text_as(np.ones((30, 4), np.int64)), ["type int64", "float16, float32 or float64"]),
    "complex": (text_as(np.ones((30, 4), np.complex64)), ["type complex64", "float16, float32 or float64"]),
    "too few rows for the interactions": (too_few_rows, ["has 20 rows for 29 items", "row r"]),
    "fewer rows than another modality": (lambda folder: np.save(folder / "image_feat.npy", np.ones((35, 4), np.float32)),
                                         ["has 30 rows for 35 items", "row r"]),
    "NaN": (text_as(with_value(7, np.nan)), ["row 7", "NaN", "replace it"]),
    "Inf": (text_as(with_value(29, -np.inf)), ["row 29", "Inf", "replace it"]),
    "too large for float32": (text_as(with_value(3, np.float32(0)).astype(np.float64) + np.eye(30, 12) * 1e200), ["row 0", "replace it"]),
    "empty file": (text_bytes(b""), ["not a plain .npy array", "numpy.save"]),
    "text": (text_bytes(b"0.1 0.2\n0.3 0.4\n"), ["not a plain .npy array", "numpy.save"]),
    "starts like a zip": (text_bytes(b"PK\x03\x04 and then nothing"), ["text_feat.npy: is", ".npy"]),
    "header that does not parse": (text_bytes(b"\x93NUMPY\x01\x00\x10\x00{garbage(((((((\n"), ["not a plain .npy array", "numpy.save"]),
    "cut off": (lambda folder: text_bytes((folder / "text_feat.npy").read_bytes()[:-9])(folder), ["not a plain .npy array", "numpy.save"]),
    "a directory": (lambda folder: (remove("text_feat.npy")(folder), (folder / "text_feat.npy").mkdir()), ["cannot be read", ".npy"]),
}


@pytest.mark.parametrize("case", FEATURES)
def test_features(case, small_dataset, capsys):
    breaking, words = FEATURES[case]
    breaking(small_dataset)
    check(small_dataset, capsys, ["--model", "lgn_mm"], ["text_feat.npy", *words])


def test_named_features_that_are_missing(small_dataset, capsys):
    check(small_dataset, capsys, ["--model", "lgn_mm", "--image_feat", small_dataset / "no.npy"], ["no.npy: cannot be read", ".npy file of items"])


def test_npz_given_as_features(small_dataset, capsys, tmp_path):
    np.savez(tmp_path / "f.npz", a=np.ones((30, 4), np.float32))
    check(small_dataset, capsys, ["--model", "lgn_mm", "--text_feat", tmp_path / "f.npz"], ["f.npz: is an archive", ".npy file"])


def test_lgn_mm_without_any_features(small_dataset, capsys):
    (small_dataset / "text_feat.npy").unlink()
    (small_dataset / "image_feat.npy").unlink()
    check(small_dataset, capsys, ["--model", "lgn_mm"], ["small", "needs features", "--text_feat"])


def test_user_features_with_wrong_rows(small_dataset, capsys, tmp_path):
    np.save(tmp_path / "users.npy", np.ones((39, 4), np.float32))
    check(small_dataset, capsys, ["--model", "lgn_mm", "--user_text_feat", tmp_path / "users.npy"], ["users.npy: has 39 rows for 40 users", "row r"])


def test_user_features_that_are_missing(small_dataset, capsys):
    check(small_dataset, capsys, ["--model", "lgn_mm", "--user_text_feat", "no.npy"], ["no.npy: cannot be read", ".npy file of users"])


def test_mean_user_features_without_text(small_dataset, capsys):
    (small_dataset / "text_feat.npy").unlink()
    check(small_dataset, capsys, ["--model", "lgn_mm", "--user_text_feat", "mean"], ["--user_text_feat mean", "add --text_feat"])


# ---------------------------------------------------------------- neighbour files

def compressed_and_damaged(path):
    np.savez_compressed(path, nbr=np.random.default_rng(0).integers(0, 30, (30, 6)))
    content = bytearray(path.read_bytes())
    content[100:130] = bytes(30)
    path.write_bytes(content)


KNN = {
    "missing": (lambda path: None, ["cannot be read", "nbr [30, k]"]),
    "too few rows": (lambda path: np.savez(path, nbr=np.zeros((29, 6), int)), ["(29, 6)", "integers [30, k]"]),
    "rank 1": (lambda path: np.savez(path, nbr=np.zeros(30, int)), ["(30,)", "integers [30, k]"]),
    "floats": (lambda path: np.savez(path, nbr=np.zeros((30, 6))), ["float64", "integers [30, k]"]),
    "too large an id": (lambda path: np.savez(path, nbr=np.eye(30, 6, -4, dtype=int) * 30), ["row 4", "neighbour 30", "0 to 29"]),
    "negative id": (lambda path: np.savez(path, nbr=-np.eye(30, 6, -9, dtype=int)), ["row 9", "neighbour -1", "0 to 29"]),
    "no nbr": (lambda path: np.savez(path, neighbours=np.zeros((30, 6), int)), ["array nbr [30, k]"]),
    "pickled": (lambda path: np.savez(path, nbr=np.array([[{}]], dtype=object)), ["array nbr [30, k]"]),
    "not a zip": (lambda path: path.write_text("0 1 2\n"), ["not a .npz archive", "nbr [30, k]"]),
    "empty": (lambda path: path.write_bytes(b""), ["not a .npz archive", "nbr [30, k]"]),
    "a plain .npy": (lambda path: np.save(path.open("wb"), np.zeros((30, 6), int)), ["not a .npz archive", "nbr [30, k]"]),
    "damaged": (compressed_and_damaged, ["not a .npz archive", "nbr [30, k]"]),
}


@pytest.mark.parametrize("case", KNN)
def test_neighbour_file(case, small_dataset, capsys, tmp_path):
    breaking, words = KNN[case]
    breaking(tmp_path / "knn.npz")
    check(small_dataset, capsys, ["--model", "lgn_mm", "--item_text_graph", tmp_path / "knn.npz"], ["knn.npz", *words])


# ---------------------------------------------------------------- flags

@pytest.mark.parametrize("extra, words", [
    (["--model", "lgn_mm", "--item_knn_k", 30], ["30 neighbours", "30 rows", "lower --item_knn_k"]),
    (["--model", "lgn_mm", "--user_text_feat", "mean", "--user_knn_k", 40], ["40 neighbours", "40 rows", "--user_knn_k"]),
    (["--topks", "10,31"], ["--topks 31", "30 items", "smaller K"]),
    (["--topks", "[10"], ["--topks", "'[10'", "10,20"]),
    (["--model", "lgn_mm", "--recdim", 60, "--attn_heads", 8], ["--recdim 60", "--attn_heads 8", "change either"]),
    (["--no_such_flag", 1], ["--no_such_flag", "--help"]),
    (["--epochs", "ten"], ["--epochs", "ten", "--help"]),
    (["--epochs", "0"], ["--epochs 0", "at least 1"]),
    (["--model", "svd"], ["--model", "svd", "lgn_mm"]),
    (["--tensorboard", "2"], ["--tensorboard", "2", "0, 1"]),
    (["--edge_weight", "rating"], ["small", "no ratings", "--data_format inter"]),
    (["--model", "lgn_mm", "--use_multimodal", 0], ["lgn_mm", "needs features", "drop --use_multimodal 0"]),
    (["--valid_metric", "ndcg@7"], ["--valid_metric ndcg@7", "ndcg@10", "--topks"]),
    (["--valid_metric", "auc@10"], ["--valid_metric auc@10", "recall@20"]),
    (["--lr", "-1"], ["--lr -1.0", "at least 0"]),
    (["--lr", "nan"], ["--lr nan", "at least 0"]),
    (["--lr", "inf"], ["--lr inf", "finite"]),
    (["--eta", "1.5"], ["--eta 1.5", "at most 1"]),
    (["--seed", "-3"], ["--seed -3", "at least 0"]),
    (["--dat", "small"], ["--dat", "--help"]),
    (["stray"], ["stray", "--help"]),
    (["--lr"], ["--lr", "--help"]),
], ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) and str(value[0]).startswith("--") else "")
def test_flags(extra, words, small_dataset, capsys):
    check(small_dataset, capsys, extra, words)


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_path_that_is_a_file(below, small_dataset, capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    check(small_dataset, capsys, ["--path", tmp_path / below], ["file", "cannot make the run folder", "--path"])
    assert (tmp_path / "file").read_text() == "in the way"


def test_gpu_id_does_not_matter_on_the_cpu():
    assert choose_device(Config(cuda=0, gpu_id=99)) == torch.device("cpu")


# ---------------------------------------------------------------- as a user runs it

@pytest.mark.parametrize("breaking, extra, words", [
    (append("train.txt", "3 4x"), [], ["train.txt, line 40"]),
    (text_as(with_value(7, np.nan)), ["--model", "lgn_mm"], ["text_feat.npy, row 7"]),
    (lambda folder: None, ["--epochs", "ten"], ["--epochs"])], ids=["id", "nan", "flag"])
def test_as_a_command(breaking, extra, words, small_dataset):
    breaking(small_dataset)
    done = subprocess.run([sys.executable, ROOT / "main.py", *command(small_dataset, *extra)], capture_output=True, text=True, timeout=120,
                          cwd=small_dataset.parents[1])
    assert_refused(done.returncode, done.stderr, words)
    assert "Traceback" not in done.stdout + done.stderr
    assert not (small_dataset.parents[1] / "runs").exists()
