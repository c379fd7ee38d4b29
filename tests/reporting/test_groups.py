"""Which runs share a row or a table, and which must not be averaged."""

import json

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


def test_rows_are_separated_by_name_but_not_by_free_settings(root):
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
