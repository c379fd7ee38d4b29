"""Ranked lists: metrics per user, refusals, breakdowns by history length and popularity."""

import numpy as np
import pytest
from report_helpers import METRICS, per_user, read_table, run_report, write_ranked_run, write_run

from reporting import rankings
from reporting.runs import read_run


def test_metrics_per_user(root):
    folder, arrays = write_ranked_run(root, 3)
    run = read_run(folder)
    ranking = rankings.read_ranking(run)
    for metric in METRICS:
        np.testing.assert_allclose(ranking.metrics[metric], per_user(arrays, metric), atol=1e-12)
        assert ranking.metrics[metric].mean() == pytest.approx(run.result["test"][metric], abs=1e-12)


def test_lists_of_another_run_are_refused(root, capsys):
    (first, _), (second, _) = write_ranked_run(root, 1), write_ranked_run(root, 2)
    (first / "test_ranking.npz").write_bytes((second / "test_ranking.npz").read_bytes())
    assert run_report(root) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not from the same run" in error
    assert str(first / "test_ranking.npz") in error


@pytest.mark.parametrize("name", ["users", "history", "popularity"])
def test_lists_of_other_users_or_items_are_refused(root, capsys, name):
    first, _ = write_ranked_run(root, 1)
    second, arrays = write_ranked_run(root, 2)
    np.savez(second / "test_ranking.npz", **{**arrays, name: arrays[name] + 1})
    assert run_report(root) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{second}: its test users or items differ from those of {first}" in error


def test_breakdown_by_history_length(root):
    arrays = [write_ranked_run(root, seed)[1] for seed in (1, 2)]
    assert run_report(root, "--figures", "0") == 0
    rows = {row["metric"]: row for row in read_table(root, "baby_users")}
    columns = [name for name in rows["recall@5"] if name.endswith("users)")]
    covered = []
    for column in columns:
        ends = [int(end) for end in column.split()[0].split("–")]
        users = [user for user, length in enumerate(arrays[0]["history"]) if ends[0] <= length <= ends[-1]]
        covered += users
        assert f"({len(users)} users)" in column
        assert len(users) >= 5
        for metric in METRICS:
            means = [per_user(run_arrays, metric)[users].mean() for run_arrays in arrays]
            assert float(rows[metric][column]) == pytest.approx(np.mean(means))
            assert float(rows[metric][f"{column} sd"]) == pytest.approx(np.std(means, ddof=1))
    assert sorted(covered) == list(range(50))
    assert 3 <= len(columns) <= 4


def bin_names(popularity):
    """{item: bin} by the definition of the bins, in a loop from the most popular item down."""
    bins, more_popular = {}, 0
    for item in sorted(range(len(popularity)), key=lambda item: (-popularity[item], item)):
        if popularity[item] == 0:
            bins[item] = "cold"
        elif more_popular < popularity.sum() / 2:
            bins[item] = "head"
        else:
            bins[item] = "middle" if more_popular < 0.8 * popularity.sum() else "tail"
        more_popular += popularity[item]
    return bins


def test_breakdown_by_popularity(root):
    _, arrays = write_ranked_run(root, 1)
    assert run_report(root, "--figures", "0") == 0
    bins = bin_names(arrays["popularity"])
    assert set(bins.values()) == {"head", "middle", "tail", "cold"}
    users = np.repeat(np.arange(50), np.diff(arrays["relevant_crow"]))
    for row in read_table(root, "baby_items"):
        k = int(row["metric"].split("@")[1])
        for name in set(bins.values()):
            (column,) = (column for column in row if column.startswith(name))
            pairs = [
                (user, item) for user, item in zip(users, arrays["relevant_items"]) if bins[item] == name
            ]
            found = sum(item in arrays["items"][user, :k] for user, item in pairs)
            assert float(row[column]) == pytest.approx(found / len(pairs))
            assert column == f"{name} ({list(bins.values()).count(name)} items, {len(pairs)} relevant)"


def test_users_of_equal_history_length_share_a_bin():
    bins, names = rankings.history_bins(np.array([4, 4, 4, 4]))
    assert bins.tolist() == [0, 0, 0, 0]
    assert names == ["4"]


def test_rows_without_lists_are_named(root, capsys):
    write_ranked_run(root, 1, model="lgn")
    write_run(root, 1, 0.3, model="mf")
    assert run_report(root, "--figures", "0") == 0
    assert "no test_ranking.npz: MF." in capsys.readouterr().out
    assert {row["method"] for row in read_table(root, "baby_users")} == {"LightGCN"}
