"""LATTICE, compared with dense algebra in float64."""

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


def nearest_of(model):
    return torch.stack([model.text_nearest, model.image_nearest]).clone()


def test_nearest_items_are_found_at_the_start_of_an_epoch(small_dataset):
    model = build(small_dataset, model="lattice")
    model.begin_step(0)
    first = nearest_of(model)
    with torch.no_grad():
        for linear in model.project.values():
            linear.weight.copy_(torch.randn_like(linear.weight))
    model.begin_step(model.steps_per_epoch - 1)
    assert torch.equal(nearest_of(model), first)
    model.begin_step(model.steps_per_epoch)
    assert not torch.equal(nearest_of(model), first)
    assert {"text_nearest", "image_nearest"} <= model.state_dict().keys()


def test_loss_decreases(small_dataset):
    first, last = final_loss(build(small_dataset, model="lattice"))
    assert last < 0.8 * first
