"""recommend.py --explain: parts that sum to the scores, and items of the user that add most to them."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from model_helpers import build
from recommend_helpers import N_ITEMS, N_USERS, load, train, write_names

import recommend
import recommending.trained
from models.registry import MODELS
from recommending.explanations import describes_vectors, make_explainer

EVIDENCE = {"neighbour_weight": 2.0}
RUNS = {
    "mf": ("mf", {}),
    "mf-evidence": ("mf", EVIDENCE),
    "lgn-spread": ("lgn", {**EVIDENCE, "neighbour_scale": "spread"}),
    "vbpr": ("vbpr", {}),
    "freedom": ("freedom", EVIDENCE),
    "itemknn": ("itemknn", {}),
    "ease": ("ease", {}),
    "recgoat": ("lgn_mm", {}),
    "recgoat-evidence": ("lgn_mm", {**EVIDENCE, "fuse_norm": "none", "user_text_feat": "mean"}),
}


def table(text):
    """The rows of tab-separated text as dicts."""
    header, *lines = (line.split("\t") for line in text.splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


def parts_of(row):
    """{name: number} of the parts in a row."""
    return {name[6:]: float(value) for name, value in row.items() if name.startswith("score_")}


def reasons_of(row):
    """[(item, what it adds), ...] in a row."""
    cells = [(row[f"because_{n}"], row[f"because_{n}_adds"]) for n in (1, 2, 3)]
    return [(item, float(adds)) for item, adds in cells if item]


@pytest.mark.parametrize("name", RUNS)
def test_parts_sum_to_the_scores_of_the_ranking(small_dataset, tmp_path, run, name):
    model, changes = RUNS[name]
    folder = train(small_dataset, tmp_path / "runs", model, **changes)
    plain = table(run(folder, "--topk", str(N_ITEMS))[1])
    code, text, _ = run(folder, "--topk", str(N_ITEMS), "--explain")
    explained = table(text)
    assert code == 0 and [(r["user"], r["item"]) for r in explained] == [
        (r["user"], r["item"]) for r in plain
    ]
    for row, before in zip(explained, plain, strict=True):
        assert (row["user"], row["item"]) == (before["user"], before["item"])
        assert sum(parts_of(row).values()) == pytest.approx(float(row["score"]), abs=1e-5)
        assert float(row["score"]) == pytest.approx(float(before["score"]), rel=1e-4, abs=1e-5)
    has_evidence = "neighbour_weight" in changes or model in ("itemknn", "ease")
    assert ("evidence" in parts_of(explained[0])) == has_evidence


def score_and_evidence(model, dataset, user, item):
    """user . item in float64, and what each TRAIN item of the user adds by a dense W."""
    users, items = (vectors.detach().double().numpy() for vectors in model.embeddings())
    weights = model.item_weights()
    own = [j for u, j in dataset.interactions.train if u == user]
    return users[user] @ items[item], weights.factor * weights.matrix.to_dense().double().numpy()[own, item]


def test_evidence_and_reasons_are_those_of_the_formula(small_dataset, tmp_path):
    """By loops: what an item of the user adds is its weight, and its message to the user's vector."""
    folder = train(small_dataset, tmp_path / "runs", "lgn", **EVIDENCE)
    model, dataset, config = load(folder)
    explainer = make_explainer(model, dataset)
    with torch.no_grad():
        start = torch.cat([model.user, model.item]).double().numpy()
        item = model.embeddings()[1].double().numpy()
        dense = model.adjacency.to_dense().double().numpy()
    below = sum(np.linalg.matrix_power(dense, k) @ start for k in range(config.layer))[N_USERS:]
    below /= config.layer + 1
    for user in range(0, N_USERS - 1, 5):
        own = [j for u, j in dataset.interactions.train.tolist() if u == user]
        why = explainer.explain(user, range(N_ITEMS))
        for i in range(N_ITEMS):
            vectors, evidence = score_and_evidence(model, dataset, user, i)
            assert why.parts["id"][i] == pytest.approx(vectors, abs=1e-6)
            assert why.parts["evidence"][i] == pytest.approx(evidence.sum(), abs=1e-6)
            adds = [dense[user, N_USERS + j] * below[j] @ item[i] + w for j, w in zip(own, evidence)]
            best = sorted(zip(own, adds, strict=True), key=lambda pair: -pair[1])[:3]
            expected = [(j, value) for j, value in best if value > 0]
            assert [j for j, _ in why.because[i]] == [j for j, _ in expected]
            assert [v for _, v in why.because[i]] == pytest.approx([v for _, v in expected], abs=1e-6)


def test_reasons_of_an_item_model_sum_to_the_score(small_dataset, tmp_path):
    """With three items or fewer all are named: an ItemKNN's score is nothing else."""
    folder = train(small_dataset, tmp_path / "runs", "itemknn")
    model, dataset, _ = load(folder)
    explainer, short = make_explainer(model, dataset), 0
    weights = model.weights.to_dense().numpy()
    for user in range(N_USERS):
        why = explainer.explain(user, range(N_ITEMS))
        own = [j for u, j in dataset.interactions.train.tolist() if u == user]
        for i in range(N_ITEMS):
            if np.count_nonzero(weights[own, i]) <= 3:
                short += 1
                assert sum(adds for _, adds in why.because[i]) == pytest.approx(why.scores[i])
    assert short > 100


def test_a_user_without_train_items_has_scores_and_no_reasons(lgn, run):
    rows = [r for r in table(run(lgn, "--explain")[1]) if r["user"] == str(N_USERS - 1)]
    assert len(rows) == 20 and not any(reasons_of(row) for row in rows)


def test_json_lines_have_the_reasons_of_the_table(recgoat, small_dataset, run):
    write_names(small_dataset)
    rows = table(run(recgoat, "--topk", "3", "--explain")[1])
    text = run(recgoat, "--topk", "3", "--explain", "--format", "jsonl", output="out.jsonl")[1]
    found = []
    for record in map(json.loads, text.splitlines()):
        for n, (item, score, title) in enumerate(zip(record["item"], record["score"], record["title"])):
            parts = {name: values[n] for name, values in record["parts"].items()}
            because = [(reason["item"], reason["adds"]) for reason in record["because"][n]]
            found.append((record["user"], item, score, title, parts, because))
    keys = ("user", "item", "title")
    assert [(u, i, t) for u, i, _, t, *_ in found] == [tuple(row[key] for key in keys) for row in rows]
    for (*_, score, _, parts, because), row in zip(found, rows, strict=True):
        assert (score, parts, because) == (float(row["score"]), parts_of(row), reasons_of(row))


def test_parquet_has_the_reasons_of_the_table(recgoat, run, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow", reason="pyarrow is optional")
    rows = table(run(recgoat, "--topk", "3", "--explain")[1])
    argv = ["--checkpoint", str(recgoat), "--topk", "3", "--explain", "--format", "parquet", "--cuda", "0"]
    assert recommend.main([*argv, "--output", str(tmp_path / "o.parquet")]) == 0
    frame = pandas.read_parquet(tmp_path / "o.parquet")
    assert list(frame) == list(rows[0])
    for column in frame:
        expected = [row[column] for row in rows]
        if column == "rank" or "score" in column or "adds" in column:
            numbers = [float(value) if value else np.nan for value in expected]
            assert frame[column].to_numpy(float) == pytest.approx(numbers, nan_ok=True, abs=1e-5)
        else:
            assert frame[column].fillna("").tolist() == expected


@pytest.mark.parametrize(
    "flags",
    [["--similar_items", "1"], ["--new_users", "x"], ["--export_embeddings", "x.npz"], ["--cold_items", "x"]],
)
def test_what_cannot_be_explained_is_refused(lgn, run, flags):
    code, _, err = run(lgn, "--explain", *flags, output=None)
    assert code == 2 and "--explain is for" in err


def test_chosen_users_have_their_own_reasons(recgoat, run):
    everybody = table(run(recgoat, "--explain")[1])
    chosen = table(run(recgoat, "--explain", "--users", "7,3")[1])
    assert chosen == [row for user in "73" for row in everybody if row["user"] == user]


@pytest.mark.parametrize("name", MODELS)
def test_a_built_in_model_says_itself_what_each_item_adds_to_its_users(small_dataset, name):
    """Where the class inherits the answer and replaces the vectors, the answer is not used."""
    model = build(small_dataset, model=name)
    assert model.history_part() is None or describes_vectors(model, "history_part")


OWN = """
import torch

from model import RecGOAT
from models.lightgcn import LightGCN


class Scaled(LightGCN):
    def embeddings(self, users=None, items=None):
        user, item = super().embeddings(users, items)
        return 3 * user, 2 * item


class Shifted(RecGOAT):
    def embeddings(self, users=None, items=None):
        user, item = super().embeddings(users, items)
        return user, item + 1
"""


@pytest.mark.parametrize("name, parts", [("Scaled", {"id"}), ("Shifted", {"vectors"})])
def test_a_class_that_replaces_the_vectors_is_not_explained_by_those_it_inherits(
    small_dataset, tmp_path, name, parts
):
    (tmp_path / "own.py").write_text(OWN)
    own_model = f"{tmp_path}/own.py:{name}"
    folder = train(small_dataset, tmp_path / "runs", own_model)
    model, dataset, _ = recommending.trained.load_run(folder / "best.pt", {"cuda": 0}, own_model)
    explainer = make_explainer(model, dataset)
    why = explainer.explain(2, range(N_ITEMS))
    own = [j for u, j in dataset.interactions.train.tolist() if u == 2]
    with torch.no_grad():
        vectors = model.embeddings()
        alone = [model.new_user_vectors(one_item(j), vectors[1])[0].double().numpy()[0] for j in own]
        user, item = (one.double().numpy() for one in vectors)
    assert set(why.parts) == parts
    assert sum(why.parts.values()) == pytest.approx(item @ user[2], abs=1e-5)
    adds = np.array(alone) @ item.T / len(own)  # an estimate, as for a model without history_part
    for i in range(N_ITEMS):
        assert [value for _, value in why.because[i]] == pytest.approx(
            [value for value in np.sort(adds[:, i])[::-1][:3] if value > 0], abs=1e-5
        )


def one_item(item):
    """The history of a user with one item."""
    return sp.csr_matrix(([1.0], ([0], [item])), (1, N_ITEMS), dtype=np.float32)
