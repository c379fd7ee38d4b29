"""recgoat.py: the same numbers and lists as the commands, errors as exceptions, a process left as it was."""

import io
import json
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import stop_after
from small_runs import SMALL, command_line, only, read_json, same_weights

import main
import recgoat
import recommend
from recgoat import UserError
from world import Config

ROOT = Path(__file__).resolve().parents[1]
TIMES = ("seconds", "seconds_to_best", "test_seconds", "peak_memory_mb")


@pytest.fixture
def settings(small_dataset, tmp_path):
    """Settings of a run of two epochs."""
    places = {"dataset": "small", "data_root": small_dataset.parent, "path": tmp_path / "python"}
    return {**places, **SMALL, "threads": 1, "epochs": 2}


@pytest.fixture
def run(settings):
    """A finished run of LightGCN with the neighbourhood term."""
    return recgoat.train(**settings, model="lgn", neighbour_weight=0.5)


def without_times(result):
    return {name: value for name, value in result.items() if name not in TIMES}


@pytest.mark.parametrize("model", ["lgn", "lgn_mm", "itemknn"])
def test_the_same_settings_give_the_numbers_of_the_command_line(small_dataset, tmp_path, settings, model):
    run = recgoat.train(**settings, model=model, quiet=True)
    assert main.main(command_line(small_dataset, tmp_path / "shell", model=model, epochs=2)) == 0
    folder = only(tmp_path / "shell")
    assert without_times(run.result) == without_times(read_json(folder))
    assert run.metrics == read_json(folder)["test"] and run.folder == only(tmp_path / "python")
    assert same_weights(run.folder / "best.pt", folder / "best.pt")
    assert [line["epoch"] for line in run.evaluations] == ([1] if model == "itemknn" else [1, 2])


@pytest.mark.parametrize("stored", [False, True])
def test_recommendations_are_those_of_the_command(run, tmp_path, stored):
    output = tmp_path / "lists.tsv"
    shown = ["--checkpoint", str(run.folder), "--cuda", "0", "--topk", "4", "--output", str(output)]
    used = recgoat.load(run.folder, cuda=0) if stored else run
    for flags, table in (
        ([], used.recommend(k=4)),
        (["--users", "7,3", "--exclude", "train,valid"], used.recommend([7, "3"], 4, "train,valid")),
        (["--users", "7", "--explain"], used.recommend("7", 4, explain=True)),
        (["--similar_items", "5,1"], used.similar_items(["5", 1], 4)),
        (["--similar_items", "5", "--similar_by", "weights"], used.similar_items([5], 4, by="weights")),
    ):
        assert recommend.main([*shown, *flags]) == 0
        written, text = pd.read_csv(output, sep="\t"), table.to_csv(sep="\t", index=False)
        again = pd.read_csv(io.StringIO(text), sep="\t")
        pd.testing.assert_frame_equal(again, written)


def test_settings_of_load_are_taken_as_those_of_train(run, settings):
    again = recgoat.load(run.folder, cuda=False, data_root=Path(settings["data_root"]), threads=1)
    assert again.recommend(k=3).equals(run.recommend(k=3))
    with pytest.raises(UserError, match="--threads"):
        recgoat.load(run.folder, threads="many")


def test_embeddings_are_those_of_the_model(run):
    found = recgoat.load(run.folder).embeddings()
    user, item = (part.detach().numpy() for part in run.model.embeddings())
    assert np.array_equal(found.user, user) and np.array_equal(found.item, item)
    assert found.user_ids == [str(u) for u in range(40)] and len(found.item_ids) == 30
    assert not run.model.training and run.dataset.interactions.n_items == 30 and run.config.recdim == 8


def test_a_run_is_resumed_with_more_epochs(settings, run):
    assert recgoat.train(resume=run.folder, epochs=3).result["epochs"] == 3


def test_settings_of_a_preset_and_of_a_file(settings, tmp_path):
    (tmp_path / "file.json").write_text(json.dumps({"model": "mf", "decay": 0.25}))
    config = recgoat.train(**settings, config=tmp_path / "file.json").config
    assert config.model == "mf" and config.decay == 0.25
    preset = read_json(ROOT / "presets", "baby-small.json")
    config = recgoat.train(**settings, preset="baby-small", model="mf", valid_metric="ndcg@5").config
    assert config.decay == preset["decay"] != Config.decay


def test_a_class_of_ones_own(settings, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from models.lightgcn import LightGCN\nclass Mine(LightGCN):\n    pass\n"
    )
    model = f"{tmp_path / 'mine.py'}:Mine"
    run = recgoat.train(**settings, model=model)
    table = run.recommend([1], 3)
    with pytest.raises(UserError, match="add --model"):
        recgoat.load(run.folder).recommend([1])
    pd.testing.assert_frame_equal(recgoat.load(run.folder, model=model).recommend([1], 3), table)


# ---------------------------------------------------------------- what the user can correct


@pytest.mark.parametrize(
    "change, words",
    [
        ({"recdmi": 64}, "did you mean --recdim"),
        ({"recdim": "many"}, "invalid int value"),
        ({"model": "lgnmm"}, "did you mean lgn_mm"),
        ({"dataset": "smal"}, "did you mean small"),
        ({"dataset": ""}, "no dataset is named"),
        ({"topks": (31,)}, "only 30 items"),
        ({"evaluate_only": 1, "checkpoint": "x.pt"}, "x.pt"),
        ({"preset": "baby-smal"}, "did you mean baby-small"),
    ],
)
def test_a_setting_that_cannot_be_used_is_an_exception(settings, tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        recgoat.train(**{**settings, **change})
    assert not (tmp_path / "python").exists()


def test_a_request_that_cannot_be_met_is_an_exception(run, tmp_path):
    for request, words in (
        (lambda: recgoat.load(tmp_path / "no"), "is no run folder"),
        (lambda: recgoat.load(run.folder, data_roto="x"), "did you mean data_root"),
        (lambda: recgoat.load(run.folder, data_root="no").recommend(), "no"),
        (lambda: run.recommend(["nobody"]), "'nobody'"),
        (lambda: run.recommend([]), "names no id"),
        (lambda: run.similar_items([]), "names no id"),
        (lambda: run.recommend(k=0), "--topk 0"),
        (lambda: run.recommend(k=31), "only 30 items"),
        (lambda: run.recommend(exclude="trian"), "--exclude trian"),
        (lambda: run.similar_items([1], by="colour"), "colour"),
    ):
        with pytest.raises(UserError, match=words):
            request()


# ---------------------------------------------------------------- the process


def state_of_the_process():
    """Random numbers, threads, signal handlers and modes that a caller may rely on."""
    version, words, gauss = random.getstate()
    return (
        (version, words, gauss, np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),
        (torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision()),
        (torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), sys.stdout, sys.stderr),
        (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
    )


def test_the_process_is_left_as_it_was(settings, monkeypatch):
    before, handlers = state_of_the_process(), []
    stop_after(monkeypatch, 1, lambda: handlers.append(signal.getsignal(signal.SIGINT)))
    run = recgoat.train(**{**settings, "threads": before[1][0] + 1, "epochs": 1}, model="mf")
    recgoat.load(run.folder).recommend([1])
    assert state_of_the_process() == before
    assert handlers == [before[3][0]]  # during the training too


def test_quiet_training_prints_nothing(settings, capfd):
    recgoat.train(**settings, model="mf", quiet=True)
    assert capfd.readouterr() == ("", "")


def test_an_interruption_reaches_the_caller_and_the_run_can_be_resumed(settings, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    plain = recgoat.train(**settings, model="mf").metrics
    elsewhere = {**settings, "path": settings["path"] / "stopped"}
    with monkeypatch.context() as patch:
        stop_after(patch, 6, interrupt)  # in the second epoch
        with pytest.raises(KeyboardInterrupt):
            recgoat.train(**elsewhere, model="mf")
    folder = only(elsewhere["path"])
    assert recgoat.train(resume=folder).metrics == plain


def test_the_time_limit_ends_a_training(settings):
    run = recgoat.train(**settings, model="mf", max_minutes=1e-9)
    assert run.result["status"] == "interrupted" and run.metrics == {}


def test_training_works_in_a_thread(settings):
    """Where signal handlers could not be set."""
    found = []
    thread = threading.Thread(target=lambda: found.append(recgoat.train(**settings, model="mf").metrics))
    thread.start()
    thread.join()
    assert found and found[0]


def test_importing_takes_neither_torch_nor_pandas():
    code = "import recgoat, sys; print({'torch', 'pandas', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
