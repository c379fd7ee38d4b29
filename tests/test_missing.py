"""--missing: which items lack a modality, what takes its place, and that nothing but TRAIN decides it."""

import itertools
import json

import numpy as np
import pytest
import torch
from helpers import dataset_of, naive_neighbours, random_pairs, write_txt
from model_helpers import NO_DROPOUT, build, repeating_batch
from small_runs import flags, read_json, small_config, start, train

from data.missing import fill_mean, fill_neighbours, missing_items
from main import main
from models.registry import MODELS
from procedure import fit
from report import main as report_main
from session import make_model
from utils import UserError
from world import Config


def naive_fill(features, absent, train, n_users):
    """The mean of the features of the items that the same users have, by loops over pairs of users."""
    baskets = [[i for u, i in train if u == user] for user in range(n_users)]
    filled = features.astype(float)
    for item in np.flatnonzero(absent):
        others = [j for basket in baskets if item in basket for j in basket if not absent[j]]
        filled[item] = np.mean(features[others], 0) if others else 0
    return filled


def dataset(folder, **settings):
    return dataset_of(small_config(folder, **settings))


# ---------------------------------------------------------------- the draw


def test_smaller_shares_are_among_larger_ones():
    drawn = [missing_items(share, 101, 5, "text") for share in (0, 0.3, 0.5, 0.9)]
    assert [absent.sum() for absent in drawn] == [0, 30, 50, 91]
    for smaller, larger in itertools.pairwise(drawn):
        assert not (smaller & ~larger).any()


def test_the_draw_depends_on_seed_and_modality_alone():
    first = missing_items(0.5, 100, 5, "text")
    assert (first == missing_items(0.5, 100, 5, "text")).all()
    assert (first != missing_items(0.5, 100, 6, "text")).any()
    assert (first != missing_items(0.5, 100, 5, "image")).any()


@pytest.mark.parametrize(
    "text", ["text", "text:", "text:1", "text:nan", "smell:0.1", "text:.1,text:.2", "text:-1"]
)
def test_anything_but_modalities_with_shares_is_an_error(text):
    with pytest.raises(UserError, match=r"--missing .*: give MODALITY:SHARE"):
        Config(missing=text)


def test_shares_are_parsed():
    assert Config(missing="text:0.3,image:0").missing_shares == {"text": 0.3, "image": 0.0}
    assert Config().missing_shares == {}


# ---------------------------------------------------------------- the fill


def test_fills_equal_loops():
    rng, pairs = np.random.default_rng(3), random_pairs(2, 20, 30, 4)["train"]
    features = rng.standard_normal((30, 5)).astype(np.float32)
    absent = missing_items(0.6, 30, 1, "text")
    filled = features.copy()
    fill_neighbours(filled, absent, pairs, 20)
    np.testing.assert_allclose(filled, naive_fill(features, absent, pairs.tolist(), 20), rtol=1e-5, atol=1e-6)
    assert not filled[29].any() and absent[29], "the last item occurs nowhere"
    fill_mean(features, absent)
    np.testing.assert_allclose(features[absent], np.tile(features[~absent].mean(0), (absent.sum(), 1)))


@pytest.mark.parametrize("fill", ["zero", "mean", "neighbours", "id"])
def test_features_and_graphs_of_a_dataset(small_dataset, fill):
    whole = dataset(small_dataset)
    found = dataset(small_dataset, missing="text:0.4", missing_fill=fill, seed=3)
    absent = missing_items(0.4, 30, 3, "text")
    assert (found.missing["text"] == absent).all() and found.missing.keys() == {"text"}
    features = whole.features["text"].numpy()
    zeroed = np.where(absent[:, None], 0, features)
    filled = naive_fill(features, absent, whole.interactions.train.tolist(), 40)
    graph_of = filled if fill == "neighbours" else zeroed
    expected = {"mean": np.where(absent[:, None], features[~absent].mean(0), features), "neighbours": filled}
    np.testing.assert_allclose(found.features["text"], expected.get(fill, zeroed), rtol=1e-4, atol=1e-6)
    assert (found.neighbours["text"] == naive_neighbours(graph_of, 4)).all()
    if fill != "neighbours":
        # Items without text are neighbours of nobody, not of each other either.
        others = found.neighbours["text"] != np.arange(30)[:, None]
        assert not others[absent].any() and not absent[found.neighbours["text"][others]].any()
    assert (found.features["image"] == whole.features["image"]).all()
    assert found.fingerprint != whole.fingerprint and found.feature_hashes == whole.feature_hashes


def test_held_out_interactions_have_no_part_in_the_fill(small_dataset, tmp_path):
    pairs = random_pairs(0, 40, 30, 6)
    pairs["valid"], pairs["test"] = pairs["test"], pairs["valid"][::-1]
    before = dataset(small_dataset, missing="text:0.5", missing_fill="neighbours")
    write_txt(small_dataset, **pairs)
    after = dataset(small_dataset, missing="text:0.5", missing_fill="neighbours")
    assert (before.features["text"] == after.features["text"]).all()
    assert (before.neighbours["text"] == after.neighbours["text"]).all()


def test_the_id_vector_takes_the_place_of_a_missing_modality(small_dataset):
    config = small_config(small_dataset, missing="text:0.4", missing_fill="id")
    data = dataset_of(config)
    model = make_model(config, data, data.features["text"].device).eval()
    absent = data.missing["text"]
    _, z_id, z = model.represent()
    assert (z["text"] == z_id).all(1).numpy().tolist() == absent.tolist()
    assert not (z["image"] == z_id).all(1).any()
    rows = data.features["text"].new_tensor([29, 4, 7, 0]).long()
    _, some_id, some = model.represent(items=rows)
    np.testing.assert_allclose(some["text"].detach(), z["text"].detach()[rows], rtol=1e-4, atol=1e-6)
    assert ((some["text"] == some_id).all(1).numpy() == absent[rows]).all()


@pytest.mark.parametrize(
    "changes", [{"missing_fill": "id"}, {"modalities": ("image",), "absent_modality": "id"}]
)
def test_modality_decay_leaves_the_id_vectors_alone_that_take_the_place_of_a_modality(small_dataset, changes):
    settings = {"missing": "image:0.4", "modality_decay": 0.1, **NO_DROPOUT, **changes}
    model, batch = build(small_dataset, **settings), repeating_batch()
    norms = []
    for _ in range(2):
        with torch.no_grad():
            norms.append(model.loss(batch)["modality_norm"].item())
            model.backbone.item.mul_(3)
            model.backbone.user.mul_(3)
    assert norms[0] == norms[1] > 0


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize(
    "model, fill", [*((model, "zero") for model in MODELS), ("lgn_mm", "mean"), ("lgn_mm", "neighbours")]
)
def test_every_model_trains_with_missing_modalities(small_dataset, model, fill):
    settings = dict(epochs=1, model=model, missing="text:0.7,image:0.9", missing_fill=fill)
    _, result, _ = train(small_dataset, **settings)
    assert result["status"] == "finished"
    assert all(np.isfinite(value) for value in result["test"].values())


def test_items_without_features_leave_the_moments_of_adam_usable(small_dataset):
    """In the first step their vectors are zeros, of which F.normalize makes gradients of 1e8 and more."""
    run = start(small_dataset, epochs=1, missing="text:0.5")
    fit(run)
    moments = [state["exp_avg_sq"].max() for state in run.optimizer.state.values()]
    assert max(moments) < 1


def test_a_modality_that_all_items_lack(small_dataset):
    _, result, _ = train(small_dataset, epochs=1, model="lgn_mm", missing="text:0.999")
    assert result["status"] == "finished"


def test_a_resumed_run_keeps_it(small_dataset):
    settings = dict(missing="text:0.5,image:0.3", missing_fill="id", epochs=3)
    _, whole, _ = train(small_dataset, **settings)
    run = start(small_dataset, **settings)
    steps = iter([False] * 3 + [True] * 100)
    assert fit(run, stop=lambda: next(steps))["status"] == "interrupted"
    assert main(["--resume", str(run.folder)]) == 0
    assert read_json(run.folder)["test"] == whole["test"]
    assert read_json(run.folder, "config.json")["missing"] == settings["missing"]
    assert main(["--resume", str(run.folder), "--missing", "text:0.1"]) == 2


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"missing": "audio:0.3"}, "--missing audio:0.3: there are no audio features; there are text, image"),
        ({"missing": "text:0.3", "item_text_graph": "x.npz"}, "the graph of --item_text_graph knows"),
        (
            {"missing": "text:0.3", "missing_fill": "id", "model": "vbpr"},
            "--missing_fill id: --model vbpr has no",
        ),
    ],
)
def test_what_cannot_be_is_an_error_of_one_line(small_dataset, capsys, settings, message):
    words = flags(
        {
            "dataset": "small",
            "data_root": small_dataset.parent,
            "model": "lgn_mm",
            "recdim": 8,
            "attn_heads": 2,
        }
    )
    assert main([*words, *flags(settings), "--topks", "3", "--item_knn_k", "4"]) == 2
    assert message in capsys.readouterr().err


def test_seeds_draw_other_items_and_still_share_a_row(small_dataset, tmp_path, capsys):
    """With --missing the features differ between seeds; files that differ are found as before."""
    for seed in (1, 2):
        train(small_dataset, model="vbpr", epochs=1, seed=seed, missing="text:0.5")
    runs = small_dataset.parent.parent / "runs"
    words = [str(runs), "--figures", "0", "--output", str(tmp_path / "out")]
    assert report_main(words) == 0
    path = next(runs.iterdir()) / "result.json"
    result = read_json(path.parent)
    result["data"]["features"]["text"] = "f" * 64
    path.write_text(json.dumps(result))
    capsys.readouterr()
    assert report_main(words) == 2
    assert "differ in data: features" in capsys.readouterr().err
