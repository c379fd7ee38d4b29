"""BM3, compared with dense algebra in float64."""

import pytest
import torch
from model_helpers import assert_equals_oracle, build, dense_graphs, final_loss, repeating_batch


def cosine_distance(a, b):
    """Mean over rows of 1 - cos, row by row."""
    return torch.stack([1 - x @ y / (x.norm() * y.norm()) for x, y in zip(a, b)]).mean()


def oracle(folder, model, batch):
    """Function of parameters: vectors and loss terms, by the formulas, without dropout."""
    adjacency, features = dense_graphs(folder, model)
    layers, decay, weight = model.config.layer, model.config.decay, model.config.bm3_weight
    users, items = batch.users, batch.pos

    def compute(p):
        def predict(h):
            return h @ p["predict.weight"].T + p["predict.bias"]

        start = torch.cat([p["user"], p["item"]])
        powers = [torch.linalg.matrix_power(adjacency, k) for k in range(layers + 1)]
        mean = sum(power @ start for power in powers) / (layers + 1)
        user, item = mean[:40], mean[40:] + p["item"]
        u, i = user[users], item[items]
        rec = cosine_distance(predict(u), i.detach()) + cosine_distance(predict(i), u.detach())
        align = mask = 0
        for m, x in features.items():
            h = p.get(f"{m}_features", x)[items] @ p[f"project.{m}.weight"].T + p[f"project.{m}.bias"]
            align = align + cosine_distance(predict(h), i.detach())
            mask = mask + cosine_distance(predict(h), h.detach())
        norm = sum(u[r] @ u[r] + i[r] @ i[r] for r in range(len(u))) / len(u)
        loss = rec + weight * (align + mask) + decay * norm
        terms = {"loss": loss, "rec": rec, "align": align, "mask": mask, "norm": norm}
        return predict(user), predict(item), terms

    return compute


@pytest.mark.parametrize(
    "layers, modalities, trained", [(0, ["image"], 0), (1, ["text", "image"], 1), (2, ["text"], 0)]
)
def test_vectors_terms_and_gradients_equal_dense_algebra(small_dataset, layers, modalities, trained):
    settings = {"layer": layers, "decay": 0.3, "bm3_weight": 1.7, "bm3_train_features": trained}
    model = build(small_dataset, modalities, model="bm3", **settings).eval()
    assert ("text_features" in model.state_dict()) == (trained == 1)
    batch = repeating_batch()
    assert_equals_oracle(model, batch, oracle(small_dataset, model, batch))


def test_targets_are_dropped_out_and_pass_no_gradient(small_dataset):
    model = build(small_dataset, model="bm3", bm3_dropout=0.25).train()
    h = torch.ones(400, 8, requires_grad=True)
    view = model.view(h)
    assert not view.requires_grad and view.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (view == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(model.eval().view(h), h)


def test_negatives_have_no_part_in_the_loss(small_dataset):
    model, batch = build(small_dataset, model="bm3").eval(), repeating_batch()
    other = batch._replace(neg=batch.neg.flip(0), neg_index=batch.neg_index.flip(0))
    assert torch.equal(model.loss(batch)["loss"], model.loss(other)["loss"])


def test_loss_decreases(small_dataset):
    first, last = final_loss(build(small_dataset, model="bm3"))
    assert last < 0.8 * first
