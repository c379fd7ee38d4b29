"""Reading run folders: damaged files, incomplete runs, folders without runs."""

import pytest
from report_helpers import read_table, run_report, two_names, write_run

import report
from reporting import runs as report_runs


def test_incomplete_runs_are_listed_and_left_out(tmp_path, capsys):
    root = tmp_path / "runs"
    two_names(root)
    folders = [
        write_run(root, 9, 0.9, "unfinished"),
        write_run(
            root, 9, 0.9, "interrupted", result={"status": "interrupted", "reason": "SIGTERM", "epoch": 4}
        ),
        write_run(
            root,
            9,
            0.9,
            "failed",
            result={"status": "failed", "error": "epoch 3: the loss is not finite", "epoch": 2},
        ),
    ]
    with open(folders[0] / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 8, "val')  # the process was killed while it wrote
    assert run_report(root, "--figures", "0") == 0
    rows = read_table(root, "left_out")
    assert [(row["folder"], row["status"], row["epoch"], row["note"]) for row in rows] == [
        (str(folders[0]), "unfinished", "6", "no result.json: under way, or killed"),
        (str(folders[1]), "interrupted", "4", "SIGTERM"),
        (str(folders[2]), "failed", "2", "epoch 3: the loss is not finite"),
    ]
    assert "from 6 finished of 9 runs" in capsys.readouterr().out and {
        row["seeds"] for row in read_table(root, "baby_results")
    } == {"3"}
    assert report.main([str(folders[0]), "--output", str(tmp_path / "out")]) == 2
    assert "none of the 1 runs is finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    "file, content, told",
    [
        ("result.json", "{", "cannot be read"),
        ("result.json", "[]", "holds no JSON object"),
        ("result.json", '{"status": "finished", "test": {}}', "lacks test metrics"),
        ("result.json", '{"status": "finished", "test": []}', "no result of this program"),
        ("config.json", '{"lerning": 1}', "unknown settings"),
        ("config.json", '{"lr": -1}', "--lr -1"),
        ("test_ranking.npz", "PK", "is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path, capsys, file, content, told):
    folder = write_run(tmp_path / "runs", 1, 0.1)
    (folder / file).write_text(content)
    assert run_report(tmp_path / "runs") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and told in error and str(folder / file) in error


def test_folders_without_runs(tmp_path, capsys):
    for path in (tmp_path / "nowhere", tmp_path):
        assert report.main([str(path)]) == 2
        assert f"{path}: no run folder" in capsys.readouterr().err


def test_a_folder_named_twice_counts_once(tmp_path):
    folder = write_run(tmp_path / "runs", 1, 0.1)
    assert report_runs.find_folders([tmp_path / "runs", folder, tmp_path]) == [folder]
