"""Ranked lists: values of users, refusals, breakdowns by history and popularity."""

import numpy as np
import pytest
from report_helpers import METRICS, per_user, read_table, run_report, write_ranked_run, write_run

from reporting import rankings
from reporting import runs as report_runs


def test_values_of_users_and_their_means(tmp_path):
    folder, arrays = write_ranked_run(tmp_path, 3)
    run = report_runs.read_run(folder)
    ranking = rankings.read_ranking(run)
    for metric in METRICS:
        np.testing.assert_allclose(ranking.values[metric], per_user(arrays, metric), atol=1e-12)
        assert ranking.values[metric].mean() == pytest.approx(run.result["test"][metric], abs=1e-12)


def test_lists_of_another_run_are_refused(tmp_path, capsys):
    root = tmp_path / "runs"
    (first, _), (second, _) = write_ranked_run(root, 1), write_ranked_run(root, 2)
    (first / "test_ranking.npz").write_bytes((second / "test_ranking.npz").read_bytes())
    assert run_report(root) == 2
    assert "not of one run" in capsys.readouterr().err


def test_lists_of_other_users_are_refused(tmp_path, capsys):
    root = tmp_path / "runs"
    write_ranked_run(root, 1)
    folder, arrays = write_ranked_run(root, 2)
    np.savez(folder / "test_ranking.npz", **{**arrays, "users": arrays["users"] + 1})
    assert run_report(root) == 2
    assert "test users are not those of" in capsys.readouterr().err


def test_breakdown_by_history(tmp_path):
    root, shares = tmp_path / "runs", {}
    runs = [write_ranked_run(root, seed)[1] for seed in (1, 2)]
    assert run_report(root, "--figures", "0") == 0
    rows = {row["metric"]: row for row in read_table(root, "baby_users")}
    names = [name for name in rows["recall@5"] if name.endswith("users)")]
    covered = []
    for name in names:
        ends = [int(end) for end in name.split()[0].split("–")]
        inside = [user for user, length in enumerate(runs[0]["history"]) if ends[0] <= length <= ends[-1]]
        covered += inside
        assert f"({len(inside)} users)" in name and len(inside) >= 5
        for metric in METRICS:
            means = [per_user(arrays, metric)[inside].mean() for arrays in runs]
            assert float(rows[metric][name]) == pytest.approx(np.mean(means)) and float(
                rows[metric][f"{name} sd"]
            ) == pytest.approx(np.std(means, ddof=1))
    assert sorted(covered) == list(range(50)) and 3 <= len(names) <= 4


def test_breakdown_by_popularity(tmp_path):
    root = tmp_path / "runs"
    arrays = write_ranked_run(root, 1)[1]
    assert run_report(root, "--figures", "0") == 0
    popularity, total, so_far, bins = arrays["popularity"].tolist(), arrays["popularity"].sum(), 0, {}
    for item in sorted(range(len(popularity)), key=lambda item: (-popularity[item], item)):
        bins[item] = (
            "cold"
            if popularity[item] == 0
            else "head"
            if so_far < total / 2
            else "middle"
            if so_far < 0.8 * total
            else "tail"
        )
        so_far += popularity[item]
    assert set(bins.values()) == {"head", "middle", "tail", "cold"}
    for row in read_table(root, "baby_items"):
        k = int(row["metric"].split("@")[1])
        for name in set(bins.values()):
            (column,) = (column for column in row if column.startswith(name))
            pairs = [
                (user, item)
                for user, (low, high) in enumerate(zip(arrays["relevant_crow"], arrays["relevant_crow"][1:]))
                for item in arrays["relevant_items"][low:high]
                if bins[item] == name
            ]
            found = sum(item in arrays["items"][user, :k] for user, item in pairs)
            assert float(row[column]) == pytest.approx(found / len(pairs))
            assert column == f"{name} ({list(bins.values()).count(name)} items, {len(pairs)} relevant)"


def test_users_of_one_history_length_are_one_bin():
    bins, names = rankings.history_bins(np.array([4, 4, 4, 4]))
    assert bins.tolist() == [0, 0, 0, 0] and names == ["4"]


def test_rows_without_lists_are_named(tmp_path, capsys):
    root = tmp_path / "runs"
    write_ranked_run(root, 1, model="lgn"), write_run(root, 1, 0.3, model="mf")
    assert run_report(root, "--figures", "0") == 0
    assert "no test_ranking.npz: MF." in capsys.readouterr().out and {
        row["method"] for row in read_table(root, "baby_users")
    } == {"LightGCN"}
