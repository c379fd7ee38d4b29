"""Breakdown by quality of the features: thirds, who lends the values to whom, and when there is no table."""

import json

import numpy as np
import pytest
from report_helpers import edit_json, read_table, run_report, write_ranked_run

from reporting.rankings import quality_bins


def write(root, seed, features, lifts=None, **settings):
    """A ranked run of these features, {kind: hash}, that stored these lifts. Returns its arrays."""
    folder, arrays = write_ranked_run(root, seed, **settings)
    data = json.loads((folder / "result.json").read_text())["data"]
    edit_json(folder / "result.json", {"data": {**data, "features": features}})
    np.savez(folder / "test_ranking.npz", **arrays, **(lifts or {}))
    return arrays


def random_lift(seed, n_items=40):
    """Lifts [I] float32 with many zeros, and some items without one."""
    rng = np.random.default_rng(seed)
    return rng.choice([0, 0, 0, 1.5, 2.5, 7.25, np.nan], n_items).astype(np.float32)


def naive_bins(lift, popularity):
    """Name of the third of each item: ranked in tenths of the interactions, in order of popularity."""
    known = [i for i in range(len(lift)) if not np.isnan(lift[i]) and popularity[i]]
    before, tenths = 0, {}
    for item in sorted(known, key=lambda i: (popularity[i], i)):
        middle = before + popularity[item] / 2
        tenths.setdefault(int(10 * middle / sum(popularity[known])), []).append(item)
        before += popularity[item]
    names = ["none"] * len(lift)
    for members in tenths.values():
        for item in members:
            below = sum(lift[other] < lift[item] for other in members)
            equal = sum(lift[other] == lift[item] for other in members)
            names[item] = ("low", "middle", "high")[int(3 * (below + equal / 2) / len(members))]
    return names


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_thirds_equal_loops(seed):
    popularity = np.random.default_rng(seed).integers(0, 30, 200)
    lift = random_lift(seed, 200)
    names = np.array(["low", "middle", "high", "none"])[quality_bins(lift, popularity)]
    assert names.tolist() == naive_bins(lift, popularity)
    assert set(names) == {"low", "middle", "high", "none"}


def test_thirds_of_equal_and_of_no_values():
    assert quality_bins(np.zeros(5), np.arange(5)).tolist() == [3, 1, 1, 1, 1]
    assert quality_bins(np.full(3, np.nan), np.ones(3, int)).tolist() == [3, 3, 3]
    # Of equal popularity, thirds of one group are thirds of the lifts.
    assert quality_bins(np.arange(30)[::-1], np.full(30, 4)).reshape(10, 3).tolist() == [[2, 1, 0]] * 10


def test_a_table_for_every_modality_with_the_values_of_one_run(root):
    lifts = {"text": random_lift(1), "audio": random_lift(2)}
    hashes = {"text": "a" * 64, "audio": "b" * 64}
    stored = {f"lift_{modality}": lift for modality, lift in lifts.items()}
    arrays = {
        "FREEDOM": [write(root, seed, hashes, stored, model="freedom") for seed in (1, 2)],
        "VBPR": [write(root, seed, hashes, model="vbpr") for seed in (3, 4)],
        "LightGCN": [write(root, seed, {}, model="lgn") for seed in (5, 6)],
    }
    assert run_report(root, "--figures", "0") == 0
    users = np.repeat(np.arange(50), np.diff(arrays["VBPR"][0]["relevant_crow"]))
    popularity = arrays["VBPR"][0]["popularity"]
    pairs = list(zip(users, arrays["VBPR"][0]["relevant_items"]))
    for modality, lift in lifts.items():
        names = naive_bins(lift, popularity)
        rows = read_table(root, f"baby_quality_{modality}")
        assert {row["method"] for row in rows} == arrays.keys() and len(rows) == 6
        for row in rows:
            k = int(row["metric"].split("@")[1])
            for name in {names[item] for _, item in pairs}:
                inside = [(user, item) for user, item in pairs if names[item] == name]
                mean = np.mean([popularity[item] for _, item in inside])
                column = (
                    f"{name} ({names.count(name)} items, {len(inside)} relevant, mean popularity {mean:.1f})"
                )
                shares = [
                    np.mean([item in run["items"][user, :k] for user, item in inside])
                    for run in arrays[row["method"]]
                ]
                assert float(row[column]) == pytest.approx(np.mean(shares))
                assert float(row[f"{column} sd"]) == pytest.approx(np.std(shares, ddof=1))
    assert not (root.parent / "out" / "baby_quality_image.csv").exists()


@pytest.mark.parametrize(
    "first, second",
    [
        ({"text": "a" * 64}, {"text": "b" * 64}),
        ({"text": "a" * 64}, {"text": "a" * 64, "text neighbours": "c" * 64}),
    ],
)
def test_no_table_for_rows_of_different_features(root, capsys, first, second):
    stored = {"lift_text": random_lift(1)}
    write(root, 1, first, stored, model="lgn_mm")
    write(root, 1, second, stored, model="freedom")
    assert run_report(root, "--figures", "0") == 0
    assert "No results by quality of the text features: the rows" in capsys.readouterr().out
    assert not (root.parent / "out" / "baby_quality_text.csv").exists()


def test_runs_of_versions_without_these_values_have_no_table(root, capsys):
    write(root, 1, {"text": "a" * 64}, model="lgn_mm")
    assert run_report(root, "--figures", "0") == 0
    assert "quality of" not in capsys.readouterr().out


@pytest.mark.parametrize("lift", [np.ones(39, np.float32), np.ones(40, int), np.full(40, "x")])
def test_values_of_another_form_are_damage(root, capsys, lift):
    write(root, 1, {"text": "a" * 64}, {"lift_text": lift}, model="lgn_mm")
    assert run_report(root) == 2
    assert "is damaged (a lift is not a list of 40 numbers)" in capsys.readouterr().err
