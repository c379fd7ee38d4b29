"""tune.py: studies, several processes, interruptions, and that trials never look at the test split."""

import contextlib
import errno
import fcntl
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_pairs, stop_after, write_small_dataset, write_txt
from small_runs import (
    command_line,
    flags,
    read_json,
    read_metrics,
    script_metrics,
    small_config,
    spy_on_splits,
)

optuna = pytest.importorskip("optuna")

import main
import procedure
import session
import trials
import tune
from models.registry import MODELS, config_class, find_model
from parse import parse_args
from training.space import parse_space
from training.study import Search, claim_trial, join_study
from utils import TrainingError, UserError
from world import Config

COMPLETE, PRUNED, FAIL, RUNNING, WAITING = (
    getattr(optuna.trial.TrialState, name) for name in ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")
)
TUNE = Path(tune.__file__)


def storage(folder):
    """The SQLite file of the studies of a test."""
    return folder.parent.parent / "s.db"


def search(folder, trials, *more, study="s", **changes):
    """Command line of a search with MF and three epochs, followed by further flags."""
    settings = {"model": "mf", "epochs": 3, **changes}
    # These are searched by default, so that they must not be flags.
    words = without(command_line(folder, folder.parent.parent / "runs", **settings), "lr", "item_knn_k")
    study_flags = flags({"study": study, "storage": storage(folder), "trials": trials})
    return [*study_flags, *words, *more]


def without(words, *names):
    """A command line without some flags."""
    pairs = zip(words[::2], words[1::2], strict=True)
    return [word for flag, value in pairs if flag[2:] not in names for word in (flag, value)]


def load(folder, study="s"):
    return optuna.load_study(study_name=study, storage=f"sqlite:///{storage(folder)}")


def states(folder):
    return [trial.state for trial in load(folder).trials]


def outcomes(folder):
    """{number: (parameters, value, intermediate values)} of the finished trials."""
    return {
        trial.user_attrs["number"]: (trial.params, trial.value, trial.intermediate_values)
        for trial in load(folder).get_trials(states=(COMPLETE, PRUNED))
    }


def assert_refused(argv, capsys, *words):
    """Assert exit code 2 and one line on stderr that contains these words."""
    capsys.readouterr()
    assert tune.main(argv) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: .*\n", err) and all(word in err for word in words), err


# ---------------------------------------------------------------- command line


@pytest.mark.parametrize("entry", ["lr=1", "speed=1..2", "layer=-1..2"])
def test_a_bad_space_leaves_no_study(small_dataset, capsys, entry):
    assert_refused(search(small_dataset, 1, "--space", entry), capsys)
    assert not storage(small_dataset).exists()


@pytest.mark.parametrize(
    "more, word",
    [
        (["--select_on", "test"], "leaks"),
        (["--recipe", "released"], "leaks"),
        (["--resume", "x"], "x/config.json"),
        (["--trials", "0"], "--trials 0"),
        (["--warm_up", "-1"], "--warm_up -1"),
        (["--space", "lr=" + ",".join(f"0.0{i}" for i in range(1, 999))], "the list is too long"),
        (["--study", "../x"], "--study ../x"),
        (["--study", ".x"], "--study .x"),
        (["--best"], "not allowed with"),
        (["--what", "1"], "--what"),
        (["--lr", "1e-3", "--space", "lr=1e-3..1e-2"], "--lr is both"),
        (["--space", "lr=1..2", "lr=1..2"], "each setting once"),
        (["--dataset", "absent"], "absent"),
        (["--projector", "1", "--tensorboard", "1"], "--projector is not a flag of a search"),
    ],
)
def test_flags_that_do_not_fit_a_search_are_refused(small_dataset, capsys, more, word):
    assert_refused(search(small_dataset, 1, *more), capsys, word)
    assert not storage(small_dataset).exists()


def test_the_checkpoint_of_another_run_is_refused(small_dataset, tmp_path, capsys):
    assert main.main(command_line(small_dataset, tmp_path / "other", model="mf", epochs=1)) == 0
    (folder,) = (tmp_path / "other").iterdir()
    argv = ["--study", "s", "--storage", str(storage(small_dataset)), "--trials", "1"]
    assert_refused([*argv, "--resume", str(folder)], capsys, "--resume is not a flag of a search")
    scored = ["--evaluate_only", "1", "--checkpoint", str(folder / "best.pt")]
    assert_refused([*argv, *scored], capsys, "--checkpoint is not a flag of a search")


def test_without_optuna_the_remedy_is_named(small_dataset):
    code = "import sys; sys.modules['optuna'] = None; import tune; sys.exit(tune.main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, *search(small_dataset, 1)]
    done = subprocess.run(words, cwd=TUNE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: tune.py needs optuna: pip install .*\[tune\].*\n", done.stderr)
    words[3:] = ["--help"]
    assert (
        "--space" in subprocess.run(words, cwd=TUNE.parent, capture_output=True, text=True, check=True).stdout
    )


# ---------------------------------------------------------------- a study


def test_a_study_finds_the_best_trial_and_leaves_run_folders(small_dataset, capsys):
    assert tune.main(search(small_dataset, 4, "--pruner", "none", tensorboard=1)) == 0
    trials = load(small_dataset).trials
    assert [trial.state for trial in trials] == 4 * [COMPLETE]
    for trial in trials:
        folder = Path(trial.user_attrs["folder"])
        config, result, lines = read_json(folder, "config.json"), read_json(folder), read_metrics(folder)
        assert config["name"] == f"s_{trial.user_attrs['number']}"
        assert trial.params == {name: config[name] for name in ("lr", "decay")}
        values = {line["epoch"]: line["valid"]["ndcg@3"] for line in lines}
        assert trial.value == max(values.values()) == result["valid"]["ndcg@3"]
        assert trial.intermediate_values == values
        assert result["status"] == "tuned" and "test" not in result and list(folder.glob("events*"))
    out, best = capsys.readouterr().out, max(trials, key=lambda trial: trial.value)
    # Of each trial the console shows one line, and not the log of its training.
    assert len(re.findall(r"^trial +\d+  ndcg", out, re.MULTILINE)) == 4 and "epoch    1" not in out
    assert f"{best.value:.4f}" in out
    assert tune.main(["--study", "s", "--storage", str(storage(small_dataset)), "--best"]) == 0
    assert capsys.readouterr().out == out[out.index("trial     valid ndcg@3") :]


@pytest.mark.parametrize(
    "more",
    [
        [],
        flags({"recipe": "released", "select_on": "valid", "model": "lgn_mm", "item_knn_k": 4, "epochs": 1}),
        ["--model", "itemknn"],
    ],
    ids=["mf", "released", "itemknn"],
)
def test_the_best_command_trains_the_best_trial(small_dataset, more):
    assert tune.main(search(small_dataset, 2, *more, seed=7)) == 0
    best, folder = load(small_dataset).best_trial, small_dataset.parent.parent
    words = shlex.split((folder / "s.best.sh").read_text().splitlines()[-1])
    assert words[:2] == ["python", "main.py"] and words[-1] == "$@"
    config, _ = parse_args(words[2:-1])
    stored = read_json(Path(best.user_attrs["folder"]), "config.json")
    differing = {name for name, value in config.as_dict().items() if value != stored[name]}
    assert differing <= {"path", "name", "resume"}
    assert {name: getattr(config, name) for name in best.params} == best.params
    assert main.main([*words[2:-1], "--path", str(folder / "again")]) == 0
    (again,) = (folder / "again").iterdir()
    assert read_json(again)["valid"]["ndcg@3"] == best.value


def test_the_test_split_is_never_scored_and_has_no_influence(small_dataset, tmp_path, monkeypatch, capsys):
    scored, pairs = spy_on_splits(monkeypatch), random_pairs(0, 40, 30, 6)
    assert tune.main(search(small_dataset, 2)) == 0
    valid, test = pairs["valid"][:, 1].tolist(), pairs["test"][:, 1].tolist()
    assert scored and test != valid and all(items == valid for items in scored)
    first = outcomes(small_dataset)
    taken = {tuple(pair) for split in pairs.values() for pair in split.tolist()}
    others = [next(item for item in range(29) if (user, item) not in taken) for user in range(40)]
    pairs["test"] = np.array(list(enumerate(others)))
    other = shutil.copytree(small_dataset, tmp_path / "other" / "small")
    write_txt(other, **pairs)
    data_root = ["--data_root", str(other.parent)]
    assert_refused(search(small_dataset, 3, *data_root), capsys, "the interactions", "another --study")
    assert tune.main(search(small_dataset, 2, *data_root, study="t")) == 0
    assert [(t.params, t.value) for t in load(small_dataset, "t").trials] == [
        (params, value) for params, value, _ in first.values()
    ]


def test_trials_share_a_dataset_unless_settings_of_the_data_differ(small_dataset, monkeypatch):
    loaded, original = [], session.load_dataset

    def load_dataset(config, *arguments):
        loaded.append(config.item_knn_k)
        return original(config, *arguments)

    monkeypatch.setattr(session, "load_dataset", load_dataset)
    space = ["--space", "lr=1e-3..1e-2", "--item_knn_k", "4"]
    assert tune.main(search(small_dataset, 3, *space, model="lgn_mm", epochs=1)) == 0 and loaded == [4]
    loaded.clear()
    space = ["--space", "item_knn_k=3,5"]
    assert tune.main(search(small_dataset, 3, *space, model="lgn_mm", epochs=1, study="t")) == 0
    assert {3, 5} & set(loaded) and set(loaded) <= {3, 5}


def test_numbers_of_neighbours_that_do_not_fit_the_data_are_refused(small_dataset, capsys):
    for values in ("4,30", "4..30"):
        argv = search(small_dataset, 2, "--space", f"item_knn_k={values}", model="lgn_mm")
        assert_refused(argv, capsys, "30 neighbours requested", "lower --item_knn_k")
    assert not storage(small_dataset).exists()


@pytest.mark.parametrize("model", MODELS)
def test_a_dataset_depends_on_no_settings_but_those_it_is_shared_by(small_dataset, model):
    read = set()

    class Spy(config_class(model)):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    config = small_config(small_dataset, model=model, user_text_feat="mean", missing="text:0.3")
    config = Spy(**vars(config))
    needs = find_model(model).data_needs(config)
    read.clear()
    session.load(config, needs, torch.device("cpu"))
    assert "dataset" in read and read & set(Config.__dataclass_fields__) <= set(trials.DATASET_SETTINGS)


def test_settings_that_do_not_fit_together_prune_their_trial(small_dataset, capsys):
    space = ["--space", "beta=0.3..1", "alpha=0.3..1"]
    assert tune.main(search(small_dataset, 6, *space, model="lgn_mm", epochs=1)) == 0
    assert "negative weight" in capsys.readouterr().out
    for trial in load(small_dataset).trials:
        assert trial.state == (COMPLETE if trial.params["beta"] + trial.params["alpha"] <= 1 else PRUNED)


def test_bad_trials_are_pruned(small_dataset, monkeypatch):
    """With the learning rate as the metric, trials with a rate below the median of the others are pruned."""
    original = procedure.score

    def score(model, data, splits, config):
        [metrics] = original(model, data, splits, config)
        return [{**metrics, "ndcg@3": config.lr}]

    monkeypatch.setattr(procedure, "score", score)
    assert tune.main(search(small_dataset, 9, "--space", "lr=1e-3..1e-2", "--warm_up", "2", epochs=4)) == 0
    trials = load(small_dataset).trials
    pruned = [trial for trial in trials if trial.state == PRUNED]
    assert pruned and all(trial.state == COMPLETE for trial in trials[:5])
    for number, trial in enumerate(trials[5:], 5):
        others = [other.value for other in trials[:number] if other.state == COMPLETE]
        assert (trial.state == PRUNED) == (trial.params["lr"] < np.median(others))
    for trial in pruned:
        result = read_json(Path(trial.user_attrs["folder"]))
        assert result["status"] == "pruned" and result["epochs"] == 2 and "test" not in result
        assert max(trial.intermediate_values) == result["epochs"]


def test_patience_ends_a_trial_which_then_counts_as_complete(small_dataset, monkeypatch):
    script_metrics(monkeypatch, [0.5, 0.1, 0.1])
    assert tune.main(search(small_dataset, 1, epochs=50, patience=2)) == 0
    (trial,) = load(small_dataset).trials
    result = read_json(Path(trial.user_attrs["folder"]))
    assert (trial.state, trial.value) == (COMPLETE, 0.5)
    assert (result["status"], result["best_epoch"], result["epochs"]) == ("tuned", 1, 3)


def test_ten_complete_trials_give_the_importance_of_the_settings(small_dataset, capsys):
    for count, shown in ((9, False), (10, True)):
        assert tune.main(search(small_dataset, count, "--pruner", "none", epochs=1)) == 0
        assert (
            bool(re.search(r"^importance  \w+ [\d.]+  \w+ [\d.]+$", capsys.readouterr().out, re.M)) == shown
        )


def test_a_trial_that_diverges_counts_as_pruned(small_dataset, capsys):
    assert tune.main(search(small_dataset, 3, "--space", "lr=1e30,1e29")) == 0
    assert states(small_dataset) == 3 * [PRUNED]
    out = capsys.readouterr().out
    assert "not finite" in out and "study 's' has no complete trial yet" in out


def fail_in_step(patch, step, error):
    """Let a training step raise an error."""

    def fail():
        raise error

    stop_after(patch, step, fail)


def test_a_bug_fails_its_trial_and_propagates(small_dataset, monkeypatch):
    with monkeypatch.context() as patch:
        fail_in_step(patch, 6, KeyError("a bug"))
        with pytest.raises(KeyError, match="a bug"):
            tune.main(search(small_dataset, 3))
    assert states(small_dataset).count(FAIL) == 1
    assert tune.main(search(small_dataset, 3)) == 0 and states(small_dataset).count(COMPLETE) == 3


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "gpu", "cpu"],
)
def test_a_trial_that_runs_out_of_memory_counts_as_pruned(small_dataset, monkeypatch, capsys, error):
    fail_in_step(monkeypatch, 6, error)
    assert tune.main(search(small_dataset, 3)) == 0
    assert states(small_dataset) == [PRUNED, COMPLETE, COMPLETE]
    assert re.search(r"^trial +0  out of memory  lr", capsys.readouterr().out, re.MULTILINE)


def test_other_settings_or_another_space_are_refused(small_dataset, capsys):
    assert tune.main(search(small_dataset, 1)) == 0
    for more, change in (
        (["--recdim", "16"], "--recdim 8 -> 16"),
        (["--epochs", "9"], "--epochs 3 -> 9"),
        (["--seed", "1"], "--seed 2025 -> 1"),
        (["--space", "lr=1e-3..1e-2"], "--space lr, --space decay"),
        (["--lr", "1e-3"], "--space lr"),
    ):
        assert_refused(search(small_dataset, 2, *more), capsys, change, "another --study")
    # Settings without influence on the result may change.
    assert tune.main(search(small_dataset, 2, threads=0)) == 0 and len(load(small_dataset).trials) == 2


def test_other_features_are_refused(small_dataset, tmp_path, capsys):
    words = ["--space", "lr=1e-3..1e-2", "item_knn_k=3,5"]

    def argv(trials, **changes):
        return search(small_dataset, trials, *words, model="lgn_mm", epochs=1, **changes)

    assert tune.main(argv(1)) == 0
    text, other = np.load(small_dataset / "text_feat.npy"), tmp_path / "other.npy"
    image = small_dataset / "image_feat.npy"
    np.save(other, text + 1)
    np.savez(tmp_path / "graph.npz", nbr=(np.arange(30)[:, None] + [1, 2, 3, 4, 5]) % 30)
    for changes in (
        {"text_feat": other, "image_feat": image},
        {"item_text_graph": tmp_path / "graph.npz"},
        {"user_text_feat": "mean"},
    ):
        assert_refused(argv(2, **changes), capsys, "(the features)", "another --study")
    # The same content elsewhere is the same.
    np.save(other, text)
    assert tune.main(argv(2, text_feat=other, image_feat=image)) == 0
    np.save(small_dataset / "text_feat.npy", text + 1)
    assert_refused(argv(3), capsys, "(the features)", "another --study")


def edit(folder, statement):
    """Change the file of a study."""
    with contextlib.closing(sqlite3.connect(storage(folder))) as database, database:
        assert database.execute(statement).rowcount


def test_a_study_without_a_record_of_its_features_is_not_continued(small_dataset, capsys):
    """Older versions recorded the hash of the interactions alone."""
    assert tune.main(search(small_dataset, 1)) == 0
    edit(
        small_dataset,
        "update study_user_attributes set value_json = substr(value_json, 1, 65) || '\"' where key = 'data'",
    )
    assert_refused(search(small_dataset, 2), capsys, "(the features, which the version", "another --study")
    assert tune.main(["--study", "s", "--storage", str(storage(small_dataset)), "--best"]) == 0


def test_the_file_of_another_version_of_optuna_is_refused(small_dataset, capsys):
    assert tune.main(search(small_dataset, 1)) == 0
    edit(small_dataset, "update alembic_version set version_num = 'v99'")
    for argv in (
        search(small_dataset, 2),
        ["--study", "s", "--storage", str(storage(small_dataset)), "--best"],
    ):
        assert_refused(argv, capsys, "another version of optuna", "--storage")


def test_a_missing_study_and_a_damaged_file_are_refused(small_dataset, capsys):
    path = storage(small_dataset)
    best = ["--study", "s", "--storage", str(path), "--best"]
    assert_refused(best, capsys, "does not exist")
    assert not path.exists()
    assert tune.main(search(small_dataset, 1, study="t")) == 0
    assert_refused(best, capsys, "has no study 's'; it has t")
    assert_refused([*best, "--recdim", "8"], capsys, "drop --recdim 8")
    path.write_text("not a database " * 100)
    assert_refused(search(small_dataset, 1), capsys, "cannot be read or written")


# ---------------------------------------------------------------- interruptions and several processes


@pytest.fixture
def whole(small_dataset, tmp_path):
    """Outcomes of a study of four trials that was never interrupted."""
    assert tune.main(search(small_dataset, 4)) == 0
    found = outcomes(small_dataset)
    storage(small_dataset).rename(tmp_path / "whole.db")
    return found


def test_a_study_in_parts_equals_one_in_one_go(small_dataset, whole):
    assert len({str(params) for params, _, _ in whole.values()}) == 4
    for count in (1, 3, 4):
        assert tune.main(search(small_dataset, count)) == 0 and len(outcomes(small_dataset)) == count
    assert outcomes(small_dataset) == whole


@pytest.mark.parametrize("number, step", [(signal.SIGTERM, 1), (signal.SIGINT, 22)])
def test_a_stopped_trial_is_queued_again_and_resumed(small_dataset, whole, monkeypatch, number, step):
    with monkeypatch.context() as patch:
        stop_after(patch, step, lambda: os.kill(os.getpid(), number))
        assert tune.main(search(small_dataset, 4)) == 128 + number
    assert states(small_dataset)[-2:] == [FAIL, WAITING] and RUNNING not in states(small_dataset)
    assert tune.main(search(small_dataset, 4)) == 0
    assert outcomes(small_dataset) == whole and states(small_dataset).count(FAIL) == 1
    # Four are of the fixture: the resumed trial has kept its folder.
    assert len(list((small_dataset.parent.parent / "runs").iterdir())) == 8


@pytest.mark.parametrize(
    "error, code",
    [
        (TrainingError("epoch 2: the disk is full"), 1),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1),
        (UserError("text_feat.npy: does not exist"), 2),
    ],
    ids=["training", "os", "user"],
)
def test_a_trial_that_failed_through_no_fault_of_its_settings_is_resumed(
    small_dataset, whole, monkeypatch, error, code
):
    with monkeypatch.context() as patch:
        fail_in_step(patch, 22, error)
        assert tune.main(search(small_dataset, 4)) == code
    assert states(small_dataset) == [COMPLETE, FAIL, WAITING]
    assert tune.main(search(small_dataset, 4)) == 0
    assert outcomes(small_dataset) == whole
    assert len(list((small_dataset.parent.parent / "runs").iterdir())) == 8


def open_search(folder, **changes):
    """What a process does before its first trial: the study of a small search of four trials."""
    base, space = small_config(folder, model="mf", **changes), parse_space(["lr=1e-3..1e-2"], Config)
    return Search(
        join_study("s", storage(folder), base.as_dict(), space, "data x"), storage(folder), base, space, 4
    )


def test_a_trial_gets_the_smallest_number_that_is_free(small_dataset):
    task = open_search(small_dataset)
    with contextlib.ExitStack() as others:
        claims = [others.enter_context(claim_trial(task)) for _ in range(3)]
        assert [claim.trial.user_attrs["number"] for claim in claims] == [0, 1, 2]
        task.study.tell(claims[0].trial, state=FAIL)
        again, last = (others.enter_context(claim_trial(task)) for _ in range(2))
        assert (again.trial.user_attrs["number"], again.config.name) == (0, "s_0")
        assert last.trial.user_attrs["number"] == 3 and last.trial.params != claims[2].trial.params


def test_a_running_trial_is_not_taken_over_from_another_working_directory(tmp_path, monkeypatch):
    folder = write_small_dataset(tmp_path)
    monkeypatch.chdir(tmp_path)
    with claim_trial(open_search(folder, path="runs")) as claim:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        with claim_trial(open_search(folder, path="runs")) as other:
            assert other.trial.user_attrs["number"] == 1
            assert states(folder) == [RUNNING, RUNNING]
    assert claim.trial.user_attrs["folder"] == str(next((tmp_path / "runs").iterdir()))
    # Both are free now. The first is continued in the folder that it has.
    with claim_trial(open_search(folder, path="runs")) as again:
        assert again.config.resume == claim.trial.user_attrs["folder"]


def test_a_run_folder_that_cannot_be_locked_is_named(small_dataset, monkeypatch):
    """It is not taken for the folder of another process, for which the search would wait."""
    task, original = open_search(small_dataset), fcntl.flock

    def flock(file, operation):
        if operation & fcntl.LOCK_NB:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        original(file, operation)

    with claim_trial(task):
        monkeypatch.setattr(fcntl, "flock", flock)
        with (
            pytest.raises(UserError, match=r"\.lock: cannot be locked \(No locks available\)"),
            claim_trial(task),
        ):
            raise AssertionError("claimed a trial")


def test_max_minutes_queues_the_trial_again(small_dataset):
    assert tune.main(search(small_dataset, 2, max_minutes=1e-9)) == 0
    assert len(outcomes(small_dataset)) == 0
    assert tune.main(search(small_dataset, 2, max_minutes=0)) == 0 and len(outcomes(small_dataset)) == 2


KILLED = """
import os, signal, sys
import pytest, helpers, tune
with pytest.MonkeyPatch.context() as patch:
    helpers.stop_after(patch, int(sys.argv[1]), lambda: os.kill(os.getpid(), signal.SIGKILL))
    tune.main(sys.argv[2:])
"""


def kill_in_step(folder, step, trials):
    """Start a search and kill it in a step of training."""
    words = [sys.executable, "-c", KILLED, str(step), *search(folder, trials)]
    path = os.pathsep.join(map(str, (TUNE.parent, Path(__file__).parent)))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(words, capture_output=True, check=False, env=environment)
    assert done.returncode == -signal.SIGKILL


def test_a_trial_that_was_killed_before_its_first_checkpoint_keeps_its_folder(small_dataset):
    kill_in_step(small_dataset, 2, 1)
    assert states(small_dataset) == [RUNNING]
    (folder,) = (small_dataset.parent.parent / "runs").iterdir()
    assert not list(folder.glob("*.pt"))
    assert tune.main(search(small_dataset, 1)) == 0 and states(small_dataset) == [FAIL, COMPLETE]
    assert list(folder.parent.iterdir()) == [folder] and (folder / "last.pt").exists()


def test_a_killed_trial_is_resumed(small_dataset, whole):
    """Killed in step 22, which is in the second epoch of the second trial."""
    kill_in_step(small_dataset, 22, 4)
    assert states(small_dataset) == [COMPLETE, RUNNING]
    assert tune.main(search(small_dataset, 4)) == 0
    assert states(small_dataset) == [COMPLETE, FAIL, COMPLETE, COMPLETE, COMPLETE]
    assert outcomes(small_dataset) == whole
    killed, again = load(small_dataset).trials[1:3]
    assert killed.params == again.params and killed.user_attrs["folder"] == again.user_attrs["folder"]


@contextlib.contextmanager
def beside(folder, *words):
    """A process that has begun a trial, for the length of the block."""
    process = subprocess.Popen(
        [sys.executable, TUNE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(folder.parent.parent.glob("runs/*/train.log")) and time.monotonic() < deadline:
        time.sleep(0.02)
    yield process
    process.kill()
    process.communicate()


def test_two_processes_share_the_trials_of_a_study(small_dataset):
    words = search(small_dataset, 8, "--pruner", "none", epochs=20)
    with beside(small_dataset, *words) as other:
        assert tune.main(words) == 0
        out, err = other.communicate(timeout=60)
    assert other.returncode == 0 and "Traceback" not in err, err[-500:]
    assert states(small_dataset) == 8 * [COMPLETE] and sorted(outcomes(small_dataset)) == list(range(8))
    assert len({str(params) for params, _, _ in outcomes(small_dataset).values()}) == 8
    assert 0 < len(re.findall(r"^trial +\d+  ndcg", out, re.MULTILINE)) < 8


def test_a_waiting_process_takes_over_the_trial_of_one_that_dies(small_dataset, monkeypatch):
    words = search(small_dataset, 1, epochs=10**6, patience=0, eval_every=10**6, save_every=10**6)
    with beside(small_dataset, *words) as other:
        timer = threading.Timer(1, other.kill)
        timer.start()
        stop_after(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert tune.main(words) == 143
    assert states(small_dataset) == [FAIL, FAIL, WAITING]
