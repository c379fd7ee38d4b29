"""Which runs may stand together: rows, refusals, tables of their own."""

import json

import pytest
from report_helpers import PROTOCOL, read_table, run_report, write_run

import report


@pytest.mark.parametrize(
    "more, told",
    [
        ({"lr": 0.5}, "lr (0.001, 0.5)"),
        ({"recdim": 32, "layer": 2}, "recdim (64, 32), layer (3, 2)"),
        ({"data": "two"}, "data: interactions (one, two)"),
        ({"protocol": {**PROTOCOL, "eval_dropout": 1}}, "protocol"),
        ({"select_on": "test"}, "select_on (valid, test)"),
    ],
)
def test_runs_of_one_name_that_differ_are_refused(tmp_path, capsys, more, told):
    root = tmp_path / "runs"
    folders = [write_run(root, 1, 0.1, model="lgn"), write_run(root, 2, 0.1, model="lgn", **more)]
    assert run_report(root) == 2
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1
        and told in error
        and all(str(folder) in error for folder in folders)
        and "LightGCN" in error
    )
    assert not (tmp_path / "out").exists()
    assert run_report(root, "--list") == 0 and str(folders[1]) in capsys.readouterr().out
    assert report.main([str(folders[1]), "--output", str(tmp_path / "out"), "--figures", "0"]) == 0


def test_two_runs_of_one_seed_are_refused(tmp_path, capsys):
    write_run(tmp_path / "runs", 1, 0.1), write_run(tmp_path / "runs", 1, 0.1)
    assert run_report(tmp_path / "runs") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "same seed, 1" in error and "run_0" in error and "run_1" in error


def test_a_name_sets_runs_apart_and_free_settings_do_not(tmp_path):
    root = tmp_path / "runs"
    (
        write_run(root, 1, 0.1),
        write_run(root, 2, 0.1, threads=2, epochs=7),
        write_run(root, 1, 0.2, lr=0.5, name="fast"),
    )
    assert run_report(root, "--figures", "0") == 0
    assert [(row["method"], row["seeds"]) for row in read_table(root, "baby_results")] == [
        ("LightGCN", "2"),
        ("fast", "1"),
    ]


def test_other_data_and_protocols_have_tables_of_their_own(tmp_path, capsys):
    root = tmp_path / "runs"
    write_run(root, 1, 0.1, model="mf"), write_run(root, 1, 0.2, model="lgn", data="two")
    write_run(root, 1, 0.3, model="mf", dataset="sports_raw")
    write_run(root, 1, 0.4, model="lgn_mm", select_on="test", protocol={**PROTOCOL, "selected_on": "test"})
    write_run(root, 1, 0.5, name="at 10", topks=(10,))
    assert run_report(root, "--figures", "0") == 0
    out = capsys.readouterr().out
    tables = {
        slug: [row["method"] for row in read_table(root, f"{slug}_results")]
        for slug in ("baby", "baby_2", "sports", "baby_3", "baby_4")
    }
    assert sorted(tables.values()) == [
        ["LightGCN"],
        ["MF"],
        ["MF"],
        ["RecGOAT (leaks)"],
        ["at 10"],
    ] and tables["sports"] == ["MF"]
    assert (
        run_report(root, "--list") == 0 and capsys.readouterr().out.count("leaks: epoch chosen on test") == 1
    )
    assert out.count("**Warning.** These runs chose their epoch on the test split") == 1
    assert (
        "## Baby: epoch chosen by ndcg@5 on validation, train items masked at test (interactions two)" in out
    )


def test_other_surroundings_are_noted(tmp_path, capsys):
    root = tmp_path / "runs"
    write_run(root, 1, 0.1, model="mf"), write_run(root, 1, 0.2, model="lgn", threads=3)
    folder = write_run(root, 2, 0.2, model="lgn", threads=3)
    result = json.loads((folder / "result.json").read_text())
    result["versions"] |= {"git_commit": "b" * 40, "torch": "2.11.0"}
    (folder / "result.json").write_text(json.dumps(result))
    assert run_report(root, "--figures", "0") == 0
    out = capsys.readouterr().out
    assert (
        "The runs differ in threads: 0 (MF); 3 (LightGCN)." in out
        and "The runs differ in torch: 2.13.0 (MF, LightGCN); 2.11.0 (LightGCN)." in out
    )
    assert (
        "The runs differ in git commit: aaaaaaaa (MF, LightGCN); bbbbbbbb (LightGCN)." in out
        and "differ in device" not in out
    )
