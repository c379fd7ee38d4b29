"""Studies that others made: nothing of them becomes a command, what does not fit is refused in one line."""

import json
import shutil
import sqlite3
import subprocess

import pytest
from broken import assert_refused

optuna = pytest.importorskip("optuna")

import tune


@pytest.fixture(scope="session")
def study_file(trained, tmp_path_factory):
    """The file of a study with two trials. Shared by all tests: damage copies only."""
    folder, path = trained[0], tmp_path_factory.mktemp("study") / "s.db"
    argv = [
        "--study",
        "s",
        "--storage",
        path,
        "--trials",
        2,
        "--space",
        "lr=1e-3..1e-2",
        "--dataset",
        folder.name,
    ]
    argv += ["--data_root", folder.parent, "--path", path.parent / "runs", "--model", "mf", "--recdim", 8]
    argv += ["--topks", "5,10", "--epochs", 1, "--cuda", 0, "--tensorboard", 0]
    assert tune.main([str(word) for word in argv]) == 0
    return path


def change(table, key, value):
    """A function that replaces an attribute of the study or of all its trials; None removes it."""

    def damage(path):
        with sqlite3.connect(path) as database:
            if value is None:
                database.execute(f"delete from {table} where key = ?", (key,))
            else:
                database.execute(f"update {table} set value_json = ? where key = ?", (json.dumps(value), key))
        database.close()

    return damage


def settings(**changes):
    """A function that changes settings of the study."""

    def damage(path):
        with sqlite3.connect(path) as database:
            [(text,)] = database.execute(
                "select value_json from study_user_attributes where key = 'settings'"
            )
        database.close()
        change("study_user_attributes", "settings", json.loads(text) | changes)(path)

    return damage


TRIAL, STUDY = "trial_user_attributes", "study_user_attributes"
REFUSED = {
    "number with a command": (change(TRIAL, "number", "0\ntouch marker\n#"), "number is '0\\ntouch marker"),
    "number with a substitution": (change(TRIAL, "number", "$(touch marker)"), "number is '$(touch marker)'"),
    "number negative": (change(TRIAL, "number", -1), "number is -1, not a whole number"),
    "number missing": (change(TRIAL, "number", None), "lacks number"),
    "epoch a text": (change(TRIAL, "epoch", "1; touch marker"), "epoch is '1; touch marker'"),
    "epoch missing": (change(TRIAL, "epoch", None), "lacks epoch"),
    "folder a list": (change(TRIAL, "folder", ["/"]), "folder is ['/']"),
    "settings missing": (change(STUDY, "settings", None), "lacks settings"),
    "settings a list": (change(STUDY, "settings", [1]), "settings is not an object"),
    "space missing": (change(STUDY, "space", None), "lacks space"),
    "space of numbers": (change(STUDY, "space", {"lr": 1}), "space.lr is 1"),
    "data a number": (change(STUDY, "data", 1), "data is 1"),
    "a setting of two lines": (settings(dataset="a\ntouch marker"), "--dataset 'a\\ntouch marker'"),
    "a setting of another type": (
        settings(recdim="8; touch marker"),
        "--recdim 8; touch marker: must be of type int",
    ),
    "a setting unknown": (settings(warp=1), "unknown settings (warp)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, study_file, tmp_path, capsys):
    damage, word = REFUSED[case]
    path = shutil.copy(study_file, tmp_path / "s.db")
    damage(path)
    code = tune.main(["--study", "s", "--storage", str(path), "--best"])
    assert_refused(code, capsys.readouterr().err, ["study 's'", word] if "setting" not in case else [word])
    assert not (tmp_path / "s.best.sh").exists()


@pytest.mark.parametrize("name", ["$(touch marker)", "a; touch marker", "`touch marker`", "' touch marker '"])
def test_settings_are_words_of_the_script(study_file, tmp_path, name):
    path = shutil.copy(study_file, tmp_path / "s.db")
    settings(dataset=name)(path)
    assert tune.main(["--study", "s", "--storage", str(path), "--best"]) == 0
    script = (tmp_path / "s.best.sh").read_text().replace("python main.py", "printf '%s\\n'")
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == name and not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["a?b.db", "a%20b.db", "a{b}.db", "a#b.db", "a b.db"])
def test_the_path_of_a_study_is_taken_literally(study_file, tmp_path, capsys, name):
    path = shutil.copy(study_file, tmp_path / name)
    assert tune.main(["--study", "s", "--storage", str(path), "--best"]) == 0
    assert "lr" in capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} == {name, f"{name}.lock", "s.best.sh"}


CASES = REFUSED
