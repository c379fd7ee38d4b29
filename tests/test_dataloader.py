"""Readers, graphs and batches against naive loops and dense numpy."""

import dataclasses
import math
import os
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import SPLITS, dataset_of, random_pairs, write_inter, write_txt

from data import graphs
from data.formats import dataset_folder, inter_path, load_features, open_features, read_interactions
from data.graphs import cached_neighbours, nearest_neighbours, normalised_adjacency, read_neighbours
from dataloader import Sampler, held_out, load_dataset, mean_user_features
from layers.attention import attention_graph
from layers.kernels import column_major
from utils import UserError
from world import Config

CPU = torch.device("cpu")


def pair_set(pairs):
    return {(int(user), int(item)) for user, item in pairs}


def assert_same_interactions(a, b):
    assert (a.n_users, a.n_items) == (b.n_users, b.n_items)
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(a, split), getattr(b, split))


def random_features(n, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


# ---------------------------------------------------------------- interactions


def test_both_formats_give_the_pairs_that_were_written(tmp_path):
    pairs = random_pairs(3, 40, 30, 6)
    write_txt(tmp_path / "a", **pairs)
    write_inter(tmp_path / "b", **pairs)
    from_txt, from_inter = read_interactions(tmp_path / "a"), read_interactions(tmp_path / "b")
    assert_same_interactions(from_txt, from_inter)
    for split in SPLITS:
        assert [tuple(pair) for pair in getattr(from_txt, split)] == sorted(pair_set(pairs[split]))
        assert getattr(from_txt, split).dtype == np.int64
    assert from_txt.train_rating is None and from_inter.train_rating is None
    assert "a/{train,valid,test}.txt" in from_txt.source and "b.inter" in from_inter.source


def test_real_baby_reads_alike_in_both_formats(baby):
    from_txt, from_inter = read_interactions(baby, "txt"), read_interactions(baby, "inter")
    assert_same_interactions(from_txt, from_inter)
    assert (from_txt.n_users, from_txt.n_items) == (19445, 7050)
    assert sum(len(getattr(from_txt, split)) for split in SPLITS) == 160792


def test_auto_prefers_txt_and_data_format_decides(tmp_path):
    pairs, other = random_pairs(0, 10, 12, 3), random_pairs(1, 10, 12, 3)
    write_txt(tmp_path / "a", **pairs)
    write_inter(tmp_path / "a", **other)
    for data_format, written in (("auto", pairs), ("txt", pairs), ("inter", other)):
        assert pair_set(read_interactions(tmp_path / "a", data_format).train) == pair_set(written["train"])


@pytest.mark.parametrize(
    "train",
    [
        b"0 1 2\r\n1 3\r\n",
        b"0 1 2\n1 3",
        b"\n0 1 2\n\n\n1 3\n\n",
        b"0 1 2\n1 3\n2\n",
        b" 0  1\t2 \n1 3 \n",
        b"1 3\n0 2\n0 1\n",
    ],
)
def test_txt_layout_does_not_matter(tmp_path, train):
    for split, content in zip(SPLITS, (train, b"2 4\n", b"2 1\n")):
        (tmp_path / f"{split}.txt").write_bytes(content)
    data = read_interactions(tmp_path)
    assert data.train.tolist() == [[0, 1], [0, 2], [1, 3]]
    assert (data.n_users, data.n_items) == (3, 5)


def test_line_numbers_count_blank_lines(tmp_path):
    write_txt(tmp_path, **random_pairs(0, 10, 12, 3))
    (tmp_path / "valid.txt").write_text("0 1\n\n\n1 x\n")
    with pytest.raises(UserError, match=r"valid\.txt, line 4: 'x'"):
        read_interactions(tmp_path)


def test_line_numbers_of_inter_count_blank_lines(tmp_path):
    (tmp_path / "a.inter").write_text("userID\titemID\tx_label\n0\t1\t0\n\n\n0\tx\t1\n1\t1\t2\n")
    with pytest.raises(UserError, match=r"a\.inter, line 5: "):
        read_interactions(tmp_path)


def test_inter_with_crlf_line_ends_and_no_newline_at_the_end(tmp_path):
    (tmp_path / "a.inter").write_bytes(b"userID\titemID\tx_label\r\n0\t1\t0\r\n0\t2\t1\r\n1\t1\t2")
    data = read_interactions(tmp_path)
    assert (data.train.tolist(), data.valid.tolist(), data.test.tolist()) == ([[0, 1]], [[0, 2]], [[1, 1]])


def test_duplicates_are_merged_and_counted(tmp_path):
    pairs = random_pairs(0, 10, 12, 3)
    again = {
        **pairs,
        "train": np.concatenate([pairs["train"], pairs["train"][:4], pairs["train"][:1]]),
        "test": np.concatenate([pairs["test"], pairs["test"][:2]]),
    }
    for write in (write_txt, write_inter):
        folder = tmp_path / write.__name__
        write(folder, **again)
        data = read_interactions(folder)
        assert data.merged == {"train": 5, "valid": 0, "test": 2}
        assert len(data.train) == len(pairs["train"]) and pair_set(data.train) == pair_set(pairs["train"])


def test_users_and_items_without_training_are_kept(tmp_path):
    write_txt(tmp_path, train=[(0, 0), (0, 1)], valid=[(3, 0)], test=[(1, 6)])
    data = read_interactions(tmp_path)
    assert (data.n_users, data.n_items) == (4, 7)
    assert data.valid.tolist() == [[3, 0]] and data.test.tolist() == [[1, 6]]


def test_feature_rows_extend_the_catalogue_and_never_shrink_it(tmp_path):
    write_txt(tmp_path, **random_pairs(0, 10, 12, 3))
    found = read_interactions(tmp_path)
    more = read_interactions(tmp_path, least_items=50, least_users=60)
    assert (more.n_users, more.n_items) == (60, 50)
    less = read_interactions(tmp_path, least_items=2, least_users=2)
    assert (less.n_users, less.n_items) == (found.n_users, found.n_items) == (10, 11)


def test_ratings_lie_beside_the_sorted_train_pairs(tmp_path):
    pairs = random_pairs(0, 10, 12, 3)
    everything = np.concatenate([pairs[split] for split in SPLITS])
    ratings = np.random.default_rng(0).integers(1, 6, len(everything)) / 2
    write_inter(tmp_path / "a", **pairs, ratings=ratings)
    data = read_interactions(tmp_path / "a")
    given = {(int(user), int(item)): rating for (user, item), rating in zip(everything, ratings)}
    assert data.train_rating.dtype == np.float32
    assert data.train_rating.tolist() == [given[tuple(pair)] for pair in data.train.tolist()]


@pytest.mark.parametrize("rating", ["0", "-1", "nan", "inf", "", "good", "1e39"])
def test_ratings_that_are_no_positive_float32_are_refused(tmp_path, rating):
    (tmp_path / "a.inter").write_text(
        f"userID\titemID\trating\tx_label\n0\t1\t5\t0\n0\t2\t{rating}\t0\n0\t3\t1\t1\n1\t1\t2\t2\n"
    )
    with pytest.raises(UserError, match=r"a\.inter, line 3: rating"):
        read_interactions(tmp_path)


def test_inter_columns_may_stand_in_any_order_and_others_are_ignored(tmp_path):
    (tmp_path / "a.inter").write_text(
        'x_label\tnote\titemID\trating\tuserID\n0\thi "there\t4\t2.5\t1\n1\t\t3\t1\t0\n2\tb\t2\t1\t0\n'
    )
    data = read_interactions(tmp_path)
    assert (data.train.tolist(), data.valid.tolist(), data.test.tolist()) == ([[1, 4]], [[0, 3]], [[0, 2]])
    assert data.train_rating.tolist() == [2.5]


def test_inter_table_is_named_after_its_folder_or_the_only_one(tmp_path):
    folder = tmp_path / "shop_raw"
    folder.mkdir()
    (folder / "other.inter").touch()
    assert inter_path(folder) == folder / "other.inter"
    (folder / "shop.inter").touch()
    assert inter_path(folder) == folder / "shop.inter"
    (folder / "shop.inter").rename(folder / "third.inter")
    with pytest.raises(UserError, match="2 .inter tables"):
        inter_path(folder)


def test_dataset_folder_falls_back_to_raw_with_a_note(tmp_path):
    (tmp_path / "shop_raw").mkdir()
    config = Config(dataset="shop", data_root=str(tmp_path))
    folder, note = dataset_folder(config)
    assert folder == tmp_path / "shop_raw" and note.startswith("note: ") and "shop_raw" in note
    (tmp_path / "shop").mkdir()
    assert dataset_folder(config) == (tmp_path / "shop", None)


def test_a_user_who_has_every_item_is_refused(tmp_path):
    write_txt(tmp_path, train=[(0, 0), (0, 1), (0, 2), (1, 0)], valid=[(1, 1)], test=[(1, 2)])
    with pytest.raises(UserError, match="no negative to draw"):
        read_interactions(tmp_path)
    assert read_interactions(tmp_path, least_items=4).n_items == 4


# ---------------------------------------------------------------- features


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("block", [1, 7, 4096])
def test_features_are_read_block_by_block_as_float32(tmp_path, dtype, block):
    written = random_features(23, 5).astype(dtype)
    np.save(tmp_path / "f.npy", written)
    array = open_features(tmp_path / "f.npy")
    assert isinstance(array, np.memmap) and not array.flags.writeable
    features = load_features(array, "f.npy", 23, block=block)
    assert features.dtype == np.float32 and features.flags.c_contiguous
    np.testing.assert_array_equal(features, written.astype(np.float32))


def test_features_in_fortran_order(tmp_path):
    written = random_features(9, 4)
    np.save(tmp_path / "f.npy", np.asfortranarray(written))
    np.testing.assert_array_equal(load_features(open_features(tmp_path / "f.npy"), "f.npy", 9), written)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("row", [0, 6, 7, 22])
def test_the_first_row_that_is_not_finite_is_named(bad, row):
    features = random_features(23, 5).astype(np.float64)
    features[row, 3] = bad
    features[22, 0] = np.nan
    with pytest.raises(UserError, match=rf"f\.npy, row {row}: "):
        load_features(features, "f.npy", 23, block=7)


def test_mean_user_features_equal_a_loop_over_train():
    pairs, features = random_pairs(0, 12, 15, 4)["train"], random_features(15, 6)
    got = mean_user_features(pairs, features, 12)
    assert got.dtype == np.float32 and not got[11].any()
    for user in range(11):
        rows = [features[item] for owner, item in pairs if owner == user]
        np.testing.assert_allclose(got[user], sum(rows) / len(rows), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- user-item graph


def rated(tmp_path, seed=0):
    pairs = random_pairs(seed, 12, 15, 4)
    count = sum(len(pairs[split]) for split in SPLITS)
    write_inter(tmp_path / "r", **pairs, ratings=np.random.default_rng(seed).integers(1, 6, count))
    return read_interactions(tmp_path / "r", least_items=15)


@pytest.mark.parametrize("edge_weight", ["one", "rating"])
def test_adjacency_equals_dense_numpy(tmp_path, edge_weight):
    data = rated(tmp_path)
    rating = np.zeros((12, 15))
    edge = np.zeros((12, 15))
    for (user, item), value in zip(data.train, data.train_rating):
        edge[user, item] = 1
        rating[user, item] = 1 if edge_weight == "one" else value
    want = np.zeros((27, 27))
    for user in range(12):
        for item in range(15):
            if edge[user, item]:
                weight = rating[user, item] / math.sqrt(edge[user].sum() * edge[:, item].sum())
                want[user, 12 + item] = want[12 + item, user] = weight
    matrix = normalised_adjacency(data, edge_weight, CPU)
    assert (
        matrix.layout == torch.sparse_csr
        and matrix.dtype == torch.float32
        and tuple(matrix.shape) == (27, 27)
    )
    np.testing.assert_allclose(matrix.to_dense().numpy(), want, rtol=1e-6)
    assert matrix._nnz() == 2 * len(data.train)
    assert not want[11].any() and not want[26].any()


def test_adjacency_comes_from_train_alone(tmp_path):
    data = rated(tmp_path)
    other = dataclasses.replace(data, valid=data.test[:3], test=data.valid[:2])
    for edge_weight in ("one", "rating"):
        a, b = (normalised_adjacency(each, edge_weight, CPU) for each in (data, other))
        for part in ("crow_indices", "col_indices", "values"):
            assert torch.equal(getattr(a, part)(), getattr(b, part)())


# ---------------------------------------------------------------- nearest neighbours


def naive_neighbours(features, k):
    """Cosine top-k by loops in float64; zero rows get themselves and are nobody's neighbour."""
    norm = [math.sqrt(sum(float(v) ** 2 for v in row)) for row in features]
    result = []
    for i, row in enumerate(features):
        others = [j for j in range(len(features)) if j != i and norm[j] > 0 and norm[i] > 0]
        score = {
            j: float(np.dot(row.astype(np.float64), features[j].astype(np.float64))) / norm[i] / norm[j]
            for j in others
        }
        best = sorted(others, key=lambda j: -score[j])[:k]
        result.append(best + [i] * (k - len(best)))
    return np.array(result)


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


# ---------------------------------------------------------------- attention graph


@pytest.mark.parametrize("heads", [1, 2, 5])
@pytest.mark.parametrize(
    "neighbours",
    [
        nearest_neighbours(random_features(14, 4), 3, CPU),
        np.array([[1, 2], [0, 2], [2, 2], [3, 3]]),
        np.array([[1], [1]]),
    ],
    ids=["random", "own ids", "two"],
)
def test_attention_graph_pattern_equals_a_set_built_by_loops(neighbours, heads):
    n, edges = len(neighbours), set()
    for i, row in enumerate(neighbours.tolist()):
        for j in [i] + row:
            edges |= {(i, j), (j, i)}
    want = sorted((h * n + i, h * n + j) for i, j in edges for h in range(heads))
    graph = attention_graph(neighbours, heads, CPU)
    assert (graph.n, graph.heads, graph.rows) == (n, heads, None)
    assert entries(graph) == want
    assert list(zip(graph.target.tolist(), graph.source.tolist())) == sorted(edges)
    assert graph.crow.tolist() == [sum(row < at for row, _ in want) for at in range(n * heads + 1)]
    assert {graph.crow.dtype, graph.col.dtype, graph.back_crow.dtype, graph.back_col.dtype} == {torch.int32}


def entries(graph):
    """(row, column) of every entry of an AttentionGraph, from its CSR pattern."""
    return list(
        zip(
            torch.arange(len(graph.crow) - 1).repeat_interleave(graph.crow.diff()).tolist(),
            graph.col.tolist(),
        )
    )


def test_a_graph_at_some_rows_has_their_edges():
    graph = attention_graph(nearest_neighbours(random_features(14, 4), 3, CPU), 2, CPU)
    chosen = [9, 0, 4]
    part = graph.select_targets(torch.tensor(chosen))
    edges = [
        (r, j)
        for r, node in enumerate(chosen)
        for i, j in zip(graph.target.tolist(), graph.source.tolist())
        if i == node
    ]
    assert part.rows.tolist() == chosen and part.n == 14
    assert entries(part) == [(h * 3 + i, h * 14 + j) for h in range(2) for i, j in edges]


@pytest.mark.parametrize("rows", [None, [2, 3, 5, 13], [11, 0], range(14)])
@pytest.mark.parametrize("heads", [1, 3])
def test_products_of_a_graph_equal_those_of_the_dense_matrix(heads, rows):
    graph = attention_graph(nearest_neighbours(random_features(14, 4), 3, CPU), heads, CPU)
    if rows is not None:
        graph = graph.select_targets(torch.tensor(rows))
    m, index = 14 if rows is None else len(rows), torch.tensor(entries(graph)).T
    values, x, y = (
        torch.rand(len(graph.col), dtype=torch.float64),
        *(torch.randn(heads * n, 5, dtype=torch.float64) for n in (14, m)),
    )
    dense = torch.zeros(heads * m, heads * 14, dtype=torch.float64).index_put_(tuple(index), values)
    torch.testing.assert_close(graph.product(values, x), dense @ x)
    torch.testing.assert_close(graph.transposed_product(values, y), dense.T @ y)
    torch.testing.assert_close(graph.target_sums(values), dense.sum(1))
    torch.testing.assert_close(graph.source_sums(values), dense.sum(0))
    torch.testing.assert_close(graph.sampled_product(y, x), (y @ x.T)[tuple(index)])
    assert torch.equal(graph.at_target(y[:, 0]), y[index[0], 0]) and torch.equal(
        graph.at_source(x[:, 0]), x[index[1], 0]
    )


# ---------------------------------------------------------------- sampler


def sampler(pairs, n_items, batch=7, seed=0, reject=True):
    return Sampler(pairs, n_items, batch, seed, CPU, reject)


def test_an_epoch_yields_every_training_pair_once_and_no_positive_as_a_negative():
    pairs = random_pairs(0, 20, 15, 5)["train"]
    positives = pair_set(pairs)
    draw, orders = sampler(pairs, 15), []
    for _ in range(5):
        batches = list(draw.epoch())
        assert [len(batch.users) for batch in batches] == [7] * 13 + [4] and len(draw) == 14
        users, pos, neg = (torch.cat(parts).tolist() for parts in list(zip(*batches))[:3])
        assert Counter(zip(users, pos)) == Counter(positives)
        assert not set(zip(users, neg)) & positives
        assert all(0 <= item < 15 for item in neg)
        orders.append(tuple(zip(users, pos)))
    assert len(set(orders)) == 5


@pytest.mark.parametrize("n, dim", [(1, 3), (16, 1), (1030, 5)])
def test_column_major_features_are_the_same_in_another_order(n, dim):
    features = torch.from_numpy(random_features(n, dim))
    columns = column_major(features)
    assert torch.equal(columns, features) and columns.stride() == (1, -(-n // 16) * 16)


def test_a_batch_names_its_distinct_users_and_items():
    for batch in sampler(random_pairs(0, 20, 15, 5)["train"], 15).epoch():
        assert batch.unique_users.tolist() == sorted(set(batch.users.tolist()))
        assert batch.unique_items.tolist() == sorted({*batch.pos.tolist(), *batch.neg.tolist()})
        for ids, once, at in (
            (batch.users, batch.unique_users, batch.user_index),
            (batch.pos, batch.unique_items, batch.pos_index),
            (batch.neg, batch.unique_items, batch.neg_index),
        ):
            assert torch.equal(once[at], ids)
        assert batch.unique_items[batch.unique_pos].tolist() == sorted(set(batch.pos.tolist()))
        assert batch.unique_items[batch.unique_neg].tolist() == sorted(set(batch.neg.tolist()))


@pytest.mark.parametrize("last", [0, 4, 9])
def test_a_user_with_all_items_but_one_always_gets_that_one(last):
    pairs = np.array([(0, item) for item in range(10) if item != last] + [(1, 2)])
    for _, _, neg, *_ in sampler(pairs, 10, batch=9).epoch():
        pass
    negatives = sampler(pairs, 10).negatives(torch.zeros(500, dtype=torch.int64))
    assert set(negatives.tolist()) == {last}


def test_negatives_are_uniform_over_the_items_that_are_no_positives():
    pairs = np.array([(0, 1), (1, 0), (1, 3), (1, 9), (1, 11), (2, 5)])
    draws = 24_000
    counts = Counter(sampler(pairs, 12).negatives(torch.ones(draws, dtype=torch.int64)).tolist())
    allowed = [item for item in range(12) if item not in (0, 3, 9, 11)]
    assert set(counts) == set(allowed)
    expected = draws / len(allowed)
    assert (
        sum((counts[item] - expected) ** 2 / expected for item in allowed) < 30
    )  # chi-square, 7 degrees: p = 1e-4


def test_without_reject_negatives_are_uniform_over_all_items():
    pairs = np.array([(0, 1), (1, 0), (1, 3), (1, 9), (1, 11), (2, 5)])
    counts = Counter(
        sampler(pairs, 12, reject=False).negatives(torch.ones(24_000, dtype=torch.int64)).tolist()
    )
    assert sum((counts[item] - 2000) ** 2 / 2000 for item in range(12)) < 38  # 11 degrees: p = 1e-4


def as_lists(epoch):
    return [[part.tolist() for part in batch] for batch in epoch]


def test_same_seed_same_batches_and_other_seed_others():
    pairs = random_pairs(0, 20, 15, 5)["train"]
    first = as_lists(sampler(pairs, 15, seed=3).epoch())
    assert as_lists(sampler(pairs, 15, seed=3).epoch()) == first
    assert as_lists(sampler(pairs, 15, seed=4).epoch()) != first


def test_a_restored_generator_state_continues_identically():
    pairs = random_pairs(0, 20, 15, 5)["train"]
    draw = sampler(pairs, 15)
    list(draw.epoch())
    state = draw.generator.get_state().clone()
    following = [as_lists(draw.epoch()) for _ in range(2)]
    resumed = sampler(pairs, 15, seed=99)
    resumed.generator.set_state(state)
    assert [as_lists(resumed.epoch()) for _ in range(2)] == following


def test_is_positive_equals_membership_for_all_pairs():
    pairs = random_pairs(0, 8, 9, 3)["train"]
    users, items = (
        grid.reshape(-1) for grid in torch.meshgrid(torch.arange(8), torch.arange(9), indexing="ij")
    )
    got = sampler(pairs, 9).is_positive(users, items).tolist()
    assert got == [pair in pair_set(pairs) for pair in zip(users.tolist(), items.tolist())]


# ---------------------------------------------------------------- held-out splits


@pytest.mark.parametrize("masked", [("train",), ("train", "valid")])
def test_held_out_equals_loops(masked):
    pairs = random_pairs(0, 12, 15, 4)
    relevant = np.random.default_rng(0).permutation(
        np.concatenate([pairs["test"][3:], [(5, 14), (4, 14), (5, 13)]])
    )
    split = held_out(relevant, [pairs[name] for name in masked], CPU)
    users = sorted({int(user) for user, _ in relevant})
    assert split.users.tolist() == users
    for (crow, items), source in (
        (split.relevant, relevant),
        (split.masked, np.concatenate([pairs[name] for name in masked])),
    ):
        assert len(crow) == len(users) + 1 and crow[0] == 0 and crow[-1] == len(items)
        for at, user in enumerate(users):
            assert items[crow[at] : crow[at + 1]].tolist() == sorted(
                int(item) for owner, item in source if owner == user
            )
    at = users.index(11)  # no training: masks nothing
    assert split.masked[0][at + 1] - split.masked[0][at] == (0 if masked == ("train",) else 1)


# ---------------------------------------------------------------- all of it


def small_config(folder, **settings):
    return Config(
        **{
            "dataset": "small",
            "data_root": str(folder.parent),
            "item_knn_k": 4,
            "user_knn_k": 3,
            "attn_heads": 2,
            "model": "lgn_mm",
            **settings,
        }
    )


def test_load_dataset_end_to_end(small_dataset):
    data = dataset_of(small_config(small_dataset, user_text_feat="mean"))
    assert (data.interactions.n_users, data.interactions.n_items) == (40, 30) and data.notes == []
    text, image = (
        np.load(small_dataset / "text_feat.npy"),
        np.load(small_dataset / "image_feat.npy").astype(np.float32),
    )
    assert list(data.features) == list(data.graphs) == ["text", "image"]
    for modality, written in (("text", text), ("image", image)):
        np.testing.assert_array_equal(data.features[modality].numpy(), written)
        want = attention_graph(naive_neighbours(written, 4), 2, CPU)
        assert torch.equal(data.graphs[modality].col, want.col) and torch.equal(
            data.graphs[modality].crow, want.crow
        )
    np.testing.assert_array_equal(
        data.user_features.numpy(), mean_user_features(data.interactions.train, text, 40)
    )
    assert data.user_graph.n == 40
    assert torch.equal(
        data.user_graph.col, attention_graph(naive_neighbours(data.user_features.numpy(), 3), 2, CPU).col
    )
    assert tuple(data.adjacency.shape) == (70, 70)
    assert len(list((small_dataset.parent / ".cache").iterdir())) == 3


def test_mf_and_lgn_take_only_the_catalogue_size_from_features(small_dataset):
    for model in ("mf", "lgn"):
        data = dataset_of(small_config(small_dataset, model=model))
        assert data.features == data.graphs == {} and data.user_graph is None
        assert (data.adjacency is None) == (model == "mf")
        assert data.interactions.n_items == 30  # item 29 is known from the features alone
        assert (
            dataset_of(small_config(small_dataset, model=model, use_multimodal=0)).interactions.n_items == 29
        )
    assert not (small_dataset.parent / ".cache").exists()


def test_load_dataset_takes_only_the_features_that_are_named(small_dataset):
    data = load_dataset(small_config(small_dataset, image_feat=str(small_dataset / "image_feat.npy")), CPU)
    assert list(data.features) == ["image"]


def test_model_inputs_come_from_train_alone(small_dataset):
    config = small_config(small_dataset, user_text_feat="mean")
    before = dataset_of(config)
    swapped = (small_dataset / "test.txt").read_text(), (small_dataset / "valid.txt").read_text()
    for split, content in zip(("valid", "test"), swapped):
        (small_dataset / f"{split}.txt").write_text("\n".join(content.splitlines()[5:]))
    after = dataset_of(config)
    assert pair_set(after.interactions.valid) != pair_set(before.interactions.valid)
    assert torch.equal(after.adjacency.values(), before.adjacency.values())
    assert torch.equal(after.adjacency.col_indices(), before.adjacency.col_indices())
    assert torch.equal(after.user_features, before.user_features)
    assert torch.equal(after.user_graph.col, before.user_graph.col)


def test_load_dataset_uses_graph_and_user_files(small_dataset, tmp_path):
    rng = np.random.default_rng(5)
    users = rng.standard_normal((40, 7)).astype(np.float16)
    lists = np.array([rng.permutation(30)[:6] for _ in range(30)])
    np.save(tmp_path / "users.npy", users)
    np.savez(tmp_path / "knn.npz", nbr=lists)
    data = load_dataset(
        small_config(
            small_dataset,
            user_text_feat=str(tmp_path / "users.npy"),
            item_text_graph=str(tmp_path / "knn.npz"),
        ),
        CPU,
    )
    np.testing.assert_array_equal(data.user_features.numpy(), users.astype(np.float32))
    want = np.array([[j for j in row if j != i][:4] for i, row in enumerate(lists.tolist())])
    assert torch.equal(data.graphs["text"].col, attention_graph(want, 2, CPU).col)


def test_load_dataset_collects_notes(small_dataset):
    raw = small_dataset.rename(small_dataset.with_name("small_raw"))
    with open(raw / "train.txt", "a") as file:
        file.write(raw.joinpath("train.txt").read_text().splitlines()[0] + "\n")
    notes = dataset_of(small_config(small_dataset)).notes
    assert (
        len(notes) == 2 and "small_raw" in notes[0] and "6 repeated interactions merged in train" in notes[1]
    )
