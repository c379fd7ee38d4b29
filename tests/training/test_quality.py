"""Lift of items by the neighbours of their features: against naive loops, and where a run stores it."""

import math

import numpy as np
import pytest
from helpers import dataset_of, naive_neighbours, random_features, random_pairs
from small_runs import small_config, train

from training.quality import neighbour_lift, neighbour_lifts


def naive_lift(neighbours, train_pairs):
    """The lift of every item, written down from docs/report.md; NaN where there is none."""
    owners = [{user for user, i in train_pairs if i == item} for item in range(len(neighbours))]

    def mean_cosine(item, others):
        others = [j for j in others if j != item and owners[j] and owners[item]]
        cosines = [
            len(owners[item] & owners[j]) / math.sqrt(len(owners[item]) * len(owners[j])) for j in others
        ]
        return sum(cosines) / len(cosines) if cosines else math.nan

    means = [(mean_cosine(i, near), mean_cosine(i, range(len(owners)))) for i, near in enumerate(neighbours)]
    return [near / everywhere if everywhere else math.nan for near, everywhere in means]


@pytest.mark.parametrize("seed", [0, 1])
def test_lift_equals_loops(seed):
    train_pairs = random_pairs(seed, 15, 40, 3)["train"]
    features = random_features(40, 4, seed)
    features[5] = 0
    neighbours = naive_neighbours(features, 6)
    found = neighbour_lift(neighbours, train_pairs, 15)
    np.testing.assert_allclose(found, naive_lift(neighbours.tolist(), train_pairs.tolist()), rtol=1e-9)
    assert np.isnan(found[[5, 39]]).all(), "an item without features, and one without interactions"
    assert (found == 0).any() and (found > 1).any()


def test_an_item_that_shares_no_user_has_no_lift():
    train_pairs = np.array([(0, 0), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3)])
    found = neighbour_lift(np.array([[1], [2], [1], [0]]), train_pairs, 3)
    # Of items 1 and 2 the cosine is 1, of either and item 3 it is 1 / sqrt(2), of others 0.
    assert found[1:3] == pytest.approx(1 / ((1 + 2**-0.5) / 3))
    assert np.isnan(found[0]) and found[3] == 0


def stored_lifts(folder):
    with np.load(folder / "test_ranking.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files if name.startswith("lift_")}


def test_a_run_stores_the_lift_of_train(small_dataset):
    folder, _, _ = train(small_dataset, epochs=1, model="freedom", item_knn_k=12)
    train_pairs, lifts = random_pairs(0, 40, 30, 6)["train"].tolist(), stored_lifts(folder)
    assert lifts.keys() == {"lift_text", "lift_image"}
    for modality in ("text", "image"):
        features = np.load(small_dataset / f"{modality}_feat.npy")
        expected = naive_lift(naive_neighbours(features, 10).tolist(), train_pairs)
        np.testing.assert_allclose(lifts[f"lift_{modality}"], expected, rtol=1e-5)
        assert lifts[f"lift_{modality}"].dtype == np.float32


def test_a_model_without_graphs_stores_none(small_dataset):
    folder, _, _ = train(small_dataset, epochs=1, model="vbpr", item_knn_k=12)
    assert stored_lifts(folder) == {}


def test_lifts_do_not_depend_on_settings_of_the_run(small_dataset):
    def lifts(**settings):
        return neighbour_lifts(dataset_of(small_config(small_dataset, model="freedom", **settings)))

    few, many = lifts(item_knn_k=10), lifts(item_knn_k=20)
    assert all((few[m] == many[m])[:29].all() for m in ("text", "image")), "the last item has no interaction"
    assert lifts(item_knn_k=9) == {}
    assert lifts(item_knn_k=10, missing="text:0.2").keys() == {"image"}
