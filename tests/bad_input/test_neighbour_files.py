"""Broken neighbour files."""

import io
import zipfile

import numpy as np
import pytest
from broken import Trap, check, npy


def compressed_and_damaged(path):
    np.savez_compressed(path, nbr=np.random.default_rng(0).integers(0, 30, (30, 6)))
    content = bytearray(path.read_bytes())
    content[100:130] = bytes(30)
    path.write_bytes(content)


KNN = {
    "missing": (lambda path: None, ["cannot be read", "nbr [30, k]"]),
    "too few rows": (
        lambda path: np.savez(path, nbr=np.zeros((29, 6), int)),
        ["(29, 6)", "integers [30, k]"],
    ),
    "rank 1": (lambda path: np.savez(path, nbr=np.zeros(30, int)), ["(30,)", "integers [30, k]"]),
    "floats": (lambda path: np.savez(path, nbr=np.zeros((30, 6))), ["float64", "integers [30, k]"]),
    "too large an id": (
        lambda path: np.savez(path, nbr=np.eye(30, 6, -4, dtype=int) * 30),
        ["row 4", "neighbour 30", "0 to 29"],
    ),
    "negative id": (
        lambda path: np.savez(path, nbr=-np.eye(30, 6, -9, dtype=int)),
        ["row 9", "neighbour -1", "0 to 29"],
    ),
    "no nbr": (lambda path: np.savez(path, neighbours=np.zeros((30, 6), int)), ["array nbr [30, k]"]),
    "pickled": (lambda path: np.savez(path, nbr=np.array([[{}]], dtype=object)), ["array nbr [30, k]"]),
    "not a zip": (lambda path: path.write_text("0 1 2\n"), ["not a .npz archive", "nbr [30, k]"]),
    "empty": (lambda path: path.write_bytes(b""), ["not a .npz archive", "nbr [30, k]"]),
    "a plain .npy": (
        lambda path: np.save(path.open("wb"), np.zeros((30, 6), int)),
        ["not a .npz archive", "nbr [30, k]"],
    ),
    "damaged": (compressed_and_damaged, ["not a .npz archive", "nbr [30, k]"]),
    "header of a terabyte": (
        lambda path: members(path, {"nbr.npy": npy("(30, 10000000000)", "'<i8'")}),
        ["array nbr [30, k]"],
    ),
    "header whose size overflows": (
        lambda path: members(path, {"nbr.npy": npy("(4611686018427387904, 8)", "'<i8'")}),
        ["array nbr [30, k]"],
    ),
    "negative shape": (
        lambda path: members(path, {"nbr.npy": npy("(-2, -4)", "'<i8'")}),
        ["array nbr [30, k]"],
    ),
    "header that lies by one row": (
        lambda path: members(path, {"nbr.npy": npy("(31, 6)", "'<i8'", bytes(30 * 48))}),
        ["array nbr [30, k]"],
    ),
    "forty dimensions": (lambda path: np.savez(path, nbr=np.zeros((1,) * 40, int)), ["integers [30, k]"]),
    "bomb": (lambda path: bomb(path), ["array nbr [30, k]"]),
    "unknown version": (
        lambda path: members(path, {"nbr.npy": b"\x93NUMPY\x09\x00" + bytes(90)}),
        ["array nbr [30, k]"],
    ),
    "a directory": (lambda path: path.mkdir(), ["cannot be read", "nbr [30, k]"]),
    "a member behind another name": (
        lambda path: members(path, {"nbr": npy("(30, 10000000000)", "'<i8'"), "nbr.npy": b"no array"}),
        ["array nbr [30, k]"],
    ),
}


def members(path, content):
    """A zip archive of these members, whatever they are."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def bomb(path):
    """A quarter of a gigabyte of zeros in a quarter of a megabyte."""
    buffer = io.BytesIO(npy("(30, 1000000)", "'<i8'", b""))
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("nbr.npy", "w") as member,
    ):
        member.write(buffer.getvalue())
        for _ in range(240):
            member.write(bytes(10**6))


@pytest.mark.parametrize("case", KNN)
@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")
def test_neighbour_file(case, small_dataset, capsys, tmp_path):
    breaking, words = KNN[case]
    breaking(tmp_path / "knn.npz")
    check(
        small_dataset,
        capsys,
        ["--model", "lgn_mm", "--item_text_graph", tmp_path / "knn.npz"],
        ["knn.npz", *words],
    )


def test_a_pickle_payload_does_not_run(small_dataset, capsys, tmp_path):
    marker = tmp_path / "marker"
    np.savez(tmp_path / "knn.npz", nbr=np.array([[Trap(marker)] * 6] * 30, dtype=object))
    check(
        small_dataset,
        capsys,
        ["--model", "lgn_mm", "--item_text_graph", tmp_path / "knn.npz"],
        ["knn.npz", "array nbr [30, k]"],
    )
    assert not marker.exists()
    np.load(tmp_path / "knn.npz", allow_pickle=True)["nbr"]
    assert marker.exists()  # the trap is armed


CASES = {**KNN, "pickle payload": None}
