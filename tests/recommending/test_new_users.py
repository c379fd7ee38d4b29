"""recommend.py --new_users: vectors of users known by their items alone, against dense matrices."""

import math

import numpy as np
import pytest
import torch
from helpers import dataset_of, random_features, random_pairs, write_txt
from recommend_helpers import (
    N_ITEMS,
    N_USERS,
    items_of,
    load,
    read_table,
    sparse_histories,
    train,
    write_names,
)

from data.formats import read_interactions


def dense_propagation(model, dataset, histories):
    """Vectors of new users by LightGCN on a dense adjacency matrix, with layer 0 of the new users zero.

    The matrix has a row, but no column, for each new user: other nodes do not see them. Items without train
    interactions are left out of the histories.
    """
    u, i, n = len(model.user), len(model.item), len(histories)
    train = np.zeros((u, i))
    train[tuple(dataset.interactions.train.T)] = 1
    degree = train.sum(0)
    normalised = train / np.sqrt(np.outer(np.maximum(train.sum(1), 1), np.maximum(degree, 1)))
    a = np.zeros((u + i + n, u + i + n))
    a[:u, u : u + i], a[u : u + i, :u] = normalised, normalised.T
    for row, items in enumerate(histories):
        known = [item for item in items if degree[item]]
        for item in known:
            a[u + i + row, u + item] = 1 / math.sqrt(len(known) * (degree[item] + 1))
    vectors = [model.user.detach().numpy(), model.item.detach().numpy(), np.zeros((n, model.user.shape[1]))]
    layer = total = np.concatenate(vectors).astype(float)
    for _ in range(model.config.layer):
        layer = a @ layer
        total = total + layer
    return (total / (model.config.layer + 1))[u + i :]


@torch.no_grad()
def new_user_vectors(model, histories):
    """(vectors as an array, notes) of new users with these lists of items."""
    vectors, notes = model.new_user_vectors(sparse_histories(histories), model.embeddings()[1])
    return vectors.numpy(), notes


def test_vectors_of_lightgcn(lgn):
    model, dataset, _ = load(lgn)
    # The last item has no train interaction.
    histories = [[3, 5, 8], [N_ITEMS - 1], [0, 1, 2, 3, 4, N_ITEMS - 1]]
    vectors, notes = new_user_vectors(model, histories)
    expected = dense_propagation(model, dataset, histories)
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-6)
    assert not vectors[1].any() and len(notes) == 1 and "1 new users have only items" in notes[0]


def test_with_one_layer_a_new_user_is_a_known_user_with_a_zero_vector_at_layer_0(small_dataset, tmp_path):
    folder = train(small_dataset, tmp_path / "runs", "lgn", layer=1)
    model, _, config = load(folder)
    [vector], _ = new_user_vectors(model, [[3, 5, 8]])
    with open(small_dataset / "train.txt", "a") as file:
        file.write(f"{N_USERS} 3 5 8\n")
    assert read_interactions(small_dataset).n_users == N_USERS + 1
    model.adjacency = dataset_of(config).adjacency
    model.user = torch.nn.Parameter(torch.cat([model.user, torch.zeros(1, 16)]))
    known = model.embeddings()[0][-1].detach().numpy()
    np.testing.assert_allclose(vector, known, rtol=1e-5, atol=1e-7)


def test_vectors_of_mf_are_means_of_item_vectors(small_dataset, tmp_path):
    model = load(train(small_dataset, tmp_path / "runs", "mf"))[0]
    # The last item has no train interaction, and its vector is untrained.
    vectors, notes = new_user_vectors(model, [[3, 5], [7, N_ITEMS - 1], [N_ITEMS - 1]])
    item = model.item.detach().numpy()
    np.testing.assert_allclose(vectors, [(item[3] + item[5]) / 2, item[7], 0 * item[7]], rtol=1e-6)
    assert len(notes) == 1 and "1 new users have only items" in notes[0]


def test_vectors_of_recgoat_with_mean_text_features(small_dataset, tmp_path):
    """Mixed with the user-user branch, in which the new user attends to its nearest users and itself."""
    settings = dict(user_text_feat="mean", eta=0.2)
    model, dataset, _ = load(train(small_dataset, tmp_path / "runs", "lgn_mm", **settings))
    [vector], notes = new_user_vectors(model, [[3, 5]])
    text = dataset.features["text"][[3, 5]].mean(0, keepdim=True)
    cosine = torch.nn.functional.cosine_similarity(text, dataset.user_features)
    graph = model.user_graph.append_targets(cosine.topk(4).indices[None])
    with torch.no_grad():
        z = model.user_branch(graph, torch.cat([dataset.user_features, text]))[-1].numpy()
    expected = 0.8 * dense_propagation(model.backbone, dataset, [[3, 5]])[0] + 0.2 * z
    np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-6)
    assert notes == []


def test_users_without_text_attend_to_themselves_alone_and_are_attended_to_by_none(small_dataset, tmp_path):
    text = np.load(small_dataset / "text_feat.npy")
    text[8] = 0
    np.save(small_dataset / "text_feat.npy", text)
    settings = dict(user_text_feat="mean", eta=0.2, user_knn_k=38)
    model, dataset, _ = load(train(small_dataset, tmp_path / "runs", "lgn_mm", **settings))
    last = N_USERS - 1  # has no train items and thus no text
    assert dataset.user_features.any(1).tolist() == [True] * last + [False]
    vectors, _ = new_user_vectors(model, [[3, 5], [8]])
    mean = dataset.features["text"][[3, 5]].mean(0, keepdim=True)
    cosine = torch.nn.functional.cosine_similarity(mean, dataset.user_features)
    assert last in cosine.topk(38).indices
    cosine[last] = -2
    graph = model.user_graph.append_targets(cosine.topk(38).indices[None])
    with torch.no_grad():
        z = model.user_branch(graph, torch.cat([dataset.user_features, mean])).numpy()
    expected = 0.8 * dense_propagation(model.backbone, dataset, [[3, 5], [8]]) + 0.2 * z[[-1, last]]
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-6)


def test_new_users_where_no_known_user_has_text(small_dataset, tmp_path):
    """They may attend to all of them."""
    settings = dict(user_text_feat="mean")
    model = load(train(small_dataset, tmp_path / "runs", "lgn_mm", **settings))[0]
    model.user_features.zero_()
    vectors, _ = new_user_vectors(model, [[3, 5]])
    assert np.isfinite(vectors).all() and vectors.any()


def test_without_layers_new_users_of_recgoat_are_means_of_item_vectors_cold_ones_too(small_dataset, tmp_path):
    pairs = random_pairs(0, N_USERS, N_ITEMS, 6)
    pairs["train"] = pairs["train"][pairs["train"][:, 1] < N_ITEMS - 3]
    write_txt(small_dataset, **pairs)
    model = load(train(small_dataset, tmp_path / "runs", "lgn_mm", layer=0))[0]
    assert model.cold_items.tolist() == [N_ITEMS - 3, N_ITEMS - 2, N_ITEMS - 1]
    with torch.no_grad():
        item = model.final_vectors()[1]
        vectors, notes = model.new_user_vectors(sparse_histories([[3, N_ITEMS - 1], [N_ITEMS - 1]]), item)
    expected = torch.stack([(item[3] + item[-1]) / 2, item[-1]])
    torch.testing.assert_close(vectors, expected)
    assert vectors.abs().sum(1).min() > 0 and notes == []


def test_vectors_of_recgoat_with_features_from_a_file_omit_the_user_branch(small_dataset, tmp_path):
    """The rest keeps its share, as of known users: the neighbourhood term is added to their scores."""
    np.save(tmp_path / "users.npy", random_features(N_USERS, 5))
    settings = dict(user_text_feat=tmp_path / "users.npy", eta=0.3)
    model, dataset, _ = load(train(small_dataset, tmp_path / "runs", "lgn_mm", **settings))
    [vector], [note] = new_user_vectors(model, [[3, 5]])
    expected = 0.7 * dense_propagation(model.backbone, dataset, [[3, 5]])[0]
    np.testing.assert_allclose(vector, expected, rtol=1e-4, atol=1e-6)
    assert note.startswith("note: new users have no text features")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lists_of_a_run_with_mean_text_features(small_dataset, tmp_path, run, precision):
    """With bf16, features are stored in bfloat16 while item vectors are float32."""
    settings = dict(user_text_feat="mean", precision=precision)
    folder = train(small_dataset, tmp_path / "runs", "lgn_mm", **settings)
    (tmp_path / "new").write_text("anna 3 5 8\nbert 1\n")
    code, text, err = run(folder, "--new_users", str(tmp_path / "new"), "--topk", "10")
    assert code == 0 and "error" not in err
    lists = read_table(text)[1]
    assert {name: len(rows) for name, rows in lists.items()} == {"anna": 10, "bert": 10}
    assert not {"3", "5", "8"} & set(items_of(lists["anna"]))


def test_lists_of_known_users_as_new_ones(lgn, small_dataset, run, tmp_path):
    """Nearly the lists of the known users, without their train items; words separated by spaces or tabs."""
    data = read_interactions(small_dataset)
    histories = {u: data.train[data.train[:, 0] == u, 1].tolist() for u in range(N_USERS - 1)}
    write_names(small_dataset)
    names = {u: [f"B{i:04d}" for i in items] for u, items in histories.items()}
    lines = ["\t "[u % 2].join([f"new{u}", *items]) + "\n" for u, items in names.items()]
    (tmp_path / "new").write_text("".join(lines) + "\n")
    lists = read_table(run(lgn, "--new_users", str(tmp_path / "new"), "--topk", "10")[1])[1]
    known = read_table(run(lgn, "--topk", "10")[1])[1]
    assert list(lists) == [f"new{u}" for u in histories]
    found = {u: set(items_of(lists[f"new{u}"])) for u in histories}
    assert all(found[u].isdisjoint(items) for u, items in names.items())
    shared = [len(found[u] & set(items_of(known[f"user-{u}é"]))) for u in histories]
    # Ten random ones of 24 candidates would share 4.2.
    assert np.mean(shared) > 5


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "has no user"),
        ("bob\n", "line 1: user 'bob' occurs twice or has no item"),
        ("bob 1 2\n\nann 77\n", "line 3: item '77' is not in the data"),
        ("bob 1\nbob 2\n", "line 2: user 'bob' occurs twice"),
    ],
)
def test_bad_histories(lgn, run, tmp_path, text, message):
    (tmp_path / "new").write_text(text)
    code, out, err = run(lgn, "--new_users", str(tmp_path / "new"))
    assert code == 2 and out is None and len(err.splitlines()) == 1 and message in err
