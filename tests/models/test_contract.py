"""The contract of all models: a pure loss, rows on request, and tensors that move with the model."""

import dataclasses

import pytest
import torch
from model_helpers import build, gradients, repeating_batch
from torch import nn

from models.registry import MODELS, config_class, find_model

TRAINED = [name for name in MODELS if name not in ("itemknn", "ease")]
DROPOUT = ("bm3", "lgn_mm")
# RecGOAT with every term of its loss, the user-user branch and dropout.
EVERYTHING = {
    "user_text_feat": "mean",
    "w1_weight": 0.1,
    "modality_decay": 0.1,
    "modality_consistency_weight": 0.5,
    "feat_dropout": 0.2,
    "branch_dropout": 0.2,
    "attn_dropout": 0.2,
    "fuse_drop": 0.2,
    "plan_every": 1,
}


def build_model(folder, name):
    """A model on the small dataset, RecGOAT with all of its parts."""
    return build(folder, model=name, **(EVERYTHING if name == "lgn_mm" else {}))


def tensors_of(model):
    """{name: tensor} of all parameters and buffers of a model, those outside the state dict too."""
    return dict([*model.named_parameters(), *model.named_buffers(remove_duplicate=False)])


def dense(tensor):
    """A copy of a tensor, dense."""
    return tensor.detach().to_dense().clone() if tensor.is_sparse_csr else tensor.detach().clone()


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("training", [True, False])
def test_loss_and_embeddings_change_nothing(small_dataset, name, training):
    model = build_model(small_dataset, name).train(training)
    model.begin_step(0)
    before = {key: dense(tensor) for key, tensor in tensors_of(model).items()}
    names = set(vars(model))
    assert before.keys() >= model.state_dict().keys()
    for _ in range(2):
        model.loss(repeating_batch())["loss"].backward()
        model.embeddings(), model.diagnostics(), model.images()
    assert set(vars(model)) == names and model.training == training
    for key, tensor in tensors_of(model).items():
        assert torch.equal(dense(tensor), before[key]), key


@pytest.mark.parametrize("name", TRAINED)
def test_loss_depends_on_weights_buffers_and_random_numbers_alone(small_dataset, name):
    model, results = build_model(small_dataset, name).train(), []
    model.begin_step(0)
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        model.zero_grad()
        terms = model.loss(repeating_batch())
        terms["loss"].backward()
        results.append(({key: value.detach() for key, value in terms.items()}, gradients(model)))
    for first, second in zip(results[0], results[1]):
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items())
    # Dropout is the only source of random numbers.
    assert torch.equal(results[0][0]["loss"], results[2][0]["loss"]) == (name not in DROPOUT)


@pytest.mark.parametrize("name", TRAINED)
def test_a_repeated_first_step_leaves_the_same_state(small_dataset, name):
    model = build_model(small_dataset, name).train()
    results = []
    for _ in range(2):
        model.begin_step(0)
        torch.manual_seed(1)
        results.append(model.loss(repeating_batch())["loss"].item())
    # Only the potential that Sinkhorn starts from differs: the plan is a better one.
    assert results[0] == pytest.approx(results[1], rel=1e-2 if name == "lgn_mm" else 0)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_embeddings_of_some_rows_equal_rows_of_all(small_dataset, name):
    model = build_model(small_dataset, name).eval()
    users, items = torch.tensor([3, 0, 39]), torch.tensor([7, 29, 0, 12])
    user, item = model.embeddings()
    assert len(user) == 40 and len(item) == 30 and user.shape[1] == item.shape[1]
    for u, i in ((users, items), (users, None), (None, items)):
        some_users, some_items = model.embeddings(u, i)
        torch.testing.assert_close(some_users, user if u is None else user[u])
        torch.testing.assert_close(some_items, item if i is None else item[i])


def stray_tensors(model):
    """Names of attributes of a model and its modules that hold tensors outside of parameters and buffers."""

    def holds(value):
        if isinstance(value, torch.Tensor):
            return True
        values = value.values() if isinstance(value, dict) else value
        return isinstance(value, (dict, list, tuple)) and any(map(holds, values))

    registered = set(vars(nn.Module()))
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name not in registered and holds(value)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_all_tensors_are_parameters_or_buffers(small_dataset, name):
    model = build_model(small_dataset, name)
    model.begin_step(0)
    assert stray_tensors(model) == []
    model.stray = {"one": [torch.zeros(1)]}
    assert stray_tensors(model) == [".stray"]


@pytest.mark.parametrize("name", MODELS)
def test_graphs_and_features_move_with_the_model(small_dataset, name):
    model = build_model(small_dataset, name).to(torch.float64)
    model.begin_step(0)
    for key, tensor in tensors_of(model).items():
        assert tensor.dtype == torch.float64 or not tensor.is_floating_point(), key
    if find_model(name).needs.adjacency:
        adjacency = model.adjacency if name != "lgn_mm" else model.backbone.adjacency
        assert adjacency.layout == torch.sparse_csr and adjacency.dtype == torch.float64


@pytest.mark.parametrize("name", TRAINED)
def test_loss_in_double_precision_equals_that_in_single_precision(small_dataset, name):
    model, results = build_model(small_dataset, name).eval(), []
    for dtype in (torch.float32, torch.float64):
        model.to(dtype).begin_step(0)
        model.zero_grad()
        terms = model.loss(repeating_batch())
        terms["loss"].backward()
        assert all(value.dtype == dtype for value in terms.values())
        # A model may leave some of its weights out of some losses.
        assert all(gradient is None or gradient.dtype == dtype for gradient in gradients(model).values())
        results.append(({key: value.double() for key, value in terms.items()}, gradients(model)))
    assert results[0][0].keys() == results[1][0].keys()
    for key, value in results[1][0].items():
        torch.testing.assert_close(results[0][0][key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", TRAINED)
def test_loss_of_training_works_in_double_precision(small_dataset, name):
    model = build_model(small_dataset, name).to(torch.float64).train()
    model.begin_step(0)
    loss = model.loss(repeating_batch())["loss"]
    loss.backward()
    assert loss.dtype == torch.float64 and loss.isfinite()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("modalities", [["text"], ["text", "image", "audio"]])
def test_search_space_consists_of_settings_of_the_model(name, modalities):
    config = config_class(name)(model=name)
    fields = {field.name: field for field in dataclasses.fields(config)}
    names = [entry.partition("=")[0] for entry in find_model(name).search_space(config, modalities)]
    assert len(set(names)) == len(names) > 0
    assert all(
        fields[name].metadata["group"] != "run" and not fields[name].metadata["free"] for name in names
    )
