"""LATTICE, compared with dense algebra in float64."""

import pytest
import torch
from helpers import dataset_of
from model_helpers import (
    assert_equals_oracle,
    build,
    cosine_graph,
    dense_graphs,
    final_loss,
    repeating_batch,
    triple_terms,
)


@pytest.mark.parametrize("fill", ["zero", "mean"])
def test_items_without_features_have_no_neighbours_and_are_nobodys(small_dataset, fill):
    changes = {"model": "lattice", "missing": "text:0.4,image:0.4", "missing_fill": fill}
    model = build(small_dataset, **changes).train()
    absent = {m: torch.from_numpy(rows) for m, rows in dataset_of(model.config).missing.items()}
    model.begin_step(0)
    for m, rows in absent.items():
        nearest, own = getattr(model, f"{m}_nearest"), torch.arange(len(rows))[:, None]
        assert (nearest[rows] == own[rows]).all() and not torch.isin(nearest[~rows], own[rows]).any()
    alone = absent["text"] & absent["image"]
    assert alone.any() and not model.fixed.to_dense()[alone].any()
    loss = model.loss(repeating_batch())["loss"]
    loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert loss.isfinite() and max(gradient.abs().max() for gradient in gradients) < 100


def oracle(folder, model, batch):
    """Function of parameters: vectors and loss terms, by the formulas."""
    adjacency, features = dense_graphs(folder, model)
    config = model.config
    initial, k = config.lattice_initial, config.item_knn_k
    fixed = {m: cosine_graph(x, k).float().double() for m, x in features.items()}

    def compute(p):
        shares = p["alpha"].exp() / p["alpha"].exp().sum()
        graph = 0
        for share, (m, x) in zip(shares, features.items()):
            learnt = cosine_graph(x @ p[f"project.{m}.weight"].T + p[f"project.{m}.bias"], k)
            graph = graph + share * (initial * fixed[m] + (1 - initial) * learnt)
        content = torch.linalg.matrix_power(graph, config.item_graph_layers) @ p["item"]
        start = torch.cat([p["user"], p["item"]])
        powers = [torch.linalg.matrix_power(adjacency, n) for n in range(config.layer + 1)]
        mean = sum(power @ start for power in powers) / len(powers)
        user, item = mean[:40], mean[40:] + content / content.norm(dim=1, keepdim=True)
        bpr, norm = triple_terms(user, item, p, batch)
        return user, item, {"loss": bpr + config.decay * norm, "bpr": bpr, "norm": norm}

    return compute


@pytest.mark.parametrize("layers, modalities", [(1, ["text", "image"]), (2, ["image", "text"])])
def test_vectors_terms_and_gradients_equal_dense_algebra(small_dataset, layers, modalities):
    model = build(small_dataset, modalities, model="lattice", layer=2, item_graph_layers=layers, decay=0.3)
    model, batch = model.to(torch.float64), repeating_batch()
    with torch.no_grad():
        model.alpha[0] = 0.4
    model.begin_step(0)
    assert_equals_oracle(model, batch, oracle(small_dataset, model, batch))


@pytest.mark.parametrize("layers", [1, 2])
def test_later_steps_of_an_epoch_keep_its_graph(small_dataset, layers):
    model = build(small_dataset, model="lattice", layer=2, item_graph_layers=layers, decay=0.3)
    model, batch = model.to(torch.float64), repeating_batch()
    model.begin_step(0)
    at_start = {name: p.detach().clone() for name, p in model.named_parameters()}
    change_graph(model)
    model.begin_step(1)
    present = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    graph_of_start = {name: p for name, p in at_start.items() if is_of_graph(name)}
    user, item, expected = oracle(small_dataset, model, batch)(present | graph_of_start)
    torch.testing.assert_close(model.embeddings(), (user, item), rtol=1e-10, atol=1e-10)
    loss = model.loss(batch)["loss"]
    torch.testing.assert_close(loss, expected["loss"], rtol=1e-10, atol=1e-10)
    loss.backward()
    expected["loss"].backward()
    for name, p in model.named_parameters():
        assert (p.grad is None) == is_of_graph(name)
        torch.testing.assert_close(p.grad, present[name].grad, rtol=1e-10, atol=1e-10)


def is_of_graph(name):
    return name == "alpha" or name.startswith("project.")


def change_graph(model):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if is_of_graph(name):
                p.copy_(torch.randn_like(p))


def test_a_new_epoch_has_a_new_graph(small_dataset):
    model = build(small_dataset, model="lattice")
    model.begin_step(0)
    first = model.content().detach()
    change_graph(model)
    model.begin_step(model.steps_per_epoch - 1)
    assert torch.allclose(model.content(), first)
    model.begin_step(model.steps_per_epoch)
    assert not torch.allclose(model.content(), first)
    assert torch.allclose(model.eval().content(), model.train().content())


def test_scores_are_made_with_the_graph_of_the_present_weights(small_dataset):
    model = build(small_dataset, model="lattice", layer=2).to(torch.float64)
    model.begin_step(0)
    change_graph(model)
    model.begin_step(1)
    of_epoch, state = model.embeddings()[1], {n: b.clone() for n, b in model.state_dict().items()}
    user, item, _ = oracle(small_dataset, model, repeating_batch())(dict(model.named_parameters()))
    torch.testing.assert_close(model.eval().embeddings(), (user, item), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert not torch.allclose(of_epoch, item)
    model.train()
    torch.testing.assert_close(model.embeddings()[1], of_epoch, rtol=0, atol=0)


def test_a_checkpoint_within_an_epoch_has_its_graph(small_dataset):
    model, other = (build(small_dataset, model="lattice") for _ in range(2))
    model.begin_step(0)
    change_graph(model)
    model.begin_step(1)
    assert not torch.equal(other.content(), model.content())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.content(), model.content())


def test_loss_decreases(small_dataset):
    first, last = final_loss(build(small_dataset, model="lattice"))
    assert last < 0.8 * first
