"""Item vectors as sums of parts, and user vectors as sums over the user's items, by formulas in NumPy."""

import numpy as np
import pytest
import torch
from model_helpers import TRAINED, build

AUDIO = {"modalities": ("text", "image", "audio"), "audio_weight": 0.1}
FUSIONS = {
    f"{fusion}-{norm}": {"fusion": fusion, "fuse_norm": norm}
    for fusion in ("oat", "sum", "concat")
    for norm in ("layer_l2", "layer", "l2", "none")
}
# An item has an ID vector, and features mixed in one part or none.
ID_ALONE = ("mf", "lgn", "freedom", "bm3", "lattice", "mgcn", "smore")
VARIANTS = {
    **TRAINED,
    **FUSIONS,
    "audio": AUDIO,
    "sum-proj": {"fusion": "sum", "sum_proj": 1},
    "fuse-input": {"fuse_input": "l2"},
    "learnt-weights": {"learn_fusion_weights": 1},
    "plan-from-forward": {"plan_from": "forward"},
    "absent-text": {"modalities": ("image",), "absent_modality": "id"},
    "no-layer": {"model": "lgn", "layer": 0},
    "deep-content": {"model": "freedom", "item_graph_layers": 2},
}


def disturbed(folder, **changes):
    """A model in eval mode whose weights are all different, biases and norms too."""
    model = build(folder, **changes)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.begin_step(0)
    return model.eval().requires_grad_(False)


def arrays(tensors):
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_parts_sum_to_the_item_vectors(small_dataset, name):
    model = disturbed(small_dataset, **VARIANTS[name])
    parts = model.item_parts()
    torch.testing.assert_close(sum(parts.values()), model.embeddings()[1], rtol=1e-5, atol=1e-5)
    own = set() if VARIANTS[name].get("model") in ID_ALONE else {"text", "image"}
    own = own - {"text"} if name == "absent-text" else own | ({"audio"} if name == "audio" else set())
    assert set(parts) - {"constant", "bias", "content"} == {"id", *own}
    assert all(part.abs().max() > 1e-4 for part in parts.values())


def test_the_parts_of_recgoat_are_those_of_the_formula(small_dataset):
    model = disturbed(small_dataset, fuse_norm="layer_l2", alpha=0.2, beta=0.3)
    _, z_id, z = model.represent()
    share = {"id": 0.5, "text": 0.3, "image": 0.2}
    raw = {"id": z_id.double().numpy() * share["id"]}
    for m in ("text", "image"):
        transport = model.fusion.transport(m)
        matrix = transport.residual + 8 * transport.plan
        raw[m] = share[m] * z[m].double().numpy() @ matrix.double().numpy()
    norm = arrays(dict(model.fusion.layer_norm.named_parameters()))
    found = arrays(model.item_parts())
    for i in range(30):
        whole = sum(part[i] for part in raw.values())
        deviation = np.sqrt(whole.var() + 1e-5)
        length = np.linalg.norm((whole - whole.mean()) / deviation * norm["weight"] + norm["bias"])
        for name, part in raw.items():
            expected = (part[i] - part[i].mean()) / deviation * norm["weight"] / length
            assert found[name][i] == pytest.approx(expected, abs=1e-5)
        assert found["constant"][i] == pytest.approx(norm["bias"] / length, abs=1e-5)


@pytest.mark.parametrize("fusion", ["oat", "sum", "concat"])
def test_the_id_vectors_of_items_without_a_modality_count_as_id(small_dataset, fusion):
    changes = dict(missing="text:0.5", missing_fill="id", fusion=fusion)
    model = disturbed(small_dataset, **changes)
    absent, parts = model.text_absent[:, 0], model.item_parts()
    assert 0 < absent.sum() < len(absent)
    lengths = {name: part.norm(dim=1) for name, part in parts.items()}
    assert not lengths["text"][absent].any() and lengths["text"][~absent].min() > 0
    assert lengths["id"].min() > 0 and lengths["image"].min() > 0
    torch.testing.assert_close(sum(parts.values()), model.embeddings()[1], rtol=1e-5, atol=1e-5)


def test_the_parts_of_vbpr_are_those_of_the_formula(small_dataset):
    model = disturbed(small_dataset, model="vbpr")
    weights, found = arrays(dict(model.named_parameters())), arrays(model.item_parts())
    features = model.features.double().numpy()
    columns = {"text": slice(0, 12), "image": slice(12, 32)}
    user = model.embeddings()[0].double().numpy()
    assert user @ found["id"].T == pytest.approx(weights["user"] @ weights["item"].T, abs=1e-5)
    assert user @ found["bias"].T == pytest.approx(np.tile(weights["bias"].T, (len(user), 1)), abs=1e-5)
    for m, part in columns.items():
        content = features[:, part] @ weights["content.weight"][:, part].T
        expected = weights["theta"] @ content[:, :8].T + content[:, 8]
        assert user @ found[m].T == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"model": "lgn"}, {"model": "freedom", "layer": 2}, {}, {"user_text_feat": "mean", "eta": 0.3}],
)
def test_what_each_item_adds_to_a_user_is_its_message_in_every_layer(small_dataset, changes):
    model = disturbed(small_dataset, **changes)
    backbone = getattr(model, "backbone", model)
    dense, layers = backbone.adjacency.to_dense().double().numpy(), model.config.layer
    n_users = len(backbone.user)
    start = torch.cat([backbone.user, backbone.item]).double().numpy()
    messages = np.zeros((n_users, 30, start.shape[1]))  # of item j to user u, over all layers
    vectors = start
    for _ in range(layers):
        messages += dense[:n_users, n_users:, None] * vectors[None, n_users:]
        vectors = dense @ vectors
    share = 1 - model.config.eta if "eta" in changes else 1
    messages *= share / (layers + 1)
    found = model.history_part()
    weights = found.weights.toarray()
    assert np.array_equal(weights != 0, dense[:n_users, n_users:] != 0)
    expected = weights[:, :, None] * found.vectors.double().numpy()[None]
    assert expected == pytest.approx(messages, abs=1e-6)
    own = share * start[:n_users] / (layers + 1)
    user, _ = backbone.embeddings()
    assert share * user.double().numpy() == pytest.approx(own + messages.sum(1), abs=1e-5)


def test_what_each_item_adds_to_a_user_of_bm3_passes_the_predictor(small_dataset):
    model = disturbed(small_dataset, model="bm3", layer=1)
    part, bias = model.history_part(), model.predict.bias
    own = model.user / 2 @ model.predict.weight.T
    history = torch.from_numpy(part.weights.toarray()) @ part.vectors
    torch.testing.assert_close(model.embeddings()[0], own + history + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"model": "mf"}, {"model": "vbpr"}, {"model": "lgn", "layer": 0}, {"model": "mgcn"}, {"model": "smore"}],
)
def test_vectors_that_are_no_sum_over_items_have_no_such_part(small_dataset, changes):
    assert disturbed(small_dataset, **changes).history_part() is None
