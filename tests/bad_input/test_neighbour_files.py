"""Invalid .npz files of neighbours: exit code 2 and one line, nothing is unpickled."""

import zipfile

import numpy as np
import pytest
from broken import Trap, assert_training_refused, npy

# ---------------------------------------------------------------- how to damage a file


def save_damaged(path):
    np.savez_compressed(path, nbr=np.random.default_rng(0).integers(0, 30, (30, 6)))
    content = bytearray(path.read_bytes())
    content[100:130] = bytes(30)
    path.write_bytes(content)


def save_members(path, content):
    """Save a zip archive of {member name: bytes}, valid or not."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def save_member(content):
    """Return a function that saves an archive whose only member is nbr.npy with these bytes."""
    return lambda path: save_members(path, {"nbr.npy": content})


def save_bomb(path):
    """Save a quarter of a gigabyte of zeros in a quarter of a megabyte."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("nbr.npy", "w") as member,
    ):
        member.write(npy("(30, 1000000)", "'<i8'", b""))
        for _ in range(240):
            member.write(bytes(10**6))


# ---------------------------------------------------------------- the cases


def save_nbr(array):
    """Return a function that saves an archive with this array as nbr."""
    return lambda path: np.savez(path, nbr=array)


TERABYTE = npy("(30, 10000000000)", "'<i8'")
NOT_NBR = ["array nbr [30, k]"]
NOT_NPZ = ["not a .npz archive", "nbr [30, k]"]
NOT_INTEGERS = ["integers [30, k]"]
UNREADABLE = ["cannot be read", "nbr [30, k]"]
KNN = {
    "missing": (lambda path: None, UNREADABLE),
    "a folder": (lambda path: path.mkdir(), UNREADABLE),
    "too few rows": (save_nbr(np.zeros((29, 6), int)), ["(29, 6)", *NOT_INTEGERS]),
    "rank 1": (save_nbr(np.zeros(30, int)), ["(30,)", *NOT_INTEGERS]),
    "forty dimensions": (save_nbr(np.zeros((1,) * 40, int)), NOT_INTEGERS),
    "floats": (save_nbr(np.zeros((30, 6))), ["float64", *NOT_INTEGERS]),
    "no columns": (save_nbr(np.zeros((30, 0), int)), ["[30, 0]", "k at least 1"]),
    "too large an id": (save_nbr(np.eye(30, 6, -4, dtype=int) * 30), ["row 4", "neighbour 30", "0 to 29"]),
    "negative id": (save_nbr(-np.eye(30, 6, -9, dtype=int)), ["row 9", "neighbour -1", "0 to 29"]),
    "a neighbour twice": (save_nbr(np.ones((30, 2), int) * 7), ["row 0", "names neighbour 7 twice"]),
    "neighbours twice far apart": (
        save_nbr(np.tile(np.arange(3), (30, 2))),
        ["row 0", "names neighbour 1 twice"],
    ),
    "no nbr": (lambda path: np.savez(path, neighbours=np.zeros((30, 6), int)), NOT_NBR),
    "pickled": (save_nbr(np.array([[{}]], dtype=object)), NOT_NBR),
    "not a zip": (lambda path: path.write_text("0 1 2\n"), NOT_NPZ),
    "empty": (lambda path: path.write_bytes(b""), NOT_NPZ),
    "a plain .npy": (lambda path: path.write_bytes(npy("(30, 6)", "'<i8'", bytes(30 * 48))), NOT_NPZ),
    "damaged": (save_damaged, NOT_NPZ),
    "header of a terabyte": (save_member(TERABYTE), NOT_NBR),
    "header whose size overflows": (save_member(npy("(4611686018427387904, 8)", "'<i8'")), NOT_NBR),
    "negative shape": (save_member(npy("(-2, -4)", "'<i8'")), NOT_NBR),
    "header that is wrong by one row": (save_member(npy("(31, 6)", "'<i8'", bytes(30 * 48))), NOT_NBR),
    "bomb": (save_bomb, NOT_NBR),
    "unknown version": (save_member(b"\x93NUMPY\x09\x00" + bytes(90)), NOT_NBR),
    # zipfile finds members by their full name, numpy.load also without .npy.
    "a second member without .npy in its name": (
        lambda path: save_members(path, {"nbr": TERABYTE, "nbr.npy": b"not an array"}),
        NOT_NBR,
    ),
}


def assert_neighbours_refused(path, small_dataset, capsys, words):
    flags = ["--model", "lgn_mm", "--item_text_graph", path]
    assert_training_refused(small_dataset, capsys, flags, [path.name, *words])


@pytest.mark.parametrize("case", KNN)
@pytest.mark.filterwarnings("error", "ignore::ResourceWarning", "ignore:Sparse")
def test_neighbour_file(case, small_dataset, capsys, tmp_path):
    save, words = KNN[case]
    save(tmp_path / "knn.npz")
    assert_neighbours_refused(tmp_path / "knn.npz", small_dataset, capsys, words)


def test_a_pickle_payload_does_not_run(small_dataset, capsys, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "knn.npz"
    np.savez(path, nbr=np.array([[Trap(marker)] * 6] * 30, dtype=object))
    assert_neighbours_refused(path, small_dataset, capsys, NOT_NBR)
    assert not marker.exists()
    # The payload does run where pickles are allowed.
    np.load(path, allow_pickle=True)["nbr"]
    assert marker.exists()


CASES = {**KNN, "pickle payload": None}
