"""Invalid feature files: exit code 2 and one line.

Nothing is unpickled, and no memory is allocated for the size that a damaged header claims.
"""

import numpy as np
import pytest
from broken import (
    Trap,
    assert_training_refused,
    no_change,
    npy,
    ones_but,
    remove_file,
    replace_by_folder,
    text_array,
    text_bytes,
)


def save_too_few_rows(folder):
    np.save(folder / "text_feat.npy", np.ones((20, 12), np.float32))
    (folder / "image_feat.npy").unlink()


NOT_NPY = ["not a plain .npy array", "numpy.save"]
MATRIX = "matrix of items x dimensions"
FLOATS = "float16, float32 or float64"
FEATURES = {
    "pickled objects": (text_array(np.array([[{}], [1]], dtype=object)), NOT_NPY),
    "rank 1": (text_array(np.ones(30, np.float32)), ["shape (30,)", MATRIX]),
    "rank 3": (text_array(np.ones((30, 2, 2), np.float32)), ["shape (30, 2, 2)", MATRIX]),
    "no columns": (text_array(np.ones((30, 0), np.float32)), ["shape (30, 0)", MATRIX]),
    "integers": (text_array(np.ones((30, 4), np.int64)), ["type int64", FLOATS]),
    "complex": (text_array(np.ones((30, 4), np.complex64)), ["type complex64", FLOATS]),
    "too few rows for the interactions": (save_too_few_rows, ["has 20 rows for 29 items", "row r"]),
    "fewer rows than another modality": (
        lambda folder: np.save(folder / "image_feat.npy", np.ones((35, 4), np.float32)),
        ["has 30 rows for 35 items", "row r"],
    ),
    "NaN": (text_array(ones_but(7, np.nan)), ["row 7", "NaN", "replace it"]),
    "Inf": (text_array(ones_but(29, -np.inf)), ["row 29", "Inf", "replace it"]),
    "too large for float32": (
        text_array(ones_but(3, np.float32(0)).astype(np.float64) + np.eye(30, 12) * 1e200),
        ["row 0", "replace it"],
    ),
    "empty file": (text_bytes(b""), NOT_NPY),
    "text": (text_bytes(b"0.1 0.2\n0.3 0.4\n"), NOT_NPY),
    "starts like a zip": (text_bytes(b"PK\x03\x04 and then nothing"), ["text_feat.npy: is", ".npy"]),
    "header that does not parse": (text_bytes(b"\x93NUMPY\x01\x00\x10\x00{garbage(((((((\n"), NOT_NPY),
    "cut off": (lambda folder: text_bytes((folder / "text_feat.npy").read_bytes()[:-9])(folder), NOT_NPY),
    "a folder": (replace_by_folder("text_feat.npy"), ["cannot be read", ".npy"]),
    "header of a terabyte": (text_bytes(npy("(30, 10000000000)")), NOT_NPY),
    "header beyond 64 bits": (text_bytes(npy("(30, 99999999999999999999)")), NOT_NPY),
    "header whose size overflows to zero": (text_bytes(npy("(4611686018427387904, 4)")), NOT_NPY),
    "huge and empty": (text_bytes(npy("(4611686018427387904, 0)")), ["text_feat.npy: ", "numpy.save"]),
    "negative shape": (text_bytes(npy("(-30, -12)")), NOT_NPY),
    "seventy dimensions": (text_bytes(npy("(" + "1," * 70 + ")")), NOT_NPY),
    "thirty dimensions": (text_bytes(npy("(" + "1," * 30 + ")")), [MATRIX]),
    "nested shape": (text_bytes(npy("((30, 12), 1)")), NOT_NPY),
    "deeply nested header": (text_bytes(npy("(" * 900 + ")" * 900)), NOT_NPY),
    "header of ten megabytes": (text_bytes(npy("(30, 12)" + " " * 10**7, version=2)), NOT_NPY),
    "header that contains code": (text_bytes(npy("(__import__('os').getpid(), 12)")), NOT_NPY),
    "structured type": (text_bytes(npy("(16,)", "[('a', '<f4')]")), [MATRIX]),
    "other byte order": (text_array(np.ones((30, 12), ">f4")), ["type >f4", FLOATS]),
    "unknown version": (text_bytes(b"\x93NUMPY\x09\x00" + bytes(100)), NOT_NPY),
}


@pytest.mark.parametrize("case", FEATURES)
@pytest.mark.filterwarnings("error", "ignore::ResourceWarning", "ignore:Sparse")
def test_features(case, small_dataset, capsys):
    break_dataset, words = FEATURES[case]
    break_dataset(small_dataset)
    assert_training_refused(small_dataset, capsys, ["--model", "lgn_mm"], ["text_feat.npy", *words])


def remove_all_features(folder):
    (folder / "text_feat.npy").unlink()
    (folder / "image_feat.npy").unlink()


def save_archive(folder):
    np.savez(folder / "f.npz", a=np.ones((30, 4), np.float32))


def save_user_features_with_a_row_too_few(folder):
    np.save(folder / "users.npy", np.ones((39, 4), np.float32))


# case: (break_dataset, flag, its value or a file in the dataset folder, words)
FILES = {
    "given but missing": (
        no_change,
        "--image_feat",
        "no.npy",
        ["no.npy: cannot be read", ".npy file of items"],
    ),
    "archive": (save_archive, "--text_feat", "f.npz", ["f.npz: is an archive", ".npy file"]),
    "none for lgn_mm": (remove_all_features, "--topks", "10", ["small", "needs features", "--text_feat"]),
    "user features with a row too few": (
        save_user_features_with_a_row_too_few,
        "--user_text_feat",
        "users.npy",
        ["users.npy: has 39 rows for 40 users", "row r"],
    ),
    "user features that are missing": (
        no_change,
        "--user_text_feat",
        "no.npy",
        ["no.npy: cannot be read", ".npy file of users"],
    ),
    "mean of missing text features": (
        remove_file("text_feat.npy"),
        "--user_text_feat",
        "mean",
        ["--user_text_feat mean", "add --text_feat"],
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_feature_files(case, small_dataset, capsys):
    break_dataset, flag, value, words = FILES[case]
    break_dataset(small_dataset)
    value = small_dataset / value if value.endswith(("npy", "npz")) else value
    assert_training_refused(small_dataset, capsys, ["--model", "lgn_mm", flag, value], words)


def test_a_pickle_payload_does_not_run(small_dataset, capsys, tmp_path):
    marker = tmp_path / "marker"
    text_array(np.array([[Trap(marker)] * 12] * 30, dtype=object))(small_dataset)
    assert_training_refused(
        small_dataset, capsys, ["--model", "lgn_mm"], ["text_feat.npy: is not a plain .npy array"]
    )
    assert not marker.exists()
    # The payload does run where pickles are allowed.
    np.load(small_dataset / "text_feat.npy", allow_pickle=True)
    assert marker.exists()


CASES = {**FEATURES, **FILES, "pickle payload": None}
