"""Which runs share a row or a table, and which must not be averaged."""

import csv
import json
import re

import pytest
from report_helpers import PROTOCOL, edit_json, read_table, run_report, write_run

import report


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lr": 0.5}, "lr (0.001, 0.5)"),
        ({"recdim": 32, "layer": 2}, "recdim (64, 32), layer (3, 2)"),
        ({"data": "two"}, "data: interactions (one, two)"),
        ({"protocol": {**PROTOCOL, "eval_dropout": 1}}, "protocol"),
        ({"select_on": "test"}, "select_on (valid, test)"),
        # Runs of write_run trained 6 epochs: the limit ended the second one, patience the first.
        ({"epochs": 6}, "epochs (1000, 6)"),
    ],
)
def test_different_runs_of_one_name_are_refused(root, capsys, changes, message):
    folders = [write_run(root, 1, 0.1, model="lgn"), write_run(root, 2, 0.1, model="lgn", **changes)]
    out = root.parent / "out"
    assert run_report(root) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert "LightGCN" in error
    assert all(str(folder) in error for folder in folders)
    assert not out.exists()
    assert run_report(root, "--list") == 0
    assert str(folders[1]) in capsys.readouterr().out
    assert report.main([str(folders[1]), "--output", str(out), "--figures", "0"]) == 0


def test_two_runs_of_one_seed_are_refused(root, capsys):
    folders = [write_run(root, 1, 0.1), write_run(root, 1, 0.1)]
    assert run_report(root) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "same seed, 1" in error
    assert all(str(folder) in error for folder in folders)


def test_all_pairs_of_a_row_are_compared(root, capsys):
    """The first run fits both others: it has the limit of one, and patience ended it and the other."""
    folders = [write_run(root, seed, 0.1, epochs=limit) for seed, limit in ((1, 6), (2, 6), (3, 1000))]
    edit_json(folders[0] / "result.json", {"epochs": 5})
    assert run_report(root) == 2
    assert f"{folders[1]} and {folders[2]} differ in epochs (6, 1000)" in capsys.readouterr().err


def test_runs_that_reached_the_same_limit_share_a_row(root):
    for seed in (1, 2):
        write_run(root, seed, 0.1, epochs=6)
    assert run_report(root, "--figures", "0") == 0
    assert [row["seeds"] for row in read_table(root, "baby_results")] == ["2"]


def test_rows_are_separated_by_name_but_not_by_settings_without_effect(root):
    """threads has none, and epochs none on runs that patience ended after 6 epochs."""
    write_run(root, 1, 0.1)
    write_run(root, 2, 0.1, threads=2, epochs=7)
    write_run(root, 1, 0.2, lr=0.5, name="fast")
    assert run_report(root, "--figures", "0") == 0
    rows = read_table(root, "baby_results")
    assert [(row["method"], row["seeds"]) for row in rows] == [("LightGCN", "2"), ("fast", "1")]


def test_different_data_and_protocols_get_separate_tables(root, capsys):
    write_run(root, 1, 0.1, model="mf")
    write_run(root, 1, 0.2, model="lgn", data="two")
    write_run(root, 1, 0.3, model="mf", dataset="sports_raw")
    write_run(root, 1, 0.4, model="lgn_mm", select_on="test", protocol={**PROTOCOL, "selected_on": "test"})
    write_run(root, 1, 0.5, name="at 10", topks=(10,))
    assert run_report(root, "--figures", "0") == 0
    out = capsys.readouterr().out
    tables = {
        slug: [row["method"] for row in read_table(root, f"{slug}_results")]
        for slug in ("baby", "baby_2", "sports", "baby_3", "baby_4")
    }
    assert sorted(tables.values()) == [["LightGCN"], ["MF"], ["MF"], ["RecGOAT (leaks)"], ["at 10"]]
    assert tables["sports"] == ["MF"]
    assert out.count("**Warning.** The best epoch was selected on the test split") == 1
    assert [line for line in out.splitlines() if line.startswith("## ")] == [
        "## Baby",
        "## Baby (2)",
        "## Sports",
        "## Baby (3)",
        "## Baby (4)",
    ]
    protocol = "Best epoch selected by ndcg@5 on validation; training items masked at test; "
    assert f"## Baby (2)\n\n{protocol}hash of the interactions: two." in out
    assert run_report(root, "--list") == 0
    assert capsys.readouterr().out.count("leaks: epoch selected on test") == 1


@pytest.mark.parametrize("order", [("demo", "demo_2", "demo"), ("demo", "demo", "demo_2")])
def test_no_section_overwrites_the_files_of_another(root, order):
    for seed, dataset in enumerate(order, 1):
        write_run(root, seed, seed / 10, dataset=dataset, data=str(seed), name=f"row {seed}")
    assert run_report(root, "--figures", "0") == 0
    tables = [list(csv.DictReader(path.open())) for path in (root.parent / "out").glob("*_results.csv")]
    assert sorted(row["recall@5"] for rows in tables for row in rows) == ["0.1", "0.2", "0.3"]


def test_different_environments_are_noted(root, capsys):
    write_run(root, 1, 0.1, model="mf")
    write_run(root, 1, 0.2, model="lgn", threads=3)
    path = write_run(root, 2, 0.2, model="lgn", threads=3) / "result.json"
    versions = json.loads(path.read_text())["versions"]
    edit_json(path, {"versions": {**versions, "git_commit": "b" * 40, "torch": "2.11.0"}})
    assert run_report(root, "--figures", "0") == 0
    out = capsys.readouterr().out
    assert "The runs differ in threads: 0 (MF); 3 (LightGCN)." in out
    assert "The runs differ in torch: 2.13.0 (MF, LightGCN); 2.11.0 (LightGCN)." in out
    assert "The runs differ in git commit: aaaaaaaa (MF, LightGCN); bbbbbbbb (LightGCN)." in out
    assert "differ in device" not in out
    assert re.search(r"All runs: .*platform Linux, device cpu\.", out)
