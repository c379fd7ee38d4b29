"""Datasets, batches and held-out splits, compared with loops and dense NumPy."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import SPLITS, dataset_of, naive_neighbours, pair_set, random_features, random_pairs, write_inter

from data.formats import read_interactions
from data.graphs import normalised_adjacency
from dataloader import Needs, Sampler, held_out, load_dataset, make_batches, mean_user_features, pairs_to_rows
from utils import UserError
from world import Config

CPU = torch.device("cpu")


# ---------------------------------------------------------------- user features and the user-item graph


def test_mean_user_features_equal_a_loop_over_train():
    pairs, features = random_pairs(0, 12, 15, 4)["train"], random_features(15, 6)
    means = mean_user_features(pairs, features, 12)
    assert means.dtype == np.float32 and not means[11].any()
    for user in range(11):
        rows = [features[item] for owner, item in pairs if owner == user]
        np.testing.assert_allclose(means[user], sum(rows) / len(rows), rtol=1e-5, atol=1e-6)


def rated_interactions(tmp_path, seed=0):
    """Interactions of 12 users and 15 items with ratings from 1 to 5."""
    pairs = random_pairs(seed, 12, 15, 4)
    count = sum(len(pairs[split]) for split in SPLITS)
    write_inter(tmp_path / "r", **pairs, ratings=np.random.default_rng(seed).integers(1, 6, count))
    return read_interactions(tmp_path / "r", min_items=15)


@pytest.mark.parametrize("edge_weight", ["one", "rating", "auto"])
def test_adjacency_equals_dense_numpy(tmp_path, edge_weight):
    data = rated_interactions(tmp_path)
    weight, edge = np.zeros((12, 15)), np.zeros((12, 15))
    for (user, item), rating in zip(data.train, data.train_rating):
        edge[user, item] = 1
        weight[user, item] = 1 if edge_weight == "one" else rating
    expected = np.zeros((27, 27))
    for user, item in np.argwhere(edge):
        value = weight[user, item] / math.sqrt(edge[user].sum() * edge[:, item].sum())
        expected[user, 12 + item] = expected[12 + item, user] = value
    matrix = normalised_adjacency(data, edge_weight, CPU)
    assert matrix.layout == torch.sparse_csr and matrix.dtype == torch.float32
    np.testing.assert_allclose(matrix.to_dense().numpy(), expected, rtol=1e-6)
    assert matrix._nnz() == 2 * len(data.train)
    assert not expected[11].any() and not expected[26].any()


def test_adjacency_comes_from_train_alone(tmp_path):
    data = rated_interactions(tmp_path)
    other = dataclasses.replace(data, valid=data.test[:3], test=data.valid[:2])
    for edge_weight in ("one", "rating"):
        a, b = (normalised_adjacency(each, edge_weight, CPU) for each in (data, other))
        for part in ("crow_indices", "col_indices", "values"):
            assert torch.equal(getattr(a, part)(), getattr(b, part)())


# ---------------------------------------------------------------- batches


def assert_batch_is_consistent(batch):
    """The distinct users and items of a batch, and the indices into them, belong to its triples."""
    users, pos, neg = (part.tolist() for part in batch[:3])
    assert batch.unique_users.tolist() == sorted(set(users))
    assert batch.unique_items.tolist() == sorted({*pos, *neg})
    assert batch.unique_users[batch.user_index].tolist() == users
    assert batch.unique_items[batch.pos_index].tolist() == pos
    assert batch.unique_items[batch.neg_index].tolist() == neg
    assert batch.unique_items[batch.unique_pos].tolist() == sorted(set(pos))
    assert batch.unique_items[batch.unique_neg].tolist() == sorted(set(neg))


@pytest.mark.parametrize("size", [1, 4, 7, 30, 100])
def test_make_batches_splits_triples_in_their_order(size):
    rng = np.random.default_rng(0)
    triples = [torch.from_numpy(rng.integers(0, high, 30)) for high in (5, 8, 8)]
    batches = make_batches(*triples, size)
    assert [len(batch.users) for batch in batches] == [len(part) for part in triples[0].split(size)]
    for position, ids in enumerate(triples):
        assert torch.equal(torch.cat([batch[position] for batch in batches]), ids)
    for batch in batches:
        assert_batch_is_consistent(batch)


# ---------------------------------------------------------------- sampler


def make_sampler(pairs, n_items, batch_size=7, seed=0, reject=True):
    return Sampler(pairs, n_items, batch_size, seed, CPU, reject)


def test_an_epoch_yields_every_training_pair_once_and_no_positive_as_a_negative():
    pairs = random_pairs(0, 20, 15, 5)["train"]
    positives = pair_set(pairs)
    sampler, orders = make_sampler(pairs, 15), []
    for _ in range(5):
        batches = list(sampler.epoch())
        assert [len(batch.users) for batch in batches] == [7] * 13 + [4] and len(sampler) == 14
        users, pos, neg = (torch.cat(parts).tolist() for parts in list(zip(*batches))[:3])
        assert Counter(zip(users, pos)) == Counter(positives)
        assert not set(zip(users, neg)) & positives
        assert all(0 <= item < 15 for item in neg)
        orders.append(tuple(zip(users, pos)))
    assert len(set(orders)) == 5


def test_batches_of_an_epoch_name_their_distinct_users_and_items():
    for batch in make_sampler(random_pairs(0, 20, 15, 5)["train"], 15).epoch():
        assert_batch_is_consistent(batch)


@pytest.mark.parametrize("last", [0, 4, 9])
def test_a_user_with_all_items_but_one_always_gets_that_one(last):
    pairs = np.array([(0, item) for item in range(10) if item != last] + [(1, 2)])
    for batch in make_sampler(pairs, 10, batch_size=9).epoch():
        assert set(batch.neg[batch.users == 0].tolist()) <= {last}
    negatives = make_sampler(pairs, 10).draw_negatives(torch.zeros(500, dtype=torch.int64))
    assert set(negatives.tolist()) == {last}


FEW_PAIRS = np.array([(0, 1), (1, 0), (1, 3), (1, 9), (1, 11), (2, 5)])


def count_negatives(sampler, draws=24_000):
    """How often each item is drawn as a negative of user 1, who has the items 0, 3, 9 and 11."""
    return Counter(sampler.draw_negatives(torch.ones(draws, dtype=torch.int64)).tolist())


def test_negatives_are_uniform_over_the_items_that_are_no_positives():
    counts = count_negatives(make_sampler(FEW_PAIRS, 12))
    allowed = [item for item in range(12) if item not in (0, 3, 9, 11)]
    assert set(counts) == set(allowed)
    # Chi-square with 7 degrees of freedom: p = 1e-4.
    assert sum((counts[item] - 3000) ** 2 / 3000 for item in allowed) < 30


def test_negatives_are_uniform_over_all_items_without_rejection():
    counts = count_negatives(make_sampler(FEW_PAIRS, 12, reject=False))
    # Chi-square with 11 degrees of freedom: p = 1e-4.
    assert sum((counts[item] - 2000) ** 2 / 2000 for item in range(12)) < 38


def as_lists(epoch):
    return [[part.tolist() for part in batch] for batch in epoch]


def test_batches_depend_on_the_seed_alone():
    pairs = random_pairs(0, 20, 15, 5)["train"]
    first = as_lists(make_sampler(pairs, 15, seed=3).epoch())
    assert as_lists(make_sampler(pairs, 15, seed=3).epoch()) == first
    assert as_lists(make_sampler(pairs, 15, seed=4).epoch()) != first


@pytest.mark.parametrize("step", [0, 1, 5])
def test_a_restored_state_continues_with_the_same_batches(step):
    """step: batches of the second epoch that were done when the state was saved; 0: none."""
    pairs = random_pairs(0, 20, 15, 5)["train"]
    sampler = make_sampler(pairs, 15)
    list(sampler.epoch())
    epoch = sampler.epoch()
    for _ in range(step):
        next(epoch)
    state = sampler.state(step).clone()
    following = [as_lists(epoch), as_lists(sampler.epoch())]
    resumed = make_sampler(pairs, 15, seed=99)
    resumed.generator.set_state(state)
    assert [as_lists(resumed.epoch(step)), as_lists(resumed.epoch())] == following


def test_is_positive_equals_membership_for_all_pairs():
    pairs = random_pairs(0, 8, 9, 3)["train"]
    users, items = (
        ids.reshape(-1) for ids in torch.meshgrid(torch.arange(8), torch.arange(9), indexing="ij")
    )
    found = make_sampler(pairs, 9).is_positive(users, items).tolist()
    assert found == [pair in pair_set(pairs) for pair in zip(users.tolist(), items.tolist())]


# ---------------------------------------------------------------- held-out splits


def items_of(csr, row):
    """The items of one row of a CSR without values."""
    crow, items = csr
    return items[crow[row] : crow[row + 1]].tolist()


def test_pairs_to_rows_sorts_the_items_of_each_row():
    crow, items = pairs_to_rows(np.array([(2, 5), (0, 7), (2, 1), (0, 3)]), 4, CPU)
    assert crow.tolist() == [0, 2, 2, 4, 4] and items.tolist() == [3, 7, 1, 5]
    crow, items = pairs_to_rows(np.zeros((0, 2), np.int64), 3, CPU)
    assert crow.tolist() == [0, 0, 0, 0] and items.tolist() == []


def make_held_out(masked):
    """HeldOut of shuffled pairs, some of items that others have too, and the pairs it was made of."""
    pairs = random_pairs(0, 12, 15, 4)
    relevant = np.concatenate([pairs["test"][3:], [(5, 14), (4, 14), (5, 13)]])
    relevant = np.random.default_rng(0).permutation(relevant)
    sources = [pairs[name] for name in masked]
    return held_out(relevant, sources, CPU), relevant, np.concatenate(sources)


@pytest.mark.parametrize("masked", [("train",), ("train", "valid")])
def test_held_out_equals_loops(masked):
    split, *sources = make_held_out(masked)
    users = sorted({int(user) for user, _ in sources[0]})
    assert split.users.tolist() == users
    for csr, pairs in zip((split.relevant, split.masked), sources):
        assert len(csr[0]) == len(users) + 1 and csr[0][0] == 0 and csr[0][-1] == len(csr[1])
        for row, user in enumerate(users):
            assert items_of(csr, row) == sorted(int(item) for owner, item in pairs if owner == user)
    # User 11 has no train items, and one valid item.
    assert len(items_of(split.masked, users.index(11))) == len(masked) - 1


@pytest.mark.parametrize("rows", [[0], [1, 4, 8], range(9), []])
def test_selected_users_keep_their_items(rows):
    split, *_ = make_held_out(("train", "valid"))
    rows = torch.tensor(list(rows), dtype=torch.int64)
    part = split.select(rows)
    assert torch.equal(part.users, split.users[rows])
    for mine, whole in ((part.relevant, split.relevant), (part.masked, split.masked)):
        assert len(mine[0]) == len(rows) + 1 and mine[0][-1] == len(mine[1])
        for row, original in enumerate(rows.tolist()):
            assert items_of(mine, row) == items_of(whole, original)


def test_splits_have_the_same_ranking_if_their_users_and_masks_are_equal():
    split, relevant, masked = make_held_out(("train",))
    same = held_out(relevant[::-1] * [1, 0], [masked], CPU)
    assert split.has_same_ranking(split) and split.has_same_ranking(same) and same.has_same_ranking(split)
    fewer_users = held_out(relevant[relevant[:, 0] != 5], [masked], CPU)
    other_users = dataclasses.replace(split, users=split.users + 1)
    other_mask = dataclasses.replace(split, masked=(split.masked[0], split.masked[1] + 1))
    more_masked = make_held_out(("train", "valid"))[0]
    for other in (fewer_users, other_users, other_mask, more_masked):
        assert not split.has_same_ranking(other) and not other.has_same_ranking(split)


# ---------------------------------------------------------------- datasets


def small_config(folder, **settings):
    """Config of RecGOAT on the small dataset."""
    values = {"item_knn_k": 4, "user_knn_k": 3, "attn_heads": 2, "model": "lgn_mm", **settings}
    return Config(dataset="small", data_root=str(folder.parent), **values)


def test_load_dataset_end_to_end(small_dataset):
    data = dataset_of(small_config(small_dataset, user_text_feat="mean"))
    assert (data.interactions.n_users, data.interactions.n_items) == (40, 30) and data.notes == []
    text = np.load(small_dataset / "text_feat.npy")
    image = np.load(small_dataset / "image_feat.npy").astype(np.float32)
    assert list(data.features) == list(data.neighbours) == ["text", "image"]
    for modality, written in (("text", text), ("image", image)):
        np.testing.assert_array_equal(data.features[modality].numpy(), written)
        np.testing.assert_array_equal(data.neighbours[modality], naive_neighbours(written, 4))
    means = mean_user_features(data.interactions.train, text, 40)
    np.testing.assert_array_equal(data.user_features.numpy(), means)
    np.testing.assert_array_equal(data.user_neighbours, naive_neighbours(means, 3))
    assert tuple(data.adjacency.shape) == (70, 70)
    assert len(list((small_dataset.parent / ".cache").iterdir())) == 3


def test_mf_and_lgn_use_features_for_the_number_of_items_alone(small_dataset):
    for model in ("mf", "lgn"):
        data = dataset_of(small_config(small_dataset, model=model))
        assert data.features == data.neighbours == {}
        assert data.user_features is None and data.user_neighbours is None
        assert (data.adjacency is None) == (model == "mf")
        # Item 29 occurs in no interaction.
        assert data.interactions.n_items == 30
        without = dataset_of(small_config(small_dataset, model=model, use_multimodal=0))
        assert without.interactions.n_items == 29
    assert not (small_dataset.parent / ".cache").exists()


@pytest.mark.parametrize("need", ["adjacency", "features", "neighbours", "user_features"])
def test_each_need_is_fulfilled_without_the_others(small_dataset, need):
    config = small_config(small_dataset, user_text_feat="mean")
    everything = dataset_of(config)
    data = load_dataset(config, Needs(**{need: True}), CPU)
    built = {
        "adjacency": data.adjacency is not None,
        "features": data.features != {},
        "neighbours": data.neighbours != {},
        "user_features": data.user_features is not None and data.user_neighbours is not None,
    }
    assert built == {name: name == need for name in built}
    for modality, table in data.neighbours.items():
        np.testing.assert_array_equal(table, everything.neighbours[modality])
    if need == "user_features":
        assert torch.equal(data.user_features, everything.user_features)


@pytest.mark.parametrize("need", ["features", "neighbours", "user_features"])
def test_needs_without_feature_files_are_refused_with_a_remedy(small_dataset, need):
    for m in ("text", "image"):
        (small_dataset / f"{m}_feat.npy").unlink()
    needs, config = Needs(**{need: True}), small_config(small_dataset, user_text_feat="mean")
    with pytest.raises(
        UserError, match=r"has no text_feat\.npy.* needs features: name them with --text_feat"
    ):
        load_dataset(config, needs, CPU)
    without = dataclasses.replace(config, use_multimodal=0)
    with pytest.raises(UserError, match="needs features: drop --use_multimodal 0 or take --model lgn"):
        load_dataset(without, needs, CPU)


def test_a_user_without_any_negative_item_is_refused():
    train = np.array([(0, 0), (1, 0), (1, 1), (1, 2)])
    with pytest.raises(UserError, match=r"user 1 has all 3 items that are in training.* --neg_reject 0"):
        Sampler(train, 4, 2, 0, CPU, cold=np.array([3]))
    assert len(list(Sampler(train, 4, 2, 0, CPU, cold=np.array([3]), reject=False).epoch())) == 2


def test_mean_user_text_without_item_text_is_refused(small_dataset):
    config = small_config(
        small_dataset, user_text_feat="mean", image_feat=str(small_dataset / "image_feat.npy")
    )
    with pytest.raises(UserError, match="--user_text_feat mean needs item text features: add --text_feat"):
        dataset_of(config)


def test_features_are_column_major_only_if_that_is_needed(small_dataset):
    config = small_config(small_dataset)
    for column_major in (True, False):
        data = load_dataset(config, Needs(features=True, column_major=column_major), CPU)
        assert data.features["text"].is_contiguous() != column_major


def test_only_the_named_features_are_used(small_dataset):
    data = dataset_of(small_config(small_dataset, image_feat=str(small_dataset / "image_feat.npy")))
    assert list(data.features) == list(data.neighbours) == ["image"]


def test_model_inputs_come_from_train_alone(small_dataset):
    config = small_config(small_dataset, user_text_feat="mean")
    before = dataset_of(config)
    # The last pairs of test become those of valid, and the other way round.
    contents = (small_dataset / "test.txt").read_text(), (small_dataset / "valid.txt").read_text()
    for split, content in zip(("valid", "test"), contents):
        (small_dataset / f"{split}.txt").write_text("\n".join(content.splitlines()[5:]))
    after = dataset_of(config)
    assert pair_set(after.interactions.valid) != pair_set(before.interactions.valid)
    assert torch.equal(after.adjacency.values(), before.adjacency.values())
    assert torch.equal(after.adjacency.col_indices(), before.adjacency.col_indices())
    assert torch.equal(after.user_features, before.user_features)
    np.testing.assert_array_equal(after.user_neighbours, before.user_neighbours)


def test_fingerprint_changes_with_every_input(small_dataset):
    base, text = small_config(small_dataset, user_text_feat="mean"), small_dataset / "text_feat.npy"
    configs = [base, dataclasses.replace(base, item_knn_k=5), dataclasses.replace(base, user_text_feat="")]
    prints = [dataset_of(config).fingerprint for config in configs]
    assert dataset_of(base).fingerprint == prints[0]
    features = np.load(text)
    features[0, 0] += 1
    np.save(text, features)
    prints.append(dataset_of(base).fingerprint)
    with open(small_dataset / "train.txt", "a") as file:
        file.write("39 29\n")
    prints.append(dataset_of(base).fingerprint)
    assert len(set(prints)) == len(prints) == 5


def test_load_dataset_uses_graph_and_user_files(small_dataset, tmp_path):
    rng = np.random.default_rng(5)
    users = rng.standard_normal((40, 7)).astype(np.float16)
    lists = np.array([rng.permutation(30)[:6] for _ in range(30)])
    np.save(tmp_path / "users.npy", users)
    np.savez(tmp_path / "knn.npz", nbr=lists)
    files = {"user_text_feat": str(tmp_path / "users.npy"), "item_text_graph": str(tmp_path / "knn.npz")}
    data = dataset_of(small_config(small_dataset, **files))
    np.testing.assert_array_equal(data.user_features.numpy(), users.astype(np.float32))
    expected = [[j for j in row if j != i][:4] for i, row in enumerate(lists.tolist())]
    assert data.neighbours["text"].tolist() == expected


def test_load_dataset_collects_notes(small_dataset):
    raw = small_dataset.rename(small_dataset.with_name("small_raw"))
    with open(raw / "train.txt", "a") as file:
        file.write(raw.joinpath("train.txt").read_text().splitlines()[0] + "\n")
    notes = dataset_of(small_config(small_dataset)).notes
    assert len(notes) == 2 and "small_raw" in notes[0]
    assert "6 repeated interactions merged in train" in notes[1]
