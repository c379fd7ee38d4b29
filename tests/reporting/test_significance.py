"""Significance tests over seeds and over users."""

import itertools

import numpy as np
import pytest
from report_helpers import (
    per_user,
    read_table,
    run_report,
    t_test_by_hand,
    two_names,
    write_ranked_run,
    write_run,
)
from scipy import stats

from reporting import tables


def wilcoxon_by_hand(ours, other):
    """Two-sided exact p of the signed-rank test, over all signs; for differences without ties."""
    difference = np.subtract(ours, other)
    ranks = np.abs(difference).argsort().argsort() + 1
    sums = np.array([np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=len(ranks))])
    least = min(np.dot(difference > 0, ranks), np.dot(difference < 0, ranks))
    return min(2 * np.mean(sums <= least), 1)


def test_p_values_against_their_definitions():
    rng = np.random.default_rng(0)
    for n in (3, 5, 8):
        ours, other = rng.random(n) + 0.3, rng.random(n)
        assert tables.paired_tests(ours, other) == pytest.approx(
            (t_test_by_hand(ours, other), wilcoxon_by_hand(ours, other)), rel=1e-6
        )
    assert np.isnan(tables.paired_tests([1.0], [2.0])).all() and tables.paired_tests(
        [1.0, 2.0], [1.0, 2.0]
    ) == (1, 1)


def test_ours_against_the_best_other_row(tmp_path, capsys):
    root = tmp_path / "runs"
    two_names(root)
    write_run(root, 2, 0.28, model="mf")  # the best other row by its mean, with one seed in common
    assert run_report(root, "--figures", "0") == 0
    row = read_table(root, "baby_significance")[0]
    assert (row["best other"], row["seeds"], row["p t-test, seeds"], row["users"]) == ("MF", "1", "", "0")
    assert float(row["gain in %"]) == pytest.approx(100 * (1.01 / 3 / 0.28 - 1))
    assert float(row["gain"]) == pytest.approx(1.01 / 3 - 0.28) and "Too few seeds" in capsys.readouterr().out
    assert run_report(root, "--figures", "0", "--ours", "LightGCN") == 0
    row, out = read_table(root, "baby_significance")[1], capsys.readouterr().out
    assert row["best other"] == "RecGOAT" and row["seeds"] == "3" and float(row["gain"]) < 0
    assert float(row["p t-test, seeds"]) == pytest.approx(
        t_test_by_hand([0.3, 0.35, 0.36], [0.2, 0.29, 0.1]), rel=1e-6
    )
    assert row["p Wilcoxon, seeds"] == "0.25" and "With 3 seeds a Wilcoxon p cannot be below 0.25" in out


def test_six_seeds_are_enough(tmp_path, capsys):
    two_names(tmp_path / "runs", np.linspace(0.3, 0.4, 6), np.linspace(0.2, 0.31, 6))
    assert run_report(tmp_path / "runs", "--figures", "0") == 0
    assert "Wilcoxon p cannot" not in capsys.readouterr().out
    assert read_table(tmp_path / "runs", "baby_significance")[0]["p Wilcoxon, seeds"] == "0.03125"


def test_significance_over_users_pairs_the_means_over_seeds(tmp_path):
    root, values = tmp_path / "runs", {"lgn": [], "lgn_mm": []}
    for seed, model in ((1, "lgn"), (2, "lgn"), (3, "lgn_mm"), (4, "lgn_mm")):
        _, arrays = write_ranked_run(root, seed, model=model)
        values[model].append(per_user(arrays, "recall@10"))
    assert run_report(root, "--figures", "0") == 0
    row = read_table(root, "baby_significance")[1]
    ours, other = np.mean(values["lgn_mm"], 0), np.mean(values["lgn"], 0)
    assert row["seeds"] == "0" and row["users"] == "50"
    assert float(row["p t-test, users"]) == pytest.approx(t_test_by_hand(ours, other), rel=1e-5)
    assert float(row["p Wilcoxon, users"]) == pytest.approx(stats.wilcoxon(ours - other).pvalue)
