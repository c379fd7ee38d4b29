"""kNN graphs and their cache against naive loops."""

import os

import numpy as np
import pytest
import torch
from helpers import naive_neighbours, random_features

from data import graphs
from data.graphs import cached_neighbours, nearest_neighbours, read_neighbours

CPU = torch.device("cpu")


# ---------------------------------------------------------------- nearest neighbours


@pytest.mark.parametrize("block", [1, 5, 16, 1024])
@pytest.mark.parametrize("k", [1, 4, 32])
def test_neighbours_equal_loops_at_every_block_size(block, k):
    features = random_features(33, 6) * np.random.default_rng(1).uniform(0.1, 50, (33, 1)).astype(np.float32)
    got = nearest_neighbours(features, k, CPU, block)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, naive_neighbours(features, k))


def test_nearest_neighbours_across_blocks_that_are_searched_by_groups():
    features = random_features(1100, 6)
    unit = features.astype(np.float64) / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -2)
    got = nearest_neighbours(features, 3, CPU, block=512)
    np.testing.assert_allclose(
        np.take_along_axis(similarity, got, 1), -np.sort(-similarity, axis=1)[:, :3], atol=1e-6
    )


def test_an_item_is_never_its_own_neighbour_even_if_all_similarities_are_negative():
    n = 5
    features = (np.eye(n) - 1 / n).astype(np.float32)  # a simplex: every pair has cosine -1/(n-1)
    assert (features @ features.T - np.diag(np.diag(features @ features.T)) <= 0).all()
    for k in (1, 3, n - 1):
        got = nearest_neighbours(features, k, CPU)
        assert not (got == np.arange(n)[:, None]).any()
        assert all(len(set(row)) == k for row in got.tolist())


def test_zero_rows_get_themselves_and_are_nobodys_neighbour():
    features = random_features(12, 4)
    features[[0, 5, 11]] = 0
    for k in (3, 8):
        got = nearest_neighbours(features, k, CPU, block=5)
        np.testing.assert_array_equal(got, naive_neighbours(features, k))
        assert not np.isin(got[[1, 2, 3, 4, 6, 7, 8, 9, 10]], [0, 5, 11]).any()
        assert (got[[0, 5, 11]] == np.array([[0], [5], [11]])).all()


def test_a_row_fills_up_with_itself_where_all_others_are_zero():
    features = np.zeros((4, 3), np.float32)
    features[1:3] = random_features(2, 3)
    np.testing.assert_array_equal(
        nearest_neighbours(features, 3, CPU), [[0, 0, 0], [2, 1, 1], [1, 2, 2], [3, 3, 3]]
    )


@pytest.mark.parametrize("scale", [1e-20, 1e-14, 1e15, 1e25])
def test_cosine_does_not_depend_on_the_length_of_a_row(scale):
    features = random_features(20, 6)
    want = nearest_neighbours(features, 3, CPU)
    features[::2] *= np.float32(scale)
    np.testing.assert_array_equal(nearest_neighbours(features, 3, CPU), want)


@pytest.mark.parametrize("modality, least", [("text", 0.97), ("image", 0.94)])
def test_neighbours_of_real_baby_agree_with_the_published_lists(baby, modality, least):
    features = np.load(baby / f"{modality}_feat_recon_d128.npy")
    published, _ = read_neighbours(
        baby / f"{modality}_knn10.npz", 7050, 9
    )  # those lists hold the item itself
    got = nearest_neighbours(features, 9, CPU)
    assert not (got == np.arange(7050)[:, None]).any()
    overlap = np.mean([len(set(a) & set(b)) / 9 for a, b in zip(got.tolist(), published.tolist())])
    assert overlap > least


# ---------------------------------------------------------------- cache


def no_building(*_):
    raise AssertionError("the kNN graph was built although the cache has it")


def test_second_call_reads_the_cache(tmp_path, monkeypatch):
    features = random_features(12, 4)
    first, notes = cached_neighbours(features, 3, tmp_path / "deep" / "cache", 0, CPU)
    assert notes == []
    np.testing.assert_array_equal(first, naive_neighbours(features, 3))
    monkeypatch.setattr(graphs, "nearest_neighbours", no_building)
    again, notes = cached_neighbours(features.copy(), 3, tmp_path / "deep" / "cache", 0, CPU)
    assert notes == []
    np.testing.assert_array_equal(again, first)
    with pytest.raises(AssertionError, match="was built"):
        cached_neighbours(features, 3, tmp_path / "deep" / "cache", 1, CPU)


def test_other_k_and_other_features_make_other_files(tmp_path):
    features = random_features(12, 4)
    for matrix, k in ((features, 3), (features, 4), (features + 1, 3), (features.reshape(16, 3), 3)):
        got, _ = cached_neighbours(matrix, k, tmp_path, 0, CPU)
        np.testing.assert_array_equal(got, naive_neighbours(matrix, k))
    assert len(list(tmp_path.iterdir())) == 4


def test_a_cache_damaged_at_any_byte_never_gives_wrong_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of files
    features = random_features(8, 4)
    want, _ = cached_neighbours(features, 3, tmp_path, 0, CPU)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    damaged = [
        good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :]
        for at in [*range(0, len(good) - 240, 8), *range(len(good) - 240, len(good))]
    ]  # all of the zip directory
    damaged += [good[:at] for at in range(0, len(good), 40)] + [b"", b"hello\n", b"\x93NUMPY"]
    rebuilt = 0
    for content in damaged:
        path.write_bytes(content)
        got, notes = cached_neighbours(features, 3, tmp_path, 0, CPU)
        np.testing.assert_array_equal(got, want)
        if notes:
            rebuilt += 1
            assert str(path) in notes[0] and "damaged" in notes[0]
            assert cached_neighbours(features, 3, tmp_path, 0, CPU)[1] == []
    assert rebuilt > len(damaged) / 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_sound_archive_with_other_neighbours_under_the_old_checksum_is_rebuilt(tmp_path):
    features = random_features(8, 4)
    want, _ = cached_neighbours(features, 3, tmp_path, 0, CPU)
    (path,) = tmp_path.iterdir()
    with np.load(path) as stored:
        np.savez(tmp_path / "other.npz", nbr=stored["nbr"][::-1], sha256=stored["sha256"])
    (tmp_path / "other.npz").replace(path)
    got, notes = cached_neighbours(features, 3, tmp_path, 0, CPU)
    np.testing.assert_array_equal(got, want)
    assert len(notes) == 1 and "damaged" in notes[0]


def test_an_unwritable_cache_is_a_note_and_no_failure(tmp_path):
    (tmp_path / "file").write_text("in the way")
    features = random_features(8, 4)
    got, notes = cached_neighbours(features, 3, tmp_path / "file" / "cache", 0, CPU)
    np.testing.assert_array_equal(got, naive_neighbours(features, 3))
    assert len(notes) == 1 and "not cached" in notes[0] and "--cache_dir" in notes[0]


# ---------------------------------------------------------------- neighbours from a file


def test_read_neighbours_skips_the_own_id_and_keeps_the_first_k(tmp_path):
    nbr = np.array([[0, 3, 1, 2], [3, 1, 0, 2], [0, 1, 3, 4], [2, 1, 0, 3], [0, 1, 2, 4]], dtype=np.int32)
    np.savez(tmp_path / "k.npz", nbr=nbr, cos=np.zeros(3))
    got, notes = read_neighbours(tmp_path / "k.npz", 5, 2)
    want = [[j for j in row if j != i][:2] for i, row in enumerate(nbr.tolist())]
    assert got.tolist() == want and notes == []


def test_read_neighbours_notes_rows_with_fewer_than_k(tmp_path):
    np.savez(tmp_path / "k.npz", nbr=np.array([[1, 2], [2, 1], [0, 1]]))
    got, notes = read_neighbours(tmp_path / "k.npz", 3, 2)
    assert got.tolist() == [[1, 2], [2, 1], [0, 1]]  # item 1 lists itself: the rest of its row is its own id
    assert len(notes) == 1 and "k.npz" in notes[0] and "k = 2" in notes[0]
    assert read_neighbours(tmp_path / "k.npz", 3, 1)[1] == []
    assert "k = 9" in read_neighbours(tmp_path / "k.npz", 3, 9)[1][0]


def test_read_neighbours_of_real_baby(baby):
    published = np.load(baby / "image_knn10.npz")["nbr"]
    got, notes = read_neighbours(baby / "image_knn10.npz", 7050, 5)
    assert (
        got.tolist() == [[j for j in row if j != i][:5] for i, row in enumerate(published.tolist())]
        and notes == []
    )
