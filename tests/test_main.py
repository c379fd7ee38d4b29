"""The command line from end to end."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_pairs, write_inter, write_txt

from main import main

MAIN = Path(__file__).resolve().parents[1] / "main.py"
# Training commands from the README of the paper's repository
VERBATIM = {
    "baby": """python -u main.py --dataset baby_raw   --model lgn_mm --use_multimodal 1 --text_feat ./data/baby_raw/text_feat.npy --image_feat ./data/baby_raw/image_feat.npy --item_knn_k 20 --item_branch_layers 1 --epochs 1000 --recdim 800 --layer 3 --lr 8e-4 --bpr_batch 4096 --topks "[10]" --fusion oat --contrastive_weight 0.032""",
    "sports": """python -u main.py --dataset sports_raw --model lgn_mm --use_multimodal 1 --text_feat ./data/sports_raw/text_feat.npy --image_feat ./data/sports_raw/image_feat.npy --item_knn_k 30 --item_branch_layers 1 --epochs 1000 --recdim 600 --layer 3 --lr 8e-4 --bpr_batch 4096 --topks "[10]" --fusion oat --contrastive_weight 0.005""",
    "electronics": """python -u main.py --dataset electronics --model lgn_mm --use_multimodal 1 --text_feat ./data/electronics_raw/text_feat.npy --image_feat ./data/electronics_raw/image_feat.npy --item_knn_k 20 --item_branch_layers 1 --epochs 2000 --recdim 200 --layer 3 --lr 8e-4 --bpr_batch 4096 --topks "[10]" --fusion oat --contrastive_weight 0.05""",
}
RECDIM = {"baby": 800, "sports": 600, "electronics": 200}


def flags(folder, *more):
    return [
        "--dataset",
        folder.name,
        "--data_root",
        str(folder.parent),
        "--path",
        str(folder.parent.parent / "runs"),
        "--recdim",
        "8",
        "--attn_heads",
        "2",
        "--item_knn_k",
        "4",
        "--user_knn_k",
        "4",
        "--topks",
        "5,10",
        "--epochs",
        "2",
        "--eval_every",
        "1",
        "--tensorboard",
        "0",
        "--cuda",
        "0",
        *more,
    ]


def only_run(runs):
    """(config, result) of the one run folder under `runs`."""
    (folder,) = runs.iterdir()
    return json.loads((folder / "config.json").read_text()), json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize(
    "more",
    [
        ("--model", "mf"),
        ("--model", "lgn"),
        ("--model", "vbpr"),
        ("--model", "freedom"),
        ("--model", "lgn_mm"),
        ("--model", "lgn_mm", "--fusion", "concat"),
        ("--model", "lgn_mm", "--user_text_feat", "mean"),
        ("--model", "lgn_mm", "--recipe", "released"),
    ],
)
def test_each_model_finishes_and_prints_the_final_table(small_dataset, capsys, more):
    assert main(flags(small_dataset, *more)) == 0
    out = capsys.readouterr().out
    config, result = only_run(small_dataset.parent.parent / "runs")
    assert result["status"] == "finished" and config["model"] == more[1]
    assert (
        "40 users, 30 items, 234 / 40 / 40 interactions" in out
        and f"best epoch {result['best_epoch']}" in out
    )
    for k in (5, 10):
        (row,) = (line.split() for line in out.splitlines() if line.split()[:2] == ["test", str(k)])
        assert row[2:] == [
            f"{result['test'][f'{name}@{k}']:.4f}"
            for name in ("recall", "ndcg", "precision", "map", "hitrate")
        ]


def test_audio_is_taken_from_the_dataset_folder_or_by_flag(small_dataset):
    audio = np.random.default_rng(0).standard_normal((30, 7)).astype(np.float64)
    np.save(small_dataset / "audio_feat.npy", audio)
    runs = small_dataset.parent.parent / "runs"
    for more, modalities in (
        ((), {"text", "image", "audio"}),
        (("--audio_feat", str(small_dataset / "audio_feat.npy")), {"audio"}),
    ):
        assert main(flags(small_dataset, "--model", "lgn_mm", *more)) == 0
        folder = max(runs.iterdir(), key=lambda path: path.stat().st_ctime_ns)
        names = torch.load(folder / "best.pt", weights_only=True)["model"]
        assert {name.split(".")[1] for name in names if name.startswith("branches.")} == modalities


def test_ratings_weigh_the_edges(tmp_path):
    pairs, rng = random_pairs(0, 40, 30, 6), np.random.default_rng(4)
    folder, losses = tmp_path / "data" / "rated", []
    write_inter(folder, **pairs, ratings=rng.integers(1, 6, sum(map(len, pairs.values()))))
    for edge_weight in ("one", "rating"):
        assert (
            main(
                flags(
                    folder,
                    "--model",
                    "lgn",
                    "--edge_weight",
                    edge_weight,
                    "--path",
                    str(tmp_path / edge_weight),
                )
            )
            == 0
        )
        (run_folder,) = (tmp_path / edge_weight).iterdir()
        losses.append(json.loads((run_folder / "metrics.jsonl").read_text().splitlines()[0])["train"]["loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    "more, words",
    [
        (("--edge_weight", "rating"), "ratings"),
        (("--topks", "31"), "only 30 items"),
        (("--dataset", "nowhere"), "nowhere"),
        (("--model", "lgn_mm", "--item_knn_k", "30"), "item_knn_k"),
        (("--no_such_flag", "1"), "no_such_flag"),
    ],
)
def test_bad_input_is_one_line_on_stderr_exit_code_2_and_no_run_folder(small_dataset, capsys, more, words):
    assert main(flags(small_dataset, "--model", "lgn", *more)) == 2
    captured = capsys.readouterr()
    assert (
        captured.err.startswith("error: ")
        and captured.err.count("\n") == 1
        and words in captured.err
        and not captured.out
    )
    assert not (small_dataset.parent.parent / "runs").exists()


def tiny(root, name):
    """root/data/<name>_raw with 36 items and features of 24 and 16 dimensions."""
    folder = root / "data" / f"{name}_raw"
    write_txt(folder, **random_pairs(3, 45, 36, 5))
    rng = np.random.default_rng(5)
    np.save(folder / "text_feat.npy", rng.standard_normal((36, 24)).astype(np.float32))
    np.save(folder / "image_feat.npy", rng.standard_normal((36, 16)).astype(np.float32))


@pytest.mark.parametrize("name", VERBATIM)
def test_command_lines_of_the_released_readme_work_verbatim(tmp_path, monkeypatch, capsys, name):
    tiny(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(VERBATIM[name])[3:], "--epochs", "1"]) == 0
    config, result = only_run(tmp_path / "runs")
    assert (
        config["recdim"] == RECDIM[name]
        and config["topks"] == [10]
        and config["lr"] == 8e-4
        and config["fusion"] == "oat"
    )
    assert result["best_epoch"] == 1 and 0 <= result["test"]["recall@10"] <= 1
    note = "electronics_raw" in capsys.readouterr().out.split("\n")[0] and name == "electronics"
    assert note == (name == "electronics")


def test_a_real_process_runs_from_another_folder(tmp_path):
    tiny(tmp_path, "electronics")
    words = [sys.executable, "-u", str(MAIN), *shlex.split(VERBATIM["electronics"])[3:], "--epochs", "1"]
    done = subprocess.run(
        words,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "note: data/electronics does not exist; using data/electronics_raw" in done.stdout
    _, result = only_run(tmp_path / "runs")
    assert (
        f"{result['test']['ndcg@10']:.4f}" in done.stdout.splitlines()[-2] and "Traceback" not in done.stderr
    )
    failed = subprocess.run(
        [sys.executable, str(MAIN), "--dataset", "nowhere"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert failed.returncode == 2 and failed.stderr.startswith("error: ") and "Traceback" not in failed.stderr


def test_one_epoch_on_real_baby(baby, tmp_path, capsys):
    assert (
        main(
            [
                "--dataset",
                baby.name,
                "--data_root",
                str(baby.parent),
                "--path",
                str(tmp_path),
                "--model",
                "lgn",
                "--recdim",
                "16",
                "--epochs",
                "1",
                "--lr",
                "1e-2",
                "--tensorboard",
                "0",
                "--cuda",
                "0",
            ]
        )
        == 0
    )
    assert "19445 users, 7050 items, 118551 / 20559 / 21682 interactions" in capsys.readouterr().out
    assert only_run(tmp_path)[1]["test"]["recall@20"] > 0.01
