"""Significance tests between one method and the best of the others, over seeds and over users."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from reporting.blocks import Cell, Number, Table, Text
from reporting.groups import Group, Section
from reporting.rankings import Rankings, user_means

HEADER = [
    "metric",
    "best other",
    "gain",
    "gain (%)",
    "seeds",
    "t-test p (seeds)",
    "Wilcoxon p (seeds)",
    "users",
    "t-test p (users)",
    "Wilcoxon p (users)",
]
NOTE = (
    "Two-sided paired tests, not corrected for multiple comparisons. Over seeds, the two runs of a seed form "
    "a pair: would other training runs give the same answer? Over users, the two values of a user (each "
    "averaged over seeds) form a pair: would other users give the same answer? The latter ignores the "
    "randomness of training. gain: between the means over all seeds of each row, as in the results; seeds: "
    "those that both rows have, to which the tests over seeds are confined. A dash: fewer than two pairs, or "
    "the same difference in all of them, as between models that do not depend on the seed."
)
# With fewer pairs, no exact two-sided Wilcoxon p value is below 0.05.
MIN_WILCOXON_PAIRS = 6


def paired_tests(ours: ArrayLike, other: ArrayLike) -> tuple[float, float]:
    """Two-sided p values of the paired t-test and the Wilcoxon signed-rank test on two arrays [n].

    1 if the arrays are equal. NaN for n < 2, and if all differences are the same: pairs without variation are
    copies of one pair.
    """
    difference = np.asarray(ours) - np.asarray(other)
    if len(difference) < 2:
        return float("nan"), float("nan")
    if not difference.any():
        return 1.0, 1.0
    if np.allclose(difference, difference[0], rtol=1e-9, atol=0):
        return float("nan"), float("nan")
    # scipy warns of lost precision when the differences are nearly equal.
    with warnings.catch_warnings(action="ignore"):
        return float(stats.ttest_rel(ours, other).pvalue), float(stats.wilcoxon(difference).pvalue)


def significance(section: Section, ours: str, rankings: Rankings) -> Table | Text:
    """Compare the row called `ours` with the best other row, metric by metric."""
    mine = next((group for group in section.groups if group.name == ours), None)
    others = [group for group in section.groups if group is not mine]
    if mine is None:
        return Text(f"No significance tests: there is no row called {ours}; --ours names another row.")
    if not others:
        return Text(f"No significance tests: there is no other row to compare {ours} with.")
    rows, fewest_seeds = [], len(mine.runs)
    for metric in section.metrics:
        best = max(others, key=lambda group: group.mean(metric))
        seeds = common_seeds(mine, best)
        fewest_seeds = min(fewest_seeds, len(seeds))
        rows.append(comparison(mine, best, metric, seeds, rankings))
    title = f"Significance of the gain of {ours}, {section.dataset}"
    return Table(title, f"{section.slug}_significance", HEADER, rows, significance_note(fewest_seeds))


def common_seeds(mine: Group, other: Group) -> list[int]:
    """Seeds of which both rows have a run."""
    return sorted({run.config.seed for run in mine.runs} & {run.config.seed for run in other.runs})


def comparison(
    mine: Group, other: Group, metric: str, seeds: Sequence[int], rankings: Rankings
) -> list[Cell]:
    """One row of the table: one group against another in one metric."""
    gain, base = mine.mean(metric) - other.mean(metric), other.mean(metric)
    by_seed = [{run.config.seed: run.result["test"][metric] for run in group.runs} for group in (mine, other)]
    over_seeds = [[values[seed] for seed in seeds] for values in by_seed]
    over_users: list[ArrayLike] = [[], []]
    n_users = 0
    if mine.name in rankings and other.name in rankings:
        over_users = [user_means(rankings[group.name], metric) for group in (mine, other)]
        n_users = len(rankings[mine.name][0].users)
    return [
        metric,
        other.name,
        Number(gain, format="+.4f"),
        Number(100 * gain / base if base else None, format="+.1f"),
        len(seeds),
        *(Number(p, format=".2g") for p in paired_tests(*over_seeds)),
        n_users,
        *(Number(p, format=".2g") for p in paired_tests(*over_users)),
    ]


def significance_note(n_seeds: int) -> str:
    """Small print below a table of p values over this many seeds."""
    if n_seeds < 2:
        return f"{NOTE} Too few seeds for a test over seeds: both rows need at least two seeds in common."
    if n_seeds < MIN_WILCOXON_PAIRS:
        smallest = 2.0 ** (1 - n_seeds)
        return (
            f"{NOTE} With {n_seeds} seeds, a Wilcoxon p value cannot be below {smallest:.3g}; "
            f"it takes {MIN_WILCOXON_PAIRS} seeds to reach 0.05."
        )
    return NOTE
