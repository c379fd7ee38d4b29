"""Significance tests over seeds and over users."""

import itertools
import math

import numpy as np
import pytest
from report_helpers import per_user, read_table, run_report, write_ranked_run, write_run, write_two_models
from scipy import stats

from reporting.significance import paired_tests


def t_test_by_definition(ours, other):
    """Two-sided p value of the paired t-test, by integrating the density of Student's t distribution."""
    difference, n = np.subtract(ours, other), len(ours)
    t = abs(difference.mean()) / (difference.std(ddof=1) / math.sqrt(n))
    x = np.linspace(0, t, 200_001)
    normalisation = math.gamma(n / 2) / (math.sqrt((n - 1) * math.pi) * math.gamma((n - 1) / 2))
    density = normalisation * (1 + x**2 / (n - 1)) ** (-n / 2)
    return 1 - 2 * np.trapezoid(density, x)


def wilcoxon_by_definition(ours, other):
    """Two-sided exact p value of the signed-rank test, over all signs of the ranks. Without ties."""
    difference = np.subtract(ours, other)
    ranks = np.abs(difference).argsort().argsort() + 1
    sums = np.array([np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=len(ranks))])
    statistic = min(np.dot(difference > 0, ranks), np.dot(difference < 0, ranks))
    return min(2 * np.mean(sums <= statistic), 1)


@pytest.mark.parametrize("n", [3, 5, 8])
def test_p_values_match_their_definitions(n):
    rng = np.random.default_rng(n)
    ours, other = rng.random(n) + 0.3, rng.random(n)
    expected = t_test_by_definition(ours, other), wilcoxon_by_definition(ours, other)
    assert paired_tests(ours, other) == pytest.approx(expected, rel=1e-6)


def test_p_values_of_a_single_pair_and_of_equal_values():
    assert np.isnan(paired_tests([1.0], [2.0])).all()
    assert paired_tests([1.0, 2.0], [1.0, 2.0]) == (1, 1)


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("gap", [0.1, -0.1])
def test_equal_differences_are_no_sample(n, gap):
    """As of two models that do not depend on the seed, or the results of which differ in rounding alone."""
    assert np.isnan(paired_tests(np.full(n, 0.2 + gap), np.full(n, 0.2))).all()
    values = np.linspace(0.2, 0.3, n)
    assert np.isnan(paired_tests(values + gap, values)).all()


def test_models_that_do_not_depend_on_the_seed_have_no_p_value(root, capsys):
    write_two_models(root, recgoat=(0.3,) * 6, lightgcn=(0.2,) * 6)
    assert run_report(root, "--figures", "0") == 0
    for row in read_table(root, "baby_significance"):
        assert (row["seeds"], row["t-test p (seeds)"], row["Wilcoxon p (seeds)"]) == ("6", "", "")
    assert "A dash: fewer than two pairs, or the same difference in all of them" in capsys.readouterr().out


def test_comparison_with_the_best_other_row(root, capsys):
    write_two_models(root)
    # The best other row by its mean, with one seed in common.
    write_run(root, 2, 0.28, model="mf")
    assert run_report(root, "--figures", "0") == 0
    row = read_table(root, "baby_significance")[0]
    assert (row["best other"], row["seeds"], row["t-test p (seeds)"], row["users"]) == ("MF", "1", "", "0")
    assert float(row["gain"]) == pytest.approx(1.01 / 3 - 0.28)
    assert float(row["gain (%)"]) == pytest.approx(100 * (1.01 / 3 / 0.28 - 1))
    out = capsys.readouterr().out
    assert "Too few seeds" in out
    assert "gain: between the means over all seeds of each row" in out


def test_ours_names_the_row_to_compare(root, capsys):
    ours, other = (0.2, 0.29, 0.1), (0.3, 0.35, 0.36)
    write_two_models(root, recgoat=other, lightgcn=ours)
    write_run(root, 2, 0.28, model="mf")
    assert run_report(root, "--figures", "0", "--ours", "LightGCN") == 0
    row = read_table(root, "baby_significance")[1]
    assert row["best other"] == "RecGOAT"
    assert row["seeds"] == "3"
    assert float(row["gain"]) < 0
    assert float(row["t-test p (seeds)"]) == pytest.approx(t_test_by_definition(ours, other), rel=1e-6)
    assert row["Wilcoxon p (seeds)"] == "0.25"
    assert "With 3 seeds, a Wilcoxon p value cannot be below 0.25" in capsys.readouterr().out


def test_six_seeds_are_enough(root, capsys):
    write_two_models(root, np.linspace(0.3, 0.4, 6), np.linspace(0.2, 0.31, 6))
    assert run_report(root, "--figures", "0") == 0
    assert "Wilcoxon p value cannot" not in capsys.readouterr().out
    assert read_table(root, "baby_significance")[0]["Wilcoxon p (seeds)"] == "0.03125"


def test_tests_over_users_pair_means_over_seeds(root):
    values = {"lgn": [], "lgn_mm": []}
    for seed, model in ((1, "lgn"), (2, "lgn"), (3, "lgn_mm"), (4, "lgn_mm")):
        _, arrays = write_ranked_run(root, seed, model=model)
        values[model].append(per_user(arrays, "recall@10"))
    assert run_report(root, "--figures", "0") == 0
    row = read_table(root, "baby_significance")[1]
    ours, other = np.mean(values["lgn_mm"], 0), np.mean(values["lgn"], 0)
    assert row["seeds"] == "0"
    assert row["users"] == "50"
    assert float(row["t-test p (users)"]) == pytest.approx(t_test_by_definition(ours, other), rel=1e-5)
    assert float(row["Wilcoxon p (users)"]) == pytest.approx(stats.wilcoxon(ours - other).pvalue)


@pytest.mark.parametrize(
    "models, message", [(["lgn", "mf"], "there is no row called RecGOAT"), (["lgn_mm"], "no other row")]
)
def test_nothing_to_compare(root, capsys, models, message):
    for model in models:
        write_run(root, 1, 0.1, model=model)
    assert run_report(root, "--figures", "0") == 0
    assert message in capsys.readouterr().out
