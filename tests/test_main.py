"""main.py from the command line to the run folder."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_features, random_pairs, write_inter, write_txt
from released_commands import COMMANDS
from small_runs import METRICS, command_line, only, read_json, read_metrics, read_state

import session
from main import main
from training.beyond import BEYOND
from world import bf16_slowdown

MAIN = Path(__file__).resolve().parents[1] / "main.py"
RECDIM = {"baby": 800, "sports": 600, "electronics": 200}


def words(folder, *more):
    """Command line of two epochs on a dataset folder, with further flags."""
    return [*command_line(folder, folder.parent.parent / "runs", topks="5,10", epochs=2), *more]


def test_the_time_limit_includes_the_reading_of_the_data(small_dataset, monkeypatch):
    load = session.load
    monkeypatch.setattr(session, "load", lambda *args: time.sleep(0.5) or load(*args))
    assert main(words(small_dataset, "--max_minutes", str(0.4 / 60))) == 0
    result = read_json(only(small_dataset.parent.parent / "runs"))
    assert (result["status"], result["epoch"]) == ("interrupted", 0)


@pytest.mark.parametrize(
    "more",
    [
        ("--model", "mf"),
        ("--model", "lgn"),
        ("--model", "vbpr"),
        ("--model", "freedom"),
        ("--model", "bm3"),
        ("--model", "lattice"),
        ("--model", "mgcn"),
        ("--model", "smore"),
        ("--model", "itemknn"),
        ("--model", "lgn_mm"),
        ("--model", "lgn_mm", "--fusion", "concat"),
        ("--model", "lgn_mm", "--user_text_feat", "mean"),
        ("--model", "lgn_mm", "--recipe", "released"),
    ],
)
def test_each_model_finishes_and_prints_the_final_table(small_dataset, capsys, more):
    assert main(words(small_dataset, *more)) == 0
    out, folder = capsys.readouterr().out, only(small_dataset.parent.parent / "runs")
    config, result = read_json(folder, "config.json"), read_json(folder)
    assert result["status"] == "finished" and config["model"] == more[1]
    assert "40 users, 30 items, 234 / 40 / 40 interactions" in out
    assert f"best epoch {result['best_epoch']}" in out
    for k in (5, 10):
        rows = (line.split() for line in out.splitlines() if line.split()[:2] == ["test", str(k)])
        accuracy, beyond = (row[2:] for row in rows)
        assert accuracy == [f"{result['test'][f'{name}@{k}']:.4f}" for name in METRICS]
        found = result["beyond_accuracy"]["test"]
        assert beyond == [f"{found[f'{name}@{k}']:.3f}" for name in BEYOND]


@pytest.mark.parametrize("slowdown, precision", [(12.7, "fp32"), (0.5, "bf16")])
def test_bf16_gives_way_to_fp32_where_the_processor_is_slow_at_it(
    small_dataset, capsys, monkeypatch, slowdown, precision
):
    monkeypatch.setattr("world.bf16_slowdown", lambda: slowdown)
    assert main(words(small_dataset, "--model", "lgn_mm", "--precision", "bf16")) == 0
    folder = only(small_dataset.parent.parent / "runs")
    assert read_json(folder, "config.json")["precision"] == precision
    assert ("13 times slower" in capsys.readouterr().out) == (precision == "fp32")
    monkeypatch.setattr("world.bf16_slowdown", lambda: 12.7)
    assert main(["--resume", str(folder), "--epochs", "3"]) == 0  # a run keeps its precision
    assert read_json(folder, "config.json")["precision"] == precision


def test_tf32_needs_a_gpu_to_train_and_none_to_score(small_dataset, tmp_path, capsys):
    flags = words(small_dataset, "--model", "lgn_mm", "--cuda", "0")
    assert main([*flags, "--precision", "tf32"]) == 2
    assert "--precision tf32 needs an NVIDIA GPU" in capsys.readouterr().err
    assert main([*flags, "--path", str(tmp_path / "runs")]) == 0
    scored = ["--evaluate_only", "1", "--checkpoint", str(only(tmp_path / "runs") / "best.pt")]
    assert main([*scored, "--precision", "tf32"]) == 0


def test_the_slowdown_of_bf16_is_measured():
    assert 0.01 < bf16_slowdown() < 1000


@pytest.mark.parametrize("named", [False, True])
def test_audio_features_of_the_dataset_folder_or_a_flag(small_dataset, named):
    """Features named by a flag take the place of all those in the dataset folder."""
    path = small_dataset / "audio_feat.npy"
    np.save(path, random_features(30, 7).astype(np.float64))
    assert main(words(small_dataset, "--model", "lgn_mm", *(["--audio_feat", str(path)] * named))) == 0
    weights = read_state(only(small_dataset.parent.parent / "runs") / "best.pt")["model"]
    modalities = {name.split(".")[1] for name in weights if name.startswith("branches.")}
    assert modalities == ({"audio"} if named else {"text", "image", "audio"})


def test_edge_weight_rating_changes_the_graph(tmp_path):
    pairs, rng = random_pairs(0, 40, 30, 6), np.random.default_rng(4)
    folder, losses = tmp_path / "data" / "rated", []
    write_inter(folder, **pairs, ratings=rng.integers(1, 6, sum(map(len, pairs.values()))))
    for edge_weight in ("one", "rating"):
        runs = tmp_path / edge_weight
        assert main(command_line(folder, runs, model="lgn", edge_weight=edge_weight, epochs=1)) == 0
        losses.append(read_metrics(only(runs))[0]["train"]["loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    "more, message",
    [
        (("--edge_weight", "rating"), "ratings"),
        (("--topks", "31"), "only 30 items"),
        (("--dataset", "nowhere"), "nowhere"),
        (("--model", "lgn_mm", "--item_knn_k", "30"), "item_knn_k"),
        (("--no_such_flag", "1"), "no_such_flag"),
        (("--model", "vbpr", "--itemknn_k", "5"), "itemknn_k"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_run_folder(small_dataset, capsys, more, message):
    assert main(words(small_dataset, "--model", "lgn", *more)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err and not captured.out
    assert not (small_dataset.parent.parent / "runs").exists()


# ---------------------------------------------------------------- the commands of the released code


def write_raw_dataset(root, name):
    """root/data/<name>_raw with 36 items and features of 24 and 16 dimensions."""
    folder = root / "data" / f"{name}_raw"
    write_txt(folder, **random_pairs(3, 45, 36, 5))
    np.save(folder / "text_feat.npy", random_features(36, 24, seed=5))
    np.save(folder / "image_feat.npy", random_features(36, 16, seed=6))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_released_commands_work_unchanged(tmp_path, monkeypatch, capsys, name):
    write_raw_dataset(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(COMMANDS[name]), "--epochs", "1"]) == 0
    folder = only(tmp_path / "runs")
    config, result = read_json(folder, "config.json"), read_json(folder)
    assert config["recdim"] == RECDIM[name] and config["topks"] == [10]
    assert config["lr"] == 8e-4 and config["fusion"] == "oat"
    assert result["best_epoch"] == 1 and 0 <= result["test"]["recall@10"] <= 1
    # Only the command for electronics does not name the folder electronics_raw.
    assert ("electronics_raw" in capsys.readouterr().out.split("\n")[0]) == (name == "electronics")


def run_script(folder, *argv):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-u", MAIN, *argv],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env=environment,
    )


def test_main_runs_from_any_folder(tmp_path):
    write_raw_dataset(tmp_path, "electronics")
    done = run_script(tmp_path, *shlex.split(COMMANDS["electronics"]), "--epochs", "1")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "note: data/electronics" in done.stdout and "data/electronics_raw" in done.stdout
    result = read_json(only(tmp_path / "runs"))
    rows = [line.split() for line in done.stdout.splitlines()]
    assert f"{result['test']['ndcg@10']:.4f}" in next(row for row in rows if row[:2] == ["test", "10"])
    failed = run_script(tmp_path, "--dataset", "nowhere")
    assert failed.returncode == 2 and failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr


# ---------------------------------------------------------------- real data


def test_one_epoch_on_baby(baby, tmp_path, capsys):
    settings = dict(model="lgn", recdim=16, epochs=1, lr=1e-2, topks="10,20", bpr_batch=2048)
    assert main(command_line(baby, tmp_path / "runs", **settings, threads=torch.get_num_threads())) == 0
    out = capsys.readouterr().out
    assert "19445 users, 7050 items, 118551 / 20559 / 21682 interactions" in out
    assert read_json(only(tmp_path / "runs"))["test"]["recall@20"] > 0.01
