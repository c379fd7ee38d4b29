"""The search: its space, its study over several processes, kills and resumes, and that it never looks at the test split."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_pairs, stop_after, write_txt

import procedure
import tune
from main import main as train
from parse import parse_args
from training import ranking
from world import Config

optuna = pytest.importorskip("optuna")
COMPLETE, PRUNED, FAIL, RUNNING, WAITING = (
    getattr(optuna.trial.TrialState, name) for name in ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING")
)
TUNE = Path(tune.__file__)


def settings(folder, **changes):
    values = {
        "dataset": folder.name,
        "data_root": folder.parent,
        "path": folder.parent.parent / "runs",
        "model": "mf",
        "recdim": 8,
        "attn_heads": 2,
        "topks": "3,5",
        "epochs": 3,
        "eval_every": 1,
        "bpr_batch": 64,
        "tensorboard": 0,
        "cuda": 0,
        "threads": 1,
        **changes,
    }
    return [str(word) for name, value in values.items() for word in (f"--{name}", value)]


def search(folder, trials, *flags, study="s", **changes):
    """Command line of a search on small_dataset, its study in <tmp_path>/s.db."""
    return [
        "--study",
        study,
        "--storage",
        str(folder.parent.parent / "s.db"),
        "--trials",
        str(trials),
        *flags,
        *settings(folder, **changes),
    ]


def load(folder, study="s"):
    return optuna.load_study(study_name=study, storage=f"sqlite:///{folder.parent.parent / 's.db'}")


def states(folder):
    return [trial.state for trial in load(folder).trials]


def outcomes(folder):
    """{number: (parameters, value, intermediate values)} of the finished trials."""
    return {
        trial.user_indextrs["number"]: (trial.params, trial.value, trial.intermediate_values)
        for trial in load(folder).get_trials(states=(COMPLETE, PRUNED))
    }


# ---------------------------------------------------------------- the space


def test_space():
    space = tune.parse_space(
        ["lr=1e-4..1e-2:log", "layer=1..4", "decay=0..1", "fuse_norm=none,l2", "item_knn_k=5,10"]
    )
    assert space["lr"] == optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
    assert space["layer"] == optuna.distributions.IntDistribution(1, 4) and space["decay"].low == 0
    assert space["fuse_norm"].choices == ("none", "l2") and space["item_knn_k"].choices == (5, 10)


@pytest.mark.parametrize(
    "entry",
    [
        "lr",
        "lr=",
        "lr=1",
        "lr=1..1",
        "lr=2..1",
        "lr=0..1:log",
        "lr=a..b",
        "lr=1..inf",
        "lr=nan..1",
        "layer=1.5..3",
        "layer=1,x",
        "fuse_norm=a..b",
        "speed=1..2",
        "seed=1..9",
        "epochs=1..9",
        "dataset=a,b",
        "topks=1,2",
        "valid_metric=ndcg@3,ndcg@5",
        "lr=-1..1",
        "layer=-1..2",
        "fuse_norm=none,l3",
    ],
)
def test_a_bad_space_is_one_line_and_exit_code_2(small_dataset, capsys, entry):
    assert tune.main(search(small_dataset, 1, "--space", entry)) == 2
    assert re.fullmatch(r"error: .*\n", capsys.readouterr().err)
    assert not (small_dataset.parent.parent / "s.db").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--select_on", "test"],
        ["--recipe", "released"],
        ["--resume", "x"],
        ["--trials", "0"],
        ["--study", "../x"],
        ["--best"],
        ["--what", "1"],
        ["--lr", "1e-3", "--space", "lr=1e-3..1e-2"],
        ["--space", "lr=1..2", "lr=1..2"],
        ["--dataset", "absent"],
        ["--projector", "1", "--tensorboard", "1"],
    ],
)
def test_what_cannot_be_searched_is_one_line_and_exit_code_2(small_dataset, capsys, flags):
    assert tune.main([*search(small_dataset, 1), *flags]) == 2
    assert re.fullmatch(r"error: .*\n", capsys.readouterr().err)


def test_without_optuna_the_remedy_is_named(small_dataset, monkeypatch, capsys):
    monkeypatch.setattr(tune, "optuna", None)
    assert tune.main(search(small_dataset, 1)) == 2
    assert "needs optuna: pip install -c constraints.txt -e '.[tune]'" in capsys.readouterr().err


def test_default_space_leaves_out_what_is_given_or_idle(small_dataset):
    def names(*flags):
        return set(
            tune.default_space(
                parse_args([*settings(small_dataset), "--model", "lgn_mm", *flags])[0],
                {f[2:] for f in flags[::2]},
            )
        )

    assert {
        "lr",
        "decay",
        "beta",
        "alpha",
        "modality_consistency_weight",
    } <= names() and "audio_weight" not in names()
    assert names() - names("--fusion", "sum") == {"beta", "alpha"}
    assert names() - names("--contrastive_weight", "0") == {
        "contrastive_weight",
        "modality_consistency_weight",
    }
    for model in Config.__dataclass_fields__["model"].metadata["choices"]:
        assert tune.parse_space(tune.SPACES[model]).keys() >= {"lr", "decay"}


# ---------------------------------------------------------------- a study


def test_a_study_finds_the_best_trial_and_leaves_run_folders(small_dataset, capsys):
    assert tune.main(search(small_dataset, 4, "--pruner", "none", tensorboard=1)) == 0
    trials = load(small_dataset).trials
    assert [trial.state for trial in trials] == 4 * [COMPLETE]
    for trial in trials:
        folder = Path(trial.user_indextrs["folder"])
        config, result = (json.loads((folder / name).read_text()) for name in ("config.json", "result.json"))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert config["name"] == f"s_{trial.user_indextrs['number']}" and trial.params == {
            name: config[name] for name in ("lr", "decay")
        }
        assert trial.value == max(line["valid"]["ndcg@3"] for line in lines) == result["valid"]["ndcg@3"]
        assert result["status"] == "tuned" and "test" not in result and list(folder.glob("events*"))
        assert trial.intermediate_values == {line["epoch"]: line["valid"]["ndcg@3"] for line in lines}
    out, best = capsys.readouterr().out, max(trials, key=lambda trial: trial.value)
    assert len(re.findall(r"^trial +\d+  ndcg", out, re.MULTILINE)) == 4 and f"{best.value:.4f}" in out
    assert tune.main(["--study", "s", "--storage", str(small_dataset.parent.parent / "s.db"), "--best"]) == 0
    assert capsys.readouterr().out == out[out.index("trial     valid ndcg@3") :]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        [
            "--recipe",
            "released",
            "--select_on",
            "valid",
            "--model",
            "lgn_mm",
            "--item_knn_k",
            "4",
            "--epochs",
            "1",
        ],
    ],
)
def test_the_best_command_line_is_the_best_trial(small_dataset, flags):
    assert tune.main([*search(small_dataset, 2, seed=7), *flags]) == 0
    best = load(small_dataset).best_trial
    script = (small_dataset.parent.parent / "s.best.sh").read_text()
    words = shlex.split(script.splitlines()[-1])
    assert words[:2] == ["python", "main.py"] and words[-1] == "$@"
    config, _ = parse_args(words[2:-1])
    stored = json.loads((Path(best.user_indextrs["folder"]) / "config.json").read_text())
    differing = {name for name, value in config.as_dict().items() if value != stored[name]}
    assert differing <= {"path", "name", "resume"} and config.lr == best.params["lr"]
    assert train([*words[2:-1], "--path", str(small_dataset.parent.parent / "again")]) == 0
    (result,) = (small_dataset.parent.parent / "again").glob("*/result.json")
    assert json.loads(result.read_text())["valid"]["ndcg@3"] == best.value


def test_the_test_split_is_never_scored_and_has_no_part(small_dataset, monkeypatch):
    seen, original = [], ranking.mean_metrics
    monkeypatch.setattr(
        ranking,
        "mean_metrics",
        lambda ranks, split, ks: seen.append(split.relevant[1].tolist()) or original(ranks, split, ks),
    )
    assert tune.main(search(small_dataset, 2)) == 0
    pairs = random_pairs(0, 40, 30, 6)
    assert seen and all(
        relevant == pairs["valid"][:, 1].tolist() != pairs["test"][:, 1].tolist() for relevant in seen
    )
    first = outcomes(small_dataset)
    taken = {tuple(pair) for split in pairs.values() for pair in split.tolist()}
    pairs["test"] = np.array(
        [(user, next(item for item in range(29) if (user, item) not in taken)) for user in range(40)]
    )
    write_txt(small_dataset, **pairs)
    tune.load_once.cache_clear()
    assert tune.main(search(small_dataset, 3)) == 2  # a study keeps its data
    (small_dataset.parent.parent / "s.db").unlink()
    assert tune.main(search(small_dataset, 2)) == 0 and outcomes(small_dataset) == first


def test_trials_share_a_dataset_unless_data_settings_differ(small_dataset, monkeypatch):
    loaded, original = [], tune.load
    monkeypatch.setattr(
        tune, "load", lambda config, *rest: loaded.append(config.item_knn_k) or original(config, *rest)
    )
    tune.load_once.cache_clear()
    space = ["--space", "lr=1e-3..1e-2", "--item_knn_k", "4"]
    assert tune.main(search(small_dataset, 3, *space, model="lgn_mm", epochs=1)) == 0 and loaded == [4]
    assert (
        tune.main(search(small_dataset, 3, "--space", "item_knn_k=3,5", model="lgn_mm", epochs=1, study="t"))
        == 0
    )
    assert {3, 5} & set(loaded)


@pytest.mark.parametrize("model", tune.SPACES)
def test_a_dataset_depends_on_no_other_settings_than_those_it_is_shared_by(small_dataset, model):
    read = set()

    class Spy(Config):
        def __getattribute__(self, name):
            read.add(name)
            return super().__getattribute__(name)

    config, _ = parse_args(
        settings(small_dataset, model=model, user_text_feat="mean", item_knn_k=4, user_knn_k=4)
    )
    config = Spy(**vars(config))
    read.clear()
    tune.load(config, torch.device("cpu"), [])
    assert "dataset" in read and read & set(Config.__dataclass_fields__) <= set(tune.OF_DATA)


def test_bad_trials_are_pruned(small_dataset, monkeypatch):
    original = procedure.score
    monkeypatch.setattr(
        procedure,
        "score",
        lambda model, splits, config: [{**original(model, splits, config)[0], "ndcg@3": config.lr}],
    )
    assert tune.main(search(small_dataset, 9, "--space", "lr=1e-3..1e-2", "--warm_up", "2", epochs=4)) == 0
    trials = load(small_dataset).trials
    pruned = [trial for trial in trials if trial.state == PRUNED]
    assert pruned and all(trial.state == COMPLETE for trial in trials[:5])
    for number, trial in enumerate(trials[5:], 5):
        others = [other.value for other in trials[:number] if other.state == COMPLETE]
        assert (trial.state == PRUNED) == (trial.params["lr"] < np.median(others))
    for trial in pruned:
        result = json.loads((Path(trial.user_indextrs["folder"]) / "result.json").read_text())
        assert result["status"] == "pruned" and result["epochs"] == 2 and "test" not in result
        assert max(trial.intermediate_values) == result["epochs"]


def test_a_trial_that_diverges_counts_as_pruned(small_dataset, capsys):
    assert tune.main(search(small_dataset, 3, "--space", "lr=1e38,1e37")) == 0
    assert states(small_dataset) == 3 * [PRUNED]
    out = capsys.readouterr().out
    assert "not finite" in out and "no trial yet" in out


def test_an_error_fails_its_trial_and_ends_the_process(small_dataset, monkeypatch, capsys):
    def fail():
        raise MemoryError

    with monkeypatch.context() as patch:
        stop_after(patch, 6, fail)
        assert tune.main(search(small_dataset, 3)) == 1 and "out of memory" in capsys.readouterr().err
    assert states(small_dataset).count(FAIL) == 1
    assert tune.main(search(small_dataset, 3)) == 0 and states(small_dataset).count(COMPLETE) == 3


def test_other_settings_or_another_space_are_refused(small_dataset, capsys):
    assert tune.main(search(small_dataset, 1)) == 0
    capsys.readouterr()
    for flags in (
        ["--recdim", "16"],
        ["--epochs", "9"],
        ["--seed", "1"],
        ["--space", "lr=1e-3..1e-2"],
        ["--lr", "1e-3"],
    ):
        assert tune.main([*search(small_dataset, 2), *flags]) == 2
        assert re.fullmatch(r"error: .*another --study\n", capsys.readouterr().err)
    assert tune.main(search(small_dataset, 2, threads=0)) == 0 and len(load(small_dataset).trials) == 2


def test_what_is_no_study_is_one_line(small_dataset, capsys):
    path = small_dataset.parent.parent / "s.db"
    assert tune.main(["--study", "s", "--storage", str(path), "--best"]) == 2 and not path.exists()
    path.write_text("no database " * 100)
    assert tune.main(search(small_dataset, 1)) == 2
    assert re.fullmatch(r"(error: .*\n){2}", capsys.readouterr().err)


# ---------------------------------------------------------------- stopped, killed, several processes


@pytest.fixture
def whole(small_dataset, tmp_path):
    """Outcomes of an uninterrupted study of four trials in one process."""
    assert tune.main(search(small_dataset, 4)) == 0
    found = outcomes(small_dataset)
    (tmp_path / "s.db").rename(tmp_path / "whole.db")
    return found


def test_a_study_in_parts_equals_one_in_one_go(small_dataset, whole):
    assert len({str(params) for params, _, _ in whole.values()}) == 4
    for count in (1, 3, 4):
        assert tune.main(search(small_dataset, count)) == 0 and len(outcomes(small_dataset)) == count
    assert outcomes(small_dataset) == whole


@pytest.mark.parametrize("number, steps", [(signal.SIGTERM, 1), (signal.SIGINT, 22)])
def test_a_signal_queues_the_trial_again_and_it_is_resumed(small_dataset, whole, monkeypatch, number, steps):
    with monkeypatch.context() as patch:
        stop_after(patch, steps, lambda: os.kill(os.getpid(), number))
        assert tune.main(search(small_dataset, 4)) == 128 + number
    assert states(small_dataset)[-2:] == [FAIL, WAITING] and RUNNING not in states(small_dataset)
    assert tune.main(search(small_dataset, 4)) == 0
    assert outcomes(small_dataset) == whole and states(small_dataset).count(FAIL) == 1
    assert (
        len(list((small_dataset.parent.parent / "runs").iterdir())) == 8
    )  # four of `whole`: no folder was given up


def test_max_minutes_queues_the_trial_again(small_dataset):
    assert tune.main(search(small_dataset, 2, max_minutes=1e-9)) == 0
    assert len(outcomes(small_dataset)) == 0
    assert tune.main(search(small_dataset, 2, max_minutes=0)) == 0 and len(outcomes(small_dataset)) == 2


KILLED = """
import os, signal, sys
import pytest, test_tune, tune
with pytest.MonkeyPatch.context() as patch:
    test_tune.stop_after(patch, int(sys.argv[1]), lambda: os.kill(os.getpid(), signal.SIGKILL))
    tune.main(sys.argv[2:])
"""


def test_kill_9_in_mid_trial_and_a_restart_reach_the_same_study(small_dataset, whole):
    words = [
        sys.executable,
        "-c",
        KILLED,
        "22",
        *search(small_dataset, 4),
    ]  # in the second epoch of the second trial
    path = os.pathsep.join(map(str, (TUNE.parent, Path(__file__).parent)))
    assert (
        subprocess.run(words, capture_output=True, env={**os.environ, "PYTHONPATH": path}).returncode
        == -signal.SIGKILL
    )
    assert states(small_dataset) == [COMPLETE, RUNNING]
    assert tune.main(search(small_dataset, 4)) == 0
    assert (
        states(small_dataset) == [COMPLETE, FAIL, COMPLETE, COMPLETE, COMPLETE]
        and outcomes(small_dataset) == whole
    )
    killed, again = load(small_dataset).trials[1:3]
    assert killed.params == again.params and killed.user_indextrs["folder"] == again.user_indextrs["folder"]


@contextlib.contextmanager
def beside(folder, *words):
    """A process that has begun a trial, for the length of the block."""
    process, deadline = (
        subprocess.Popen(
            [sys.executable, TUNE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ),
        time.monotonic() + 60,
    )
    while not list(folder.parent.parent.glob("runs/*/train.log")) and time.monotonic() < deadline:
        time.sleep(0.02)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_two_processes_end_with_exactly_as_many_trials_as_are_wanted(small_dataset):
    words = search(small_dataset, 8, "--pruner", "none", epochs=20)
    with beside(small_dataset, *words) as other:
        assert tune.main(words) == 0
        out, err = other.communicate(timeout=60)
    assert other.returncode == 0 and "Traceback" not in err, err[-500:]
    assert states(small_dataset) == 8 * [COMPLETE] and sorted(outcomes(small_dataset)) == list(range(8))
    assert len({str(params) for params, _, _ in outcomes(small_dataset).values()}) == 8
    assert 0 < len(re.findall(r"^trial +\d+  ndcg", out, re.MULTILINE)) < 8


@pytest.mark.slow
def test_the_last_trial_of_a_process_that_dies_is_done_by_one_that_waits(small_dataset):
    words = search(small_dataset, 1, epochs=10**6, patience=0, eval_every=10**6, save_every=10**6)
    with beside(small_dataset, *words) as other:
        timer = threading.Timer(1, other.kill)
        timer.start()
        assert tune.main([*words, "--max_minutes", "0.05"]) == 0  # three seconds: waits, and then trains
    assert states(small_dataset) == [FAIL, FAIL, WAITING]
