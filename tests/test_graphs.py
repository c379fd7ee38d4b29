"""kNN graphs and their cache, compared with naive loops."""

import io
import os
import sys

import numpy as np
import pytest
import torch
from helpers import naive_neighbours, random_features

from data import graphs
from data.graphs import cached_neighbours, nearest_neighbours, read_neighbours
from data.progress import progress_bar

CPU = torch.device("cpu")


# ---------------------------------------------------------------- nearest neighbours


@pytest.mark.parametrize("block", [1, 5, 16, 1024])
@pytest.mark.parametrize("k", [1, 4, 32])
def test_neighbours_equal_loops_for_every_block_size(block, k):
    features = random_features(33, 6) * np.random.default_rng(1).uniform(0.1, 50, (33, 1)).astype(np.float32)
    got = nearest_neighbours(features, k, CPU, block)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, naive_neighbours(features, k))


def test_neighbours_are_exact_where_blocks_are_searched_by_groups_of_columns():
    features = random_features(1100, 6)
    unit = features.astype(np.float64) / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -2)
    got = nearest_neighbours(features, 3, CPU, block=512)
    np.testing.assert_allclose(
        np.take_along_axis(similarity, got, 1), -np.sort(-similarity, axis=1)[:, :3], atol=1e-6
    )


def test_a_row_is_never_its_own_neighbour_even_if_all_similarities_are_negative():
    n = 5
    # The corners of a simplex: every pair has cosine -1/(n-1).
    features = (np.eye(n) - 1 / n).astype(np.float32)
    assert (features @ features.T - np.diag(np.diag(features @ features.T)) <= 0).all()
    for k in (1, 3, n - 1):
        got = nearest_neighbours(features, k, CPU)
        assert not (got == np.arange(n)[:, None]).any()
        assert all(len(set(row)) == k for row in got.tolist())


def test_zero_rows_list_themselves_and_are_no_neighbours_of_others():
    features = random_features(12, 4)
    features[[0, 5, 11]] = 0
    for k in (3, 8):
        got = nearest_neighbours(features, k, CPU, block=5)
        np.testing.assert_array_equal(got, naive_neighbours(features, k))
        assert not np.isin(got[[1, 2, 3, 4, 6, 7, 8, 9, 10]], [0, 5, 11]).any()
        assert (got[[0, 5, 11]] == np.array([[0], [5], [11]])).all()


def test_a_row_is_padded_with_itself_where_all_others_are_zero():
    features = np.zeros((4, 3), np.float32)
    features[1:3] = random_features(2, 3)
    np.testing.assert_array_equal(
        nearest_neighbours(features, 3, CPU), [[0, 0, 0], [2, 1, 1], [1, 2, 2], [3, 3, 3]]
    )


class Terminal(io.StringIO):
    """A stderr that may say that it is a terminal."""

    def __init__(self, is_terminal):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_progress_bar_is_shown_on_terminals_only(monkeypatch, is_terminal):
    stderr = Terminal(is_terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    # Without the delay, for which a small graph is too fast.
    monkeypatch.setattr(graphs, "progress_bar", lambda **options: progress_bar(**{**options, "delay": 0}))
    nearest_neighbours(random_features(12, 4), 3, CPU, block=4)
    assert ("kNN graph" in stderr.getvalue()) == bool(stderr.getvalue()) == is_terminal


@pytest.mark.parametrize("scale", [1e-20, 1e-14, 1e15, 1e25])
def test_neighbours_do_not_depend_on_the_length_of_a_row(scale):
    features = random_features(20, 6)
    want = nearest_neighbours(features, 3, CPU)
    features[::2] *= np.float32(scale)
    np.testing.assert_array_equal(nearest_neighbours(features, 3, CPU), want)


@pytest.mark.parametrize("modality, min_overlap", [("text", 0.97), ("image", 0.94)])
def test_neighbours_of_baby_agree_with_the_published_lists(baby, modality, min_overlap):
    features = np.load(baby / f"{modality}_feat_recon_d128.npy")
    # The published lists of 10 contain the item itself.
    published, _ = read_neighbours(baby / f"{modality}_knn10.npz", 7050, 9)
    got = nearest_neighbours(features, 9, CPU)
    assert not (got == np.arange(7050)[:, None]).any()
    overlap = np.mean([len(set(a) & set(b)) / 9 for a, b in zip(got.tolist(), published.tolist())])
    assert overlap > min_overlap


# ---------------------------------------------------------------- cache


def must_not_build(*_):
    raise AssertionError("the kNN graph was built although it is in the cache")


def test_the_second_call_reads_the_cache(tmp_path, monkeypatch):
    features = random_features(12, 4)
    first, notes = cached_neighbours(features, 3, tmp_path / "deep" / "cache", 0, CPU)
    assert notes == []
    np.testing.assert_array_equal(first, naive_neighbours(features, 3))
    monkeypatch.setattr(graphs, "nearest_neighbours", must_not_build)
    again, notes = cached_neighbours(features.copy(), 3, tmp_path / "deep" / "cache", 0, CPU)
    assert notes == []
    np.testing.assert_array_equal(again, first)
    # rebuild=1 ignores the cache.
    with pytest.raises(AssertionError, match="was built"):
        cached_neighbours(features, 3, tmp_path / "deep" / "cache", 1, CPU)


def test_each_k_and_each_feature_matrix_has_its_own_cache_file(tmp_path):
    features = random_features(12, 4)
    for matrix, k in ((features, 3), (features, 4), (features + 1, 3), (features.reshape(16, 3), 3)):
        got, _ = cached_neighbours(matrix, k, tmp_path, 0, CPU)
        np.testing.assert_array_equal(got, naive_neighbours(matrix, k))
    assert len(list(tmp_path.iterdir())) == 4


def test_a_cache_damaged_at_any_byte_never_returns_wrong_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of files would take minutes
    features = random_features(8, 4)
    want, _ = cached_neighbours(features, 3, tmp_path, 0, CPU)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    # Every eighth byte, and every byte of the zip directory at the end.
    positions = [*range(0, len(good) - 240, 8), *range(len(good) - 240, len(good))]
    damaged = [good[:i] + bytes([good[i] ^ 0xFF]) + good[i + 1 :] for i in positions]
    damaged += [good[:size] for size in range(0, len(good), 40)] + [b"", b"hello\n", b"\x93NUMPY"]
    n_rebuilt = 0
    for content in damaged:
        path.write_bytes(content)
        got, notes = cached_neighbours(features, 3, tmp_path, 0, CPU)
        np.testing.assert_array_equal(got, want)
        if notes:
            n_rebuilt += 1
            assert str(path) in notes[0] and "damaged" in notes[0]
            assert cached_neighbours(features, 3, tmp_path, 0, CPU)[1] == []
    assert n_rebuilt > len(damaged) / 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_valid_archive_whose_neighbours_do_not_match_the_checksum_is_rebuilt(tmp_path):
    features = random_features(8, 4)
    want, _ = cached_neighbours(features, 3, tmp_path, 0, CPU)
    (path,) = tmp_path.iterdir()
    with np.load(path) as stored:
        np.savez(tmp_path / "other.npz", nbr=stored["nbr"][::-1], sha256=stored["sha256"])
    (tmp_path / "other.npz").replace(path)
    got, notes = cached_neighbours(features, 3, tmp_path, 0, CPU)
    np.testing.assert_array_equal(got, want)
    assert len(notes) == 1 and "damaged" in notes[0]


def test_a_cache_folder_that_cannot_be_written_is_a_note_and_no_failure(tmp_path):
    (tmp_path / "file").write_text("in the way")
    features = random_features(8, 4)
    got, notes = cached_neighbours(features, 3, tmp_path / "file" / "cache", 0, CPU)
    np.testing.assert_array_equal(got, naive_neighbours(features, 3))
    assert len(notes) == 1 and "not cached" in notes[0] and "--cache_dir" in notes[0]


# ---------------------------------------------------------------- neighbours from a file


def test_read_neighbours_skips_the_row_itself_and_keeps_the_first_k(tmp_path):
    nbr = np.array([[0, 3, 1, 2], [3, 1, 0, 2], [0, 1, 3, 4], [2, 1, 0, 3], [0, 1, 2, 4]], dtype=np.int32)
    np.savez(tmp_path / "k.npz", nbr=nbr, cos=np.zeros(3))
    got, notes = read_neighbours(tmp_path / "k.npz", 5, 2)
    want = [[j for j in row if j != i][:2] for i, row in enumerate(nbr.tolist())]
    assert got.tolist() == want and notes == []


def test_read_neighbours_notes_rows_with_fewer_than_k(tmp_path):
    np.savez(tmp_path / "k.npz", nbr=np.array([[1, 2], [2, 1], [0, 1]]))
    got, notes = read_neighbours(tmp_path / "k.npz", 3, 2)
    # Row 1 lists itself, so it is padded with its own id.
    assert got.tolist() == [[1, 2], [2, 1], [0, 1]]
    assert len(notes) == 1 and "k.npz" in notes[0] and "k = 2" in notes[0]
    assert read_neighbours(tmp_path / "k.npz", 3, 1)[1] == []
    assert "k = 9" in read_neighbours(tmp_path / "k.npz", 3, 9)[1][0]


def test_read_neighbours_of_baby(baby):
    published = np.load(baby / "image_knn10.npz")["nbr"]
    got, notes = read_neighbours(baby / "image_knn10.npz", 7050, 5)
    assert got.tolist() == [[j for j in row if j != i][:5] for i, row in enumerate(published.tolist())]
    assert notes == []
