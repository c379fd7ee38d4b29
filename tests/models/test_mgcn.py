"""MGCN and SMORE, compared with dense algebra in float64."""

import math

import pytest
import torch
from model_helpers import (
    assert_equals_oracle,
    build,
    cosine_graph,
    dense_graphs,
    final_loss,
    repeating_batch,
    triple_terms,
)


def linear(p, name, x):
    """Layer of these parameters, with a bias if it has one."""
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)


def mean_of_powers(adjacency, layers, p):
    """LightGCN: (users, items)."""
    start = torch.cat([p["user"], p["item"]])
    mean = sum(torch.linalg.matrix_power(adjacency, k) @ start for k in range(layers + 1)) / (layers + 1)
    return mean[:40], mean[40:]


def contrast(fused, identity, temperature):
    """InfoNCE by loops over anchors and candidates."""
    values = []
    for a, row in enumerate(fused):
        cosines = [row @ other / (row.norm() * other.norm()) / temperature for other in identity]
        values.append(torch.stack(cosines).logsumexp(0) - cosines[a])
    return sum(values) / len(values)


def fuse_mgcn(p, identity, views):
    """MGCN's fuser, row by row."""
    rows = []
    for r, own in enumerate(identity):
        x = {m: view[r] for m, view in views.items()}
        logits = [linear(p, "query.2", torch.tanh(linear(p, "query.0", x[m])))[0] for m in x]
        shares = torch.stack(logits).exp() / sum(torch.stack(logits).exp())
        shared = sum(share * vector for share, vector in zip(shares, x.values()))
        differences = [torch.sigmoid(linear(p, f"prefer.{m}", own)) * (x[m] - shared) for m in x]
        rows.append(shared + sum(differences) / len(differences))
    return torch.stack(rows)


def fuse_smore(p, identity, views):
    """SMORE's preference, row by row."""
    rows = []
    for r, own in enumerate(identity):
        parts = []
        for m, view in views.items():
            vector = view[r]
            if m != "fused":
                logits = linear(
                    p, f"queries.{m}.2", torch.tanh(linear(p, f"queries.{m}.0", views["fused"][r]))
                )
                vector = vector * logits.exp() / logits.exp().sum()
            parts.append(torch.sigmoid(linear(p, f"prefer.{m}", own)) * vector)
        rows.append(sum(parts) / len(parts))
    return torch.stack(rows)


def filtered(p, features):
    """SMORE's z of each view by the matrix of the Fourier transform."""
    d = 8
    n = torch.arange(d, dtype=torch.float64)
    fourier = torch.exp(-2j * math.pi * n[:, None] * n / d) / math.sqrt(d)
    spectra = {m: x.to(torch.complex128) @ fourier for m, x in features.items()}
    spectra["fused"] = math.prod(list(spectra.values())[1:], start=next(iter(spectra.values())))
    out = {}
    for m, spectrum in spectra.items():
        half = torch.complex(*p[f"filters.{m}"].unbind(1))  # frequencies 0 to d / 2
        # Of the real transform: frequency d - k has the conjugate, and 0 and d / 2 are real after the filter.
        low = spectrum[:, : d // 2 + 1] * half
        ends = [low[:, :1].real + 0j, low[:, 1:-1], low[:, -1:].real + 0j, low[:, 1:-1].flip(1).conj()]
        out[m] = (torch.cat(ends, 1) @ fourier.conj().T).real
    return out


def oracle(folder, model, batch):
    """Function of parameters: vectors and loss terms, by the formulas."""
    adjacency, features = dense_graphs(folder, model)
    config, name = model.config, model.prefix
    graphs = {m: cosine_graph(x, config.item_knn_k).float().double() for m, x in features.items()}
    graphs["fused"] = torch.stack(list(graphs.values())).amax(0)
    fuse = {"mgcn": fuse_mgcn, "smore": fuse_smore}[name]
    users, positive = (sorted(set(ids.tolist())) for ids in (batch.users, batch.pos))

    def compute(p):
        x = {m: linear(p, f"project.{m}", f) for m, f in features.items()}
        x = filtered(p, x) if name == "smore" else x
        user_views, item_views = {}, {}
        for m, vectors in x.items():
            y = p["item"] * torch.sigmoid(linear(p, f"purify.{m}", vectors))
            item_views[m] = torch.linalg.matrix_power(graphs[m], config.item_graph_layers) @ y
            user_views[m] = adjacency[:40, 40:] @ item_views[m]
        user_id, item_id = mean_of_powers(adjacency, config.layer, p)
        user_mul, item_mul = fuse(p, user_id, user_views), fuse(p, item_id, item_views)
        user, item = user_id + user_mul, item_id + item_mul
        bpr, norm = triple_terms(user, item, p, batch)
        term = contrast(user_mul[users], user_id[users], 0.3)
        term = term + contrast(item_mul[positive], item_id[positive], 0.3)
        loss = bpr + 0.7 * term + config.decay * norm
        return user, item, {"loss": loss, "bpr": bpr, "contrast": term, "norm": norm}

    return compute


@pytest.mark.parametrize("name", ["mgcn", "smore"])
@pytest.mark.parametrize("layers, modalities", [(1, ["text", "image"]), (2, ["image", "text", "audio"])])
def test_vectors_terms_and_gradients_equal_dense_algebra(small_dataset, name, layers, modalities):
    own = {f"{name}_contrast": 0.7, f"{name}_temperature": 0.3}
    model = build(small_dataset, modalities, model=name, layer=2, item_graph_layers=layers, decay=0.3, **own)
    batch = repeating_batch()
    assert_equals_oracle(model, batch, oracle(small_dataset, model, batch))


@pytest.mark.parametrize("name", ["mgcn", "smore"])
def test_one_modality_is_enough(small_dataset, name):
    model = build(small_dataset, ["text"], model=name)
    assert model.loss(repeating_batch())["loss"].isfinite()


@pytest.mark.parametrize("name", ["mgcn", "smore"])
def test_loss_decreases(small_dataset, name):
    first, last = final_loss(build(small_dataset, model=name))
    assert last < 0.8 * first


@pytest.mark.parametrize("model", ["mgcn", "smore"])
def test_bf16_rounds_the_products_of_the_contrastive_term_alone(small_dataset, model):
    batch = repeating_batch()
    exact, rounded = (
        build(small_dataset, model=model, precision=precision).loss(batch) for precision in ("fp32", "bf16")
    )
    assert torch.equal(exact["bpr"], rounded["bpr"])
    assert exact["contrast"] != rounded["contrast"]
    assert rounded["contrast"].item() == pytest.approx(exact["contrast"].item(), rel=1e-2)
