"""Items that are held out entirely: no leak into training, their vectors, and metrics against loops."""

import numpy as np
import pytest
import torch
from helpers import dataset_of, random_features, write_txt
from naive_ranking import naive_metrics
from small_runs import CPU, best_model, read_json, small_config, start, train

from dataloader import held_out
from main import main
from models.base import ItemWeights
from models.lightgcn import LightGCN
from recommending.explanations import final_parts
from reporting.runs import read_run
from training.cold import COLD_KINDS, warm_and_cold
from training.evaluation import final_scorer
from training.records import read_result
from training.scoring import Scorer

WARM, ITEMS, USERS = 26, 32, 40
COLD = np.arange(WARM, ITEMS)


def cold_pairs(seed=0):
    """Six warm items a user in train; in valid and test one warm item and, for most users, a cold one."""
    rng, pairs = np.random.default_rng(seed), {"train": [], "valid": [], "test": []}
    for user in range(USERS):
        items = rng.permutation(WARM)[:8].tolist()
        pairs["train"] += [(user, item) for item in items[2:]]
        for split, item, cold in (("valid", items[0], COLD[:3]), ("test", items[1], COLD[3:])):
            pairs[split].append((user, item))
            if user % 5:
                pairs[split].append((user, int(rng.choice(cold))))
    return {split: np.array(rows) for split, rows in pairs.items()}


@pytest.fixture
def cold_dataset(tmp_path):
    """tmp_path/data/cold: 40 users, 26 warm items and 6 that are in valid or test alone; text and images."""
    folder = tmp_path / "data" / "cold"
    write_txt(folder, **cold_pairs())
    np.save(folder / "text_feat.npy", random_features(ITEMS, 12, 1))
    np.save(folder / "image_feat.npy", random_features(ITEMS, 20, 2))
    return folder


# ---------------------------------------------------------------- which items are cold


def test_cold_items_are_those_that_are_held_out_entirely(cold_dataset, small_dataset):
    data = dataset_of(small_config(cold_dataset)).interactions
    assert data.cold_items.tolist() == COLD.tolist()
    assert not len(dataset_of(small_config(small_dataset)).interactions.cold_items)


def test_whether_an_item_is_cold_depends_on_no_held_out_interaction(cold_dataset):
    pairs = cold_pairs()
    for split in ("valid", "test"):
        pairs[split] = pairs[split][pairs[split][:, 1] < COLD[2]]
    write_txt(cold_dataset, **pairs)
    run = start(cold_dataset, model="vbpr")
    assert run.dataset.interactions.cold_items.tolist() == run.model.cold_items.tolist() == COLD.tolist()
    assert set(torch.cat([batch.neg for batch in run.sampler.epoch()]).tolist()) <= set(range(WARM))


def test_a_few_such_items_are_the_chance_of_a_split(cold_dataset):
    pairs = cold_pairs()
    warm = np.concatenate([pairs["train"], [(0, item) for item in COLD[1:]]])
    held = {split: pairs[split][~np.isin(pairs[split][:, 1], COLD[1:])] for split in ("valid", "test")}
    held["test"] = np.concatenate([held["test"], [(3, COLD[0])]])
    write_txt(cold_dataset, warm, held["valid"], np.unique(held["test"], axis=0))
    assert not len(dataset_of(small_config(cold_dataset)).interactions.cold_items)


# ---------------------------------------------------------------- leaks


@pytest.mark.parametrize("model", ["lgn_mm", "freedom", "vbpr", "lgn"])
def test_interactions_with_cold_items_have_no_influence_on_training(cold_dataset, model):
    settings = dict(model=model, epochs=2, neighbour_weight=2.0)
    before, result, lines = train(cold_dataset, **settings)
    pairs, rng = cold_pairs(), np.random.default_rng(9)
    for split, cold in (("valid", COLD[:3]), ("test", COLD[3:])):
        is_cold = np.isin(pairs[split][:, 1], COLD)
        pairs[split][is_cold, 1] = rng.choice(cold, is_cold.sum())
    write_txt(cold_dataset, **pairs)
    after, other, others = train(cold_dataset, **settings)
    assert [line["train"] for line in lines] == [line["train"] for line in others]
    a, b = (torch.load(folder / "last.pt", weights_only=True)["model"] for folder in (before, after))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert result["cold_items"] != other["cold_items"]


def test_cold_items_are_in_no_graph_no_weights_and_no_batch(cold_dataset):
    together = dict(neighbour_weight=1.0, neighbour_content=0.0, neighbour_agreement=0.0)
    run = start(cold_dataset, model="freedom", neighbour_smoothing=0.0, **together)
    adjacency = run.dataset.adjacency
    assert not adjacency.crow_indices().diff()[USERS + COLD].any()
    weights = run.model.neighbour_weights.to_dense()
    assert not weights[COLD].any() and not weights[:, COLD].any() and weights.any()
    drawn = torch.cat([batch.neg for _ in range(30) for batch in run.sampler.epoch()])
    assert set(drawn.tolist()) == set(range(WARM))


# ---------------------------------------------------------------- vectors


def naive_nearest(features, item, k):
    """The k warm items of highest cosine similarity."""
    x = features.double().numpy()
    cosine = {j: x[item] @ x[j] / np.linalg.norm(x[item]) / np.linalg.norm(x[j]) for j in range(WARM)}
    return sorted(cosine, key=lambda j: -cosine[j])[:k]


@pytest.mark.parametrize("model", ["freedom", "lgn_mm", "vbpr"])
def test_items_that_lack_a_modality_are_no_neighbours_of_cold_items_whatever_fills_it(cold_dataset, model):
    replaced = []
    for fill in ("zero", "mean"):
        settings = dict(model=model, missing="text:0.5,image:0.3", missing_fill=fill)
        run = start(cold_dataset, **settings)
        absent = run.dataset.missing
        for m, rows in absent.items():
            known = run.model.known_items(m)
            assert not known[COLD].any() and known[:WARM].tolist() == (~rows[:WARM]).tolist()
        assert run.model.cold_items.tolist() == [i for i in COLD if not (absent["text"] | absent["image"])[i]]
        replaced.append(run.model.cold_items.tolist())
    assert replaced[0] == replaced[1]


def test_vectors_of_freedom_are_made_of_the_nearest_warm_items(cold_dataset):
    config = small_config(cold_dataset, model="freedom", epochs=2, item_graph_image=0.3)
    folder, _, _ = train(cold_dataset, model="freedom", epochs=2, item_graph_image=0.3)
    model, features = best_model(config, folder), dataset_of(config).features
    own, final = model.embeddings()[1].detach(), model.final_vectors()[1].detach()
    assert torch.equal(own[:WARM], final[:WARM])
    for item in COLD:
        nearest = {m: naive_nearest(features[m], item, 4) for m in features}
        means = {m: model.item[rows].mean(0) for m, rows in nearest.items()}
        near = LightGCN.embeddings(model)[1][nearest["text"] + nearest["image"]]
        stand_in = near.mean(0) / near.mean(0).norm() * near.norm(dim=1).mean()
        expected = stand_in + 0.7 * means["text"] + 0.3 * means["image"]
        torch.testing.assert_close(final[item], expected.detach())


def test_vectors_of_vbpr_are_those_of_the_features_alone(cold_dataset):
    config = small_config(cold_dataset, model="vbpr", epochs=2)
    folder, _, _ = train(cold_dataset, model="vbpr", epochs=2)
    model, features = best_model(config, folder), dataset_of(config).features
    own, final = model.embeddings()[1].detach(), model.final_vectors()[1].detach()
    assert torch.equal(own[:WARM], final[:WARM])
    assert not final[COLD, :8].any() and own[COLD, :8].any()
    x = torch.cat([features[m] / features[m].norm(dim=1).mean() for m in features], 1)
    torch.testing.assert_close(final[COLD, 8:], (x @ model.content.weight.T)[COLD].detach())


def test_vectors_of_recgoat_are_those_of_recommend(cold_dataset):
    config = small_config(cold_dataset, epochs=2)
    folder, _, _ = train(cold_dataset, epochs=2)
    model, features = best_model(config, folder), dataset_of(config).features
    own, final = model.embeddings()[1], model.final_vectors()[1]
    assert torch.equal(own[:WARM], final[:WARM])
    expected = model.cold_item_vectors({m: features[m][COLD] for m in features})
    torch.testing.assert_close(final[COLD], expected)
    branch, graph = model.branches["text"], model.graphs["text"]
    _, nearest = branch.attend(graph, features["text"], features["text"][COLD], 4, model.in_training)
    assert nearest.tolist() == [naive_nearest(features["text"], item, 4) for item in COLD]


def test_without_cold_vectors_or_such_a_model_the_own_vectors_rank(cold_dataset):
    for settings in ({"cold_vectors": 0, "model": "vbpr"}, {"model": "lgn"}):
        _, result, _ = train(cold_dataset, epochs=1, **settings)
        assert result["cold_items"]["vectors"] == "model" and result["cold_items"]["items"] == 6
    _, result, _ = train(cold_dataset, epochs=1, model="vbpr")
    assert result["cold_items"]["vectors"] == "features"


def test_an_item_that_lacks_a_modality_keeps_its_own_vector(cold_dataset):
    text = np.load(cold_dataset / "text_feat.npy")
    text[COLD[0]] = 0
    np.save(cold_dataset / "text_feat.npy", text)
    assert start(cold_dataset, model="vbpr").model.cold_items.tolist() == COLD[1:].tolist()


# ---------------------------------------------------------------- metrics


def naive_kinds(scores, relevant, masked, ks):
    """Metrics of each kind from a score matrix [U, I], by loops over users."""
    is_cold = np.isin(relevant[:, 1], COLD)
    hidden = np.array([(user, item) for user in range(len(scores)) for item in range(WARM)])
    unit = torch.eye(scores.shape[1])
    return {
        "warm": naive_metrics(scores, unit, relevant[~is_cold], masked, ks),
        "cold": naive_metrics(scores, unit, relevant[is_cold], masked, ks),
        "cold among cold": naive_metrics(scores, unit, relevant[is_cold], hidden, ks),
    }


@pytest.mark.parametrize("with_weights", [False, True])
def test_metrics_equal_loops(with_weights):
    torch.manual_seed(3)
    pairs = cold_pairs(4)
    train_pairs, test = pairs["train"], pairs["test"]
    scorer = Scorer(torch.randn(USERS, 5), torch.randn(ITEMS, 5))
    scores = scorer.user @ scorer.item.T
    if with_weights:
        weights = torch.randn(ITEMS, ITEMS) * (torch.rand(ITEMS, ITEMS) < 0.3)
        seen = torch.zeros(USERS, ITEMS)
        seen[tuple(torch.from_numpy(train_pairs.T))] = 1
        history = held_out(train_pairs, [train_pairs], CPU).relevant
        scorer = Scorer(scorer.user, scorer.item, ItemWeights(weights.to_sparse_csr()), history)
        scores = scores + seen @ weights
    split = held_out(test, [train_pairs], CPU)
    found = warm_and_cold(scorer, split, COLD, (1, 4))
    assert list(found) == list(COLD_KINDS)
    for kind, expected in naive_kinds(scores, test, train_pairs, (1, 4)).items():
        assert found[kind] == pytest.approx(expected, rel=1e-9), kind
        assert expected["recall@4"] > 0


def test_a_kind_without_relevant_items_is_left_out():
    scorer = Scorer(torch.ones(2, 1), torch.arange(5.0)[:, None])
    split = held_out(np.array([(0, 1), (1, 0)]), [np.array([(0, 0)])], CPU)
    assert list(warm_and_cold(scorer, split, np.array([3, 4]), (1,))) == ["warm"]
    split = held_out(np.array([(0, 3)]), [np.array([(0, 0)])], CPU)
    assert list(warm_and_cold(scorer, split, np.array([3, 4]), (3,))) == ["cold"]


@pytest.mark.parametrize("model", ["lgn_mm", "freedom", "vbpr", "lgn"])
def test_a_run_reports_warm_cold_and_all(cold_dataset, model):
    config = small_config(cold_dataset, model=model, epochs=2)
    folder, result, _ = train(cold_dataset, model=model, epochs=2)
    assert read_json(folder)["cold_items"] == result["cold_items"]
    assert read_result(folder / "result.json")["cold_items"] == result["cold_items"]
    data = dataset_of(config).interactions
    with final_scorer(best_model(config, folder), data, config) as scorer:
        scores = scorer.user @ scorer.item.T
    for split in ("valid", "test"):
        expected = naive_kinds(scores, getattr(data, split), data.train, (3, 5))
        for kind, metrics in expected.items():
            assert result["cold_items"][split][kind] == pytest.approx(metrics, rel=1e-6), (split, kind)
        whole = naive_metrics(scores, torch.eye(ITEMS), getattr(data, split), data.train, (3, 5))
        assert result[split] == pytest.approx(whole, rel=1e-6)
    log = (folder / "train.log").read_text()
    assert "6 items are held out entirely" in log and "test cold among cold" in log
    assert read_run(folder).result["cold_items"]["test"].keys() == set(COLD_KINDS)


def test_freedom_without_an_item_graph_ranks_cold_items_by_its_own_vectors(cold_dataset):
    _, result, _ = train(cold_dataset, model="freedom", item_graph_layers=0, epochs=1)
    assert result["cold_items"]["vectors"] == "model"


def test_data_without_cold_items_have_no_such_entry(small_dataset):
    _, result, _ = train(small_dataset, model="vbpr", epochs=1)
    assert "cold_items" not in result


@pytest.mark.parametrize("model", ["lgn_mm", "freedom", "vbpr"])
def test_the_explained_parts_of_all_items_sum_to_their_final_vectors(cold_dataset, model):
    config = small_config(cold_dataset, model=model, epochs=1)
    folder, _, _ = train(cold_dataset, model=model, epochs=1)
    with torch.no_grad():
        trained = best_model(config, folder)
        item = trained.final_vectors()[1]
        torch.testing.assert_close(sum(final_parts(trained, item).values()), item)


def test_evaluate_only_shows_warm_and_cold_items(cold_dataset, capsys):
    folder, result, _ = train(cold_dataset, model="vbpr", epochs=1)
    assert main(["--evaluate_only", "1", "--checkpoint", str(folder / "best.pt")]) == 0
    shown = capsys.readouterr().out
    line = next(line for line in shown.splitlines() if line.startswith("test cold  ") and " 5 " in line)
    assert f"{result['cold_items']['test']['cold']['recall@5']:.4f}" in line
