"""The evaluation protocol: masks, no leaks from validation and test, one look at test, and determinism."""

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import dataset_of, random_pairs, write_inter, write_txt
from naive_ranking import naive_metrics
from small_runs import (
    CPU,
    best_model,
    read_state,
    same_weights,
    script_metrics,
    small_config,
    spy_on_splits,
    train,
)

from dataloader import Sampler
from training.evaluation import make_splits, score
from training.ranking import evaluate
from training.scoring import Scorer

PAIRS = SimpleNamespace(train=np.array([(0, 0)]), valid=np.array([(0, 1)]), test=np.array([(0, 2)]))


# ---------------------------------------------------------------- splits and masks


@pytest.mark.parametrize("mask, recall", [(0, 0.0), (1, 1.0)])
def test_validation_items_are_candidates_at_test_unless_masked(small_dataset, mask, recall):
    scorer = Scorer(torch.ones(1, 1), torch.tensor([[9.0], [8.0], [7.0], [1.0]]))
    valid, test = make_splits(PAIRS, small_config(small_dataset, mask_valid_at_test=mask), CPU)
    assert evaluate(scorer, [test], (1,), 10)[0]["recall@1"] == recall
    assert evaluate(scorer, [valid], (1,), 10)[0]["recall@1"] == 1


@pytest.mark.parametrize("select_on, relevant", [("valid", 1), ("test", 2)])
def test_select_on_names_the_selection_split(small_dataset, select_on, relevant):
    selection, test = make_splits(PAIRS, small_config(small_dataset, select_on=select_on), CPU)
    assert selection.relevant[1].tolist() == [relevant] and test.relevant[1].tolist() == [2]


# ---------------------------------------------------------------- leaks


def change_splits(folder, *splits):
    """A copy of a dataset with other items, of the same users, in these splits; no pair is in two splits."""
    copy = folder.parent.parent / ("changed_" + "_".join(splits)) / folder.name
    copy.mkdir(parents=True)
    for name in ("text_feat.npy", "image_feat.npy"):
        shutil.copy(folder / name, copy)
    pairs, rng = random_pairs(0, 40, 30, 6), np.random.default_rng(8)
    for split in splits:
        taken = {tuple(pair) for other in pairs.values() for pair in other.tolist()}
        pairs[split] = np.array(
            [(u, rng.choice([i for i in range(29) if (u, i) not in taken])) for u, _ in pairs[split]]
        )
    write_txt(copy, **pairs)
    return copy


def training_inputs(folder):
    """All tensors that training reads, and the batches of two epochs."""
    config = small_config(folder, user_text_feat="mean")
    data = dataset_of(config)
    sampler = Sampler(data.interactions.train, data.interactions.n_items, 64, config.seed, CPU)
    adjacency = data.adjacency
    tables = [*data.neighbours.values(), data.user_neighbours]
    return [
        adjacency.crow_indices(),
        adjacency.col_indices(),
        adjacency.values(),
        *map(torch.from_numpy, tables),
        *data.features.values(),
        data.user_features,
        *(tensor for _ in range(2) for batch in sampler.epoch() for tensor in batch),
    ]


@pytest.mark.parametrize("splits", [("valid",), ("test",), ("valid", "test")])
def test_held_out_splits_have_no_influence_on_training(small_dataset, splits):
    other = change_splits(small_dataset, *splits)
    a, b = training_inputs(small_dataset), training_inputs(other)
    assert len(a) == len(b) > 20 and all(torch.equal(x, y) for x, y in zip(a, b))
    folder_a, result_a, lines_a = train(small_dataset, user_text_feat="mean")
    folder_b, result_b, lines_b = train(other, user_text_feat="mean")
    assert [line["train"] for line in lines_a] == [line["train"] for line in lines_b]
    assert same_weights(folder_a / "last.pt", folder_b / "last.pt")
    if splits == ("test",):
        assert result_a["test"] != result_b["test"]
    else:
        assert lines_a[0]["valid"] != lines_b[0]["valid"]


def test_the_test_split_has_no_influence_on_the_selection(small_dataset):
    settings = dict(epochs=8, patience=2, eval_every=2)
    folder_a, result_a, lines_a = train(small_dataset, **settings)
    folder_b, result_b, lines_b = train(change_splits(small_dataset, "test"), **settings)
    assert result_a["test"] != result_b["test"]
    assert (result_a["best_epoch"], result_a["valid"]) == (result_b["best_epoch"], result_b["valid"])
    assert [line["valid"] for line in lines_a] == [line["valid"] for line in lines_b]
    assert same_weights(folder_a / "best.pt", folder_b / "best.pt")


def test_the_test_split_is_scored_once_at_the_end(small_dataset, monkeypatch):
    scored = spy_on_splits(monkeypatch)
    train(small_dataset, epochs=3)
    pairs = random_pairs(0, 40, 30, 6)
    valid, test = pairs["valid"][:, 1].tolist(), pairs["test"][:, 1].tolist()
    assert valid != test and scored == [valid, valid, valid, test]


# ---------------------------------------------------------------- determinism


def test_both_data_formats_give_the_same_run(small_dataset):
    other = small_dataset.parent.parent / "inter" / "small"
    write_inter(other, **random_pairs(0, 40, 30, 6))
    for name in ("text_feat.npy", "image_feat.npy"):
        shutil.copy(small_dataset / name, other)
    (folder_a, result_a, lines_a), (folder_b, result_b, lines_b) = train(small_dataset), train(other)
    for a, b in zip(lines_a, lines_b, strict=True):
        assert (a["train"], a["valid"]) == (b["train"], b["valid"])
    assert (result_a["valid"], result_a["test"]) == (result_b["valid"], result_b["test"])
    assert same_weights(folder_a / "best.pt", folder_b / "best.pt")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "mf"},
        {"model": "lgn"},
        {"user_text_feat": "mean", "modality_consistency_weight": 0.5},
        {"recdim": 16, "attn_heads": 8, "fusion": "concat"},
    ],
)
def test_a_run_depends_on_its_seed_alone(small_dataset, changes):
    (folder_a, result_a, lines_a), (folder_b, result_b, lines_b), (folder_c, _, lines_c) = (
        train(small_dataset, seed=seed, **changes) for seed in (1, 1, 2)
    )
    for a, b in zip(lines_a, lines_b, strict=True):
        assert (a["train"], a["valid"], a["model"]) == (b["train"], b["valid"], b["model"])
    assert result_a["test"] == result_b["test"]
    for name in ("best.pt", "last.pt"):
        assert same_weights(folder_a / name, folder_b / name)
    assert lines_a[0]["train"]["loss"] != lines_c[0]["train"]["loss"]
    assert not same_weights(folder_a / "best.pt", folder_c / "best.pt")


def test_the_number_of_evaluations_has_no_influence_on_training(small_dataset):
    assert same_weights(*(train(small_dataset, eval_every=every)[0] / "last.pt" for every in (1, 4)))


def test_tensorboard_has_no_influence_on_training(small_dataset):
    assert same_weights(*(train(small_dataset, epochs=2, tensorboard=on)[0] / "best.pt" for on in (0, 1)))


# ---------------------------------------------------------------- selection of the best epoch


def test_patience_stops_a_run_and_the_best_epoch_is_restored(small_dataset, monkeypatch):
    # The second 0.3 equals the best value and is no improvement.
    script_metrics(monkeypatch, [0.1, 0.3, 0.2, 0.3])
    folder, result, lines = train(small_dataset, epochs=50, patience=2)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert result["best_epoch"] == 2
    assert result["valid"]["ndcg@3"] == 0.3 and result["test"]["ndcg@3"] == 0.123
    epochs = {name: read_state(folder / name)["progress"]["epoch"] for name in ("best.pt", "last.pt")}
    assert epochs == {"best.pt": 2, "last.pt": 4}
    assert "stopped: 2 evaluations without a better ndcg@3" in (folder / "train.log").read_text()


def test_patience_counts_evaluations_since_the_best_one(small_dataset, monkeypatch):
    script_metrics(monkeypatch, [0.2, 0.1, 0.3, 0.1, 0.2])
    _, result, lines = train(small_dataset, epochs=50, patience=2, eval_every=3)
    assert [line["epoch"] for line in lines] == [3, 6, 9, 12, 15] and result["best_epoch"] == 9


def test_patience_0_never_stops(small_dataset, monkeypatch):
    script_metrics(monkeypatch, [0.9, *[0.1] * 11])
    _, result, lines = train(small_dataset, epochs=12, patience=0)
    assert len(lines) == 12 and result["best_epoch"] == 1


def test_valid_metric_selects_the_best_epoch(small_dataset, monkeypatch):
    script_metrics(monkeypatch, [0.9, 0.1, 0.1, 0.1])
    _, result, lines = train(small_dataset, valid_metric="recall@5")
    recall = [line["valid"]["recall@5"] for line in lines]
    assert len(set(recall)) > 1 and result["best_epoch"] == 1 + recall.index(max(recall))


@pytest.mark.parametrize("epochs, every, evaluated", [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (2, 5, [2])])
def test_the_last_epoch_is_always_evaluated(small_dataset, epochs, every, evaluated):
    _, _, lines = train(small_dataset, model="mf", epochs=epochs, eval_every=every)
    assert [line["epoch"] for line in lines] == evaluated
    assert [line["step"] for line in lines] == [epoch * math.ceil(39 * 6 / 64) for epoch in evaluated]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "mf"},
        {"model": "freedom"},
        {"user_text_feat": "mean", "plan_every": 3},
        {"fusion": "sum", "mask_valid_at_test": 1},
    ],
)
def test_the_best_weights_give_the_reported_metrics(small_dataset, changes):
    """By the program's own scoring, bit for bit, and by a loop."""
    folder, result, lines = train(small_dataset, epochs=6, **changes)
    config = small_config(small_dataset, **changes)
    model, pairs = best_model(config, folder), random_pairs(0, 40, 30, 6)
    data = dataset_of(config).interactions
    splits = list(make_splits(data, config, CPU))
    assert score(model, data, splits, config) == [result["valid"], result["test"]]
    assert result["valid"] == lines[result["best_epoch"] - 1]["valid"]
    best = max(line["valid"]["ndcg@3"] for line in lines)
    assert result["valid"]["ndcg@3"] == best
    assert all(line["valid"]["ndcg@3"] < best for line in lines[: result["best_epoch"] - 1])
    with torch.no_grad():
        user, item = model.embeddings()
    masked = np.concatenate([pairs["train"], pairs["valid"]]) if config.mask_valid_at_test else pairs["train"]
    valid = naive_metrics(user, item, pairs["valid"], pairs["train"], (3, 5))
    assert result["valid"] == pytest.approx(valid, rel=1e-9)
    test = naive_metrics(user, item, pairs["test"], masked, (3, 5))
    assert result["test"] == pytest.approx(test, rel=1e-9)
