"""data/reconstruct.py: vectors with a given kNN graph; graphs that are none."""

import numpy as np
import pytest

from data.reconstruct import main

N, K = 150, 6


def graph(seed=0, own_id=True):
    """(nbr, cos) of random unit vectors in eight dimensions, by sorting all cosines."""
    vectors = np.random.default_rng(seed).standard_normal((N, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, 2 if own_id else -2)
    nearest = np.argsort(-cosines, axis=1)[:, :K]
    found = np.take_along_axis(cosines, nearest, 1)
    return nearest.astype(np.int32), np.minimum(found, 1).astype(np.float32)


def write(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize("own_id", [True, False])
def test_vectors_have_the_neighbours_and_cosines_of_the_graph(tmp_path, capsys, own_id):
    neighbours, cosines = graph(own_id=own_id)
    path, output = write(tmp_path / "graph.npz", nbr=neighbours, cos=cosines), tmp_path / "made.npy"
    flags = ["--dim", "32", "--epochs", "100", "--block", "50"]
    assert main([path, "--output", str(output), *flags]) == 0
    vectors = np.load(output)
    assert vectors.shape == (N, 32) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    made = vectors @ vectors.T
    assert np.abs(np.take_along_axis(made, neighbours.astype(int), 1) - cosines).mean() < 0.03
    np.fill_diagonal(made, 2 if own_id else -2)
    nearest = np.argsort(-made, axis=1)[:, :K]
    kept = [len({*a} & {*b}) - own_id for a, b in zip(nearest, neighbours)]
    share = np.sum(kept) / (N * (K - own_id))
    assert share > 0.9
    assert f"{share:.1%} of the listed neighbours" in capsys.readouterr().out
    first = output.read_bytes()
    assert main([path, "--output", str(output), *flags]) == 0 and output.read_bytes() == first


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(nbr=np.zeros((N, K))), "nbr of whole numbers"),
        (dict(nbr=np.zeros((N, K + 1), int)), "tables [n, k] of the same shape"),
        (dict(nbr=np.zeros((N, 0), int), cos=np.zeros((N, 0))), "with k of 1 or more"),
        (dict(cos=np.full((N, K), "a")), "cos of floats"),
        (dict(nbr=np.full((N, K), N)), f"row numbers from 0 to {N - 1}"),
        (dict(nbr=np.full((N, K), -1)), f"row numbers from 0 to {N - 1}"),
        (dict(cos=np.full((N, K), 3.0)), "cosines, from -1 to 1"),
        (dict(cos=np.full((N, K), np.nan)), "cosines, from -1 to 1"),
        (dict(cos=np.array(["a"], object)), "is not a .npz archive with the arrays nbr and cos"),
    ],
)
def test_what_is_no_graph_is_refused(tmp_path, capsys, change, words):
    neighbours, cosines = graph()
    path = write(tmp_path / "graph.npz", **{"nbr": neighbours, "cos": cosines, **change})
    assert main([path, "--output", str(tmp_path / "made.npy")]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "made.npy").exists()


def test_bad_flags_and_absent_files_are_refused(tmp_path, capsys):
    neighbours, cosines = graph()
    path = write(tmp_path / "graph.npz", nbr=neighbours, cos=cosines)
    for argv, words in (
        ([path, "--output", "a.npz"], "must end in .npy"),
        ([path, "--output", "a.npy", "--dim", "0"], "must be positive"),
        ([path, "--output", "a.npy", "--seed", "-1"], "--seed -1: must be at least 0"),
        ([path, "--output", "a.npy", "--seed", str(2**64)], "below 2^63"),
        (
            [str(tmp_path / "absent.npz"), "--output", str(tmp_path / "absent" / "a.npy")],
            "its folder does not",
        ),
        (
            [path, "--output", str(tmp_path / "a.npy"), "--epochs", "1", "--lr", "inf"],
            "--lr inf: the fit has",
        ),
        ([str(tmp_path / "absent.npz"), "--output", "a.npy"], "cannot be read"),
    ):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1
    assert not (tmp_path / "a.npy").exists()
