"""User features, graphs and batches against naive loops and dense numpy."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import SPLITS, naive_neighbours, pair_set, random_features, random_pairs, write_inter

from data.formats import read_interactions
from data.graphs import nearest_neighbours, normalised_adjacency
from dataloader import Sampler, held_out, load_dataset, mean_user_features
from layers.attention import attention_graph
from layers.kernels import column_major
from world import Config

CPU = torch.device("cpu")


# ---------------------------------------------------------------- features


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
    return read_interactions(tmp_path / "r", min_items=15)


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
    part = graph.at_rows(torch.tensor(chosen))
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
        graph = graph.at_rows(torch.tensor(rows))
    m, index = 14 if rows is None else len(rows), torch.tensor(entries(graph)).T
    values, x, y = (
        torch.rand(len(graph.col), dtype=torch.float64),
        *(torch.randn(heads * n, 5, dtype=torch.float64) for n in (14, m)),
    )
    dense = torch.zeros(heads * m, heads * 14, dtype=torch.float64).index_put_(tuple(index), values)
    torch.testing.assert_close(graph.product(values, x), dense @ x)
    torch.testing.assert_close(graph.transposed_product(values, y), dense.T @ y)
    torch.testing.assert_close(graph.row_sums(values), dense.sum(1))
    torch.testing.assert_close(graph.column_sums(values), dense.sum(0))
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
