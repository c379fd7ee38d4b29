"""Invalid command lines: unknown flags, values out of range, contradictions; a few in a real process."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from broken import (
    ROOT,
    append_line,
    assert_refused,
    assert_training_refused,
    command_line,
    no_change,
    ones_but,
    text_array,
)

from world import Config, choose_device

FLAGS = [
    (["--model", "lgn_mm", "--item_knn_k", 30], ["30 neighbours", "30 rows", "lower --item_knn_k"]),
    (
        ["--model", "lgn_mm", "--user_text_feat", "mean", "--user_knn_k", 40],
        ["40 neighbours", "40 rows", "--user_knn_k"],
    ),
    (["--topks", "10,31"], ["--topks 31", "30 items", "smaller K"]),
    (["--topks", "[10"], ["--topks", "'[10'", "10,20"]),
    (
        ["--model", "lgn_mm", "--recdim", 60, "--attn_heads", 8],
        ["--recdim 60", "--attn_heads 8", "change either"],
    ),
    (["--no_such_flag", 1], ["--no_such_flag", "--help"]),
    (["--epochs", "ten"], ["--epochs", "ten", "--help"]),
    (["--epochs", "0"], ["--epochs 0", "at least 1"]),
    (["--model", "svd"], ["--model", "svd", "lgn_mm"]),
    (["--tensorboard", "2"], ["--tensorboard", "2", "0, 1"]),
    (["--edge_weight", "rating"], ["small", "no ratings", "--data_format inter"]),
    (["--model", "lgn_mm", "--use_multimodal", 0], ["lgn_mm", "needs features", "drop --use_multimodal 0"]),
    (["--valid_metric", "ndcg@7"], ["--valid_metric ndcg@7", "ndcg@10", "--topks"]),
    (["--valid_metric", "auc@10"], ["--valid_metric auc@10", "recall@20"]),
    (["--lr", "-1"], ["--lr -1.0", "at least 0"]),
    (["--lr", "nan"], ["--lr nan", "at least 0"]),
    (["--lr", "inf"], ["--lr inf", "finite"]),
    (["--eta", "1.5"], ["--eta 1.5", "at most 1"]),
    (["--seed", "-3"], ["--seed -3", "at least 0"]),
    (["--dat", "small"], ["--dat", "--help"]),
    (["stray"], ["stray", "--help"]),
    (["--lr"], ["--lr", "--help"]),
    (["--recdim", 10**12], ["--recdim", "too large"]),
    (["--epochs", "9" * 40], ["--epochs", "too large"]),
    (["--path", "bad\x01name"], ["--path", "control characters"]),
    (["--dataset", "sm\nall"], ["--dataset", "control characters"]),
    (["--evaluate_only", 1], ["--evaluate_only 1", "--checkpoint PATH"]),
    (["--model", "ease", "--projector", 1, "--tensorboard", 1], ["--projector 1", "ease", "no vectors"]),
    (["--model", "itemknn", "--neighbour_weight", 1], ["--neighbour_weight 1", "itemknn", "leave it out"]),
    (
        ["--model", "vbpr", "--neighbour_weight", 1, "--use_multimodal", 0],
        ["drop --use_multimodal 0", "--neighbour_content 0"],
    ),
    (["--max_minutes", "-1"], ["--max_minutes", "at least 0"]),
    (["--save_every", "0"], ["--save_every", "at least 1"]),
]


@pytest.mark.parametrize(
    "extra, words",
    FLAGS,
    ids=lambda value: " ".join(map(str, value)) if str(value[0]).startswith("--") else "",
)
def test_flags(extra, words, small_dataset, capsys):
    assert_training_refused(small_dataset, capsys, extra, words)


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_the_folder_of_runs_must_not_be_a_file(below, small_dataset, capsys, tmp_path):
    (tmp_path / "file").write_text("content")
    words = ["file", "cannot be created or written", "--path"]
    assert_training_refused(small_dataset, capsys, ["--path", tmp_path / below], words)
    assert (tmp_path / "file").read_text() == "content"


def test_gpu_id_is_ignored_on_the_cpu():
    assert choose_device(Config(cuda=0, gpu_id=99)) == torch.device("cpu")


@pytest.mark.parametrize(
    "break_dataset, extra, words",
    [
        (append_line("train.txt", "3 4x"), [], ["train.txt, line 40"]),
        (text_array(ones_but(7, np.nan)), ["--model", "lgn_mm"], ["text_feat.npy, row 7"]),
        (no_change, ["--epochs", "ten"], ["--epochs"]),
    ],
    ids=["id", "nan", "flag"],
)
def test_as_a_process(break_dataset, extra, words, small_dataset):
    break_dataset(small_dataset)
    done = subprocess.run(
        [sys.executable, ROOT / "main.py", *command_line(small_dataset, *extra)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=small_dataset.parents[1],
    )
    assert_refused(done.returncode, done.stderr, words)
    assert "Traceback" not in done.stdout + done.stderr
    assert not (small_dataset.parents[1] / "runs").exists()


CASES = [*FLAGS, "path that is a file", "path below a file"]
