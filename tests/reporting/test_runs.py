"""Reading run folders: damaged files, unfinished runs, folders without runs, runs of a user's own model."""

import json

import pytest
from report_helpers import edit_json, read_table, run_report, write_run, write_two_models

import report
from reporting import groups, runs


def test_unfinished_runs_are_listed_and_left_out(root, capsys):
    write_two_models(root)
    interrupted = {"status": "interrupted", "reason": "SIGTERM", "epoch": 4}
    failed = {"status": "failed", "error": "epoch 3: the loss is not finite", "epoch": 2}
    folders = [
        write_run(root, 9, 0.9, "unfinished"),
        write_run(root, 9, 0.9, "interrupted", result=interrupted),
        write_run(root, 9, 0.9, "failed", result=failed),
    ]
    # The last line of a process that was killed while writing.
    with open(folders[0] / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 8, "val')
    assert run_report(root, "--figures", "0") == 0
    rows = read_table(root, "left_out")
    assert [(row["folder"], row["status"], row["epoch"], row["note"]) for row in rows] == [
        (str(folders[0]), "unfinished", "6", "no result.json: still running, or killed"),
        (str(folders[1]), "interrupted", "4", "SIGTERM"),
        (str(folders[2]), "failed", "2", "epoch 3: the loss is not finite"),
    ]
    assert "6 of 9 runs have finished" in capsys.readouterr().out
    assert {row["seeds"] for row in read_table(root, "baby_results")} == {"3"}
    assert report.main([str(folders[0]), "--output", str(root.parent / "out")]) == 2
    assert "none of the 1 runs has finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("result.json", "{", "is not JSON"),
        ("result.json", "[]", "is not a JSON object"),
        ("result.json", '{"status": "finished", "test": {}}', "lacks test metrics"),
        ("result.json", '{"status": "finished", "test": []}', "test is not an object"),
        ("config.json", "{", "is not JSON"),
        ("config.json", "[]", "is not a JSON object"),
        ("config.json", '{"provenance": {}, "lerning": 1}', "unknown settings"),
        ("config.json", '{"provenance": {}, "model": "lgn", "lerning": 1}', "unknown settings"),
        ("config.json", '{"provenance": {}, "lr": -1}', "--lr -1"),
        ("config.json", '{"provenance": {}, "model": "own.py:Wide", "lr": -1}', "--lr -1"),
        ("test_ranking.npz", "PK", "is damaged"),
    ],
)
def test_error_names_the_damaged_file(root, capsys, file, content, message):
    folder = write_run(root, 1, 0.1)
    (folder / file).write_text(content)
    assert run_report(root) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert str(folder / file) in error


def test_folders_without_runs(tmp_path, capsys):
    for path in (tmp_path / "nowhere", tmp_path):
        assert report.main([str(path)]) == 2
        assert f"{path}: no run folder" in capsys.readouterr().err


def test_folder_given_twice_is_read_once(root):
    folder = write_run(root, 1, 0.1)
    assert runs.find_run_folders([root, folder, root.parent]) == [folder]


def test_exports_are_no_runs(root, capsys):
    """A config.json of recommend.py --export_hub has no provenance; it is below, beside and above a run."""
    folder = write_run(root, 1, 0.1)
    settings = json.loads((folder / "config.json").read_text())
    del settings["provenance"]
    exports = [folder / "hub", root / "hub", root]
    for export in exports:
        export.mkdir(exist_ok=True)
        (export / "config.json").write_text(json.dumps(settings))
    assert runs.find_run_folders([root]) == [folder]
    assert report.main([str(root / "hub"), "--list"]) == 2
    assert "a config.json with provenance" in capsys.readouterr().err


# ---------------------------------------------------------------- a user's own model


def write_own_run(root, seed, recall, model, **own_settings):
    """Write a run folder of a user's own model, with settings that Config does not have."""
    folder = write_run(root, seed, recall)
    edit_json(folder / "config.json", {"model": model, **own_settings})
    return folder


def test_run_of_a_users_model_is_read_without_importing_its_file(root, tmp_path):
    file, trace = tmp_path / "own.py", tmp_path / "imported"
    file.write_text(f"open({str(trace)!r}, 'w')\nclass Wide: pass\n")
    folder = write_own_run(root, 1, 0.1, f"{file}:Wide", width=[2, [3]], gates={"b": 1, "a": 2})
    run = runs.read_run(folder)
    assert run.name == "Wide"
    assert run.setting("model") == f"{file}:Wide"
    assert run.setting("width") == (2, (3,))
    assert run.setting("gates") == '{"a": 2, "b": 1}'
    assert run.setting("lr") == run.config.lr == 0.001
    assert run.setting("depth") == "unset"
    assert run_report(root, "--figures", "0") == 0
    assert [row["method"] for row in read_table(root, "baby_results")] == ["Wide"]
    assert not trace.exists()


def test_own_settings_tell_runs_apart(root, capsys):
    first = write_own_run(root, 1, 0.1, "own.py:Wide", width=2)
    second = write_own_run(root, 2, 0.2, "own.py:Wide", width=4)
    third = write_own_run(root, 3, 0.2, "own.py:Wide")
    assert run_report(root) == 2
    assert "Wide on Baby" in (error := capsys.readouterr().err)
    assert f"{first} and {second} differ in width (2, 4)" in error
    changes = groups.differences(runs.read_run(first), runs.read_run(third))
    assert changes == ["width (2, unset)"]
    (second / "config.json").write_text((first / "config.json").read_text())
    edit_json(second / "config.json", {"seed": 2})
    assert groups.differences(runs.read_run(first), runs.read_run(second)) == []


def test_curve_of_an_own_setting(root):
    for seed in (1, 2):
        for width in (16, 4):
            write_own_run(root, seed, width / 100 + seed / 1000, "own.py:Wide", width=width)
    write_run(root, 1, 0.1, model="mf")
    assert run_report(root, "--curve", "width") == 0
    rows = [(row["method"], row["seeds"]) for row in read_table(root, "baby_results")]
    assert rows == [("MF", "1"), ("Wide, width 4", "2"), ("Wide, width 16", "2")]
    assert (root.parent / "out" / "baby_by_width.png").exists()


def test_provenance_in_config_is_not_a_setting(root):
    folder = write_own_run(root, 1, 0.1, "own.py:Wide", provenance={"git_commit": "a"})
    assert "provenance" in json.loads((folder / "config.json").read_text())
    assert "provenance" not in runs.read_run(folder).settings
