"""Metrics beyond accuracy against naive loops, and where a run writes them."""

import json
import math

import numpy as np
import pytest
from helpers import random_pairs
from small_runs import read_json, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.beyond import BEYOND, beyond_accuracy, gini
from training.records import read_result


def naive_beyond(lists, train_pairs, n_items, k):
    """{"coverage": ..., ...} from (user, item) pairs, written down from docs/metrics.md."""
    owners = {item: {u for u, i in train_pairs if i == item} for item in range(n_items)}
    n_users = len({u for u, _ in train_pairs})
    head, seen = set(), 0
    for item in sorted(owners, key=lambda item: -len(owners[item])):
        if seen < 0.8 * len(train_pairs):
            head.add(item)
        seen += len(owners[item])
    shown = [item for row in lists for item in row[:k]]
    count = [shown.count(item) for item in range(n_items)]
    differences = sum(abs(a - b) for a in count for b in count)
    return {
        "coverage": len(set(shown)) / n_items,
        "novelty": sum(-math.log2(max(len(owners[i]), 1) / n_users) for i in shown) / len(shown),
        "popularity": sum(len(owners[i]) for i in shown) / len(shown),
        "tail": sum(i not in head for i in shown) / len(shown),
        "gini": differences / (2 * n_items * sum(count)),
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_metrics_equal_loops(seed):
    rng = np.random.default_rng(seed)
    popularity_rank = (rng.exponential(4, 300)).astype(int).clip(max=19)
    train_pairs = np.unique(np.stack([rng.integers(0, 40, 300), popularity_rank], 1), axis=0)
    lists = np.array([rng.permutation(24)[:6] for _ in range(30)])
    popularity = np.bincount(train_pairs[:, 1], minlength=24)
    found = beyond_accuracy(lists, popularity, len(np.unique(train_pairs[:, 0])), (2, 6))
    assert found.keys() == {f"{name}@{k}" for name in BEYOND for k in (2, 6)}
    for k in (2, 6):
        for name, value in naive_beyond(lists.tolist(), train_pairs.tolist(), 24, k).items():
            assert found[f"{name}@{k}"] == pytest.approx(value, rel=1e-12), name
    assert 0 < found["tail@2"] < 1


def test_extremes():
    popularity = np.array([8, 1, 1, 0])
    same = beyond_accuracy(np.zeros((5, 1), int), popularity, 8, (1,))
    assert same == {"coverage@1": 0.25, "novelty@1": 0, "popularity@1": 8, "tail@1": 0, "gini@1": 0.75}
    every = beyond_accuracy(np.arange(4)[:, None], popularity, 8, (1,))
    assert every["coverage@1"] == 1 and every["gini@1"] == 0 and every["tail@1"] == 0.75
    # An item without training interactions counts as one with a single interaction.
    assert every["novelty@1"] == pytest.approx((0 + 3 + 3 + 3) / 4)
    assert gini(np.array([0, 0, 7])) == pytest.approx(2 / 3)


def test_a_run_has_them_for_validation_and_test_of_the_best_epoch(small_dataset):
    folder, result, _ = train(small_dataset, epochs=3, model="mf", tensorboard=1, mask_valid_at_test=1)
    assert read_json(folder)["beyond_accuracy"] == result["beyond_accuracy"]
    assert result["beyond_accuracy"].keys() == {"valid", "test"}
    with np.load(folder / "test_ranking.npz", allow_pickle=False) as file:
        lists = file["items"]
    pairs = random_pairs(0, 40, 30, 6)["train"].tolist()
    naive = naive_beyond(lists.tolist(), pairs, 30, 5)
    assert {f"{name}@5": pytest.approx(value) for name, value in naive.items()}.items() <= (
        result["beyond_accuracy"]["test"].items()
    )
    assert result["beyond_accuracy"]["valid"] != result["beyond_accuracy"]["test"]
    log = (folder / "train.log").read_text()
    assert "coverage" in log and f"{result['beyond_accuracy']['valid']['novelty@5']:.3f}" in log
    events = EventAccumulator(str(folder))
    events.Reload()
    (event,) = events.Scalars("6_beyond_accuracy/test novelty@5")
    assert event.step == result["best_epoch"]
    assert event.value == pytest.approx(result["beyond_accuracy"]["test"]["novelty@5"])


def test_a_run_selected_on_test_does_not_look_at_validation(small_dataset):
    _, result, _ = train(small_dataset, epochs=1, model="mf", select_on="test")
    assert result["beyond_accuracy"].keys() == {"test"}


def test_results_without_them_are_read(small_dataset):
    folder, result, _ = train(small_dataset, epochs=1, model="mf")
    path = folder / "result.json"
    assert read_result(path)["beyond_accuracy"] == result["beyond_accuracy"]
    old = read_json(folder)
    del old["beyond_accuracy"]
    path.write_text(json.dumps(old))
    assert "beyond_accuracy" not in read_result(path)
