"""What a resumed run refuses or notes: other settings, other data, another device, damaged checkpoints."""

import shutil

import numpy as np
import pytest
import torch
from resume_helpers import MODELS, assert_refused, assert_same
from small_runs import read_json, read_state, train

from main import main
from utils import lock_file

# ---------------------------------------------------------------- settings and folder


@pytest.fixture
def trained_ease(small_dataset):
    """The run folder of EASE, whose settings no other model has."""
    return train(small_dataset, model="ease")[0]


def test_changed_settings_are_refused(stopped, capsys):
    assert_refused(
        capsys,
        ["--resume", str(stopped), "--lr", "0.5", "--recdim", "16", "--seed", "1", "--eval_chunk", "7"],
        "--lr 0.02 -> 0.5",
        "--recdim 8 -> 16",
        "--seed 2025 -> 1",
    )
    released = ["--resume", str(stopped), "--recipe", "released"]
    assert_refused(capsys, released, "--recipe default -> released", "--feat_proj 0 -> 1")
    assert_refused(capsys, ["--resume", str(stopped), "--epochs", "5"], "--epochs 5", "started with 6")


def test_a_run_keeps_its_model(trained_ease, capsys):
    """Also one that has settings which no other model has."""
    resumed = ["--resume", str(trained_ease)]
    scored = ["--checkpoint", str(trained_ease / "best.pt"), "--evaluate_only", "1"]
    for words in (resumed, scored):
        assert_refused(capsys, [*words, "--model", "mf"], "was trained with --model ease; drop --model mf")


def test_settings_that_are_repeated_or_have_no_influence_are_accepted(stopped, whole):
    assert main(["--resume", str(stopped), "--lr", "0.02", "--save_every", "2", "--tensorboard", "1"]) == 0
    assert_same(whole(**MODELS["lgn_mm"]), stopped)


def test_a_folder_in_use_is_refused(stopped, capsys):
    with lock_file(stopped / ".lock"):
        assert_refused(capsys, ["--resume", str(stopped)], "another process is at work in this folder")
    assert main(["--resume", str(stopped)]) == 0


def test_a_folder_that_does_not_exist_is_refused(tmp_path, capsys):
    words = "nowhere/config.json: cannot be read", "--resume takes a run folder"
    assert_refused(capsys, ["--resume", str(tmp_path / "nowhere")], *words)


# ---------------------------------------------------------------- data


def remove_a_train_item(folder):
    lines = (folder / "train.txt").read_text().splitlines()
    (folder / "train.txt").write_text("\n".join([lines[0].rsplit(" ", 1)[0], *lines[1:]]) + "\n")


def change_a_feature(folder):
    features = np.load(folder / "text_feat.npy")
    features[3, 3] = np.nextafter(features[3, 3], np.float32(9))
    np.save(folder / "text_feat.npy", features)


def remove_a_test_item(folder):
    lines = (folder / "test.txt").read_text().splitlines()
    (folder / "test.txt").write_text("\n".join(lines[:-1]) + "\n")


@pytest.mark.parametrize("change", [remove_a_train_item, change_a_feature, remove_a_test_item])
def test_changed_data_are_refused(stopped, small_dataset, capsys, change):
    change(small_dataset)
    assert_refused(capsys, ["--resume", str(stopped)], "the data have changed", "start a new run")


def test_data_may_move(stopped, small_dataset, tmp_path, whole):
    reference = whole(**MODELS["lgn_mm"])
    shutil.move(small_dataset.parent, tmp_path / "moved")
    assert main(["--resume", str(stopped), "--data_root", str(tmp_path / "moved")]) == 0
    assert_same(reference, stopped)


# ---------------------------------------------------------------- device


def test_a_run_of_another_kind_of_device_is_refused(stopped, capsys):
    """The random generators of a CPU and a GPU have different states."""
    for name in ("best.pt", "last.pt"):
        torch.save({**read_state(stopped / name), "device": "cuda"}, stopped / name)
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    words = "was trained on cuda", "this process uses cpu", "--cuda 1 on a machine with a GPU"
    assert_refused(capsys, ["--resume", str(stopped)], *words)
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_run_of_the_cpu_is_refused_on_a_gpu(stopped, capsys):
    words = "was trained on cpu", "this process uses cuda", "--cuda 0"
    assert_refused(capsys, ["--resume", str(stopped), "--cuda", "1"], *words)


# ---------------------------------------------------------------- damaged checkpoints


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path):
    """Change one bit of the weights, which torch.load alone would not notice."""
    content = bytearray(path.read_bytes())
    weights = max(read_state(path)["model"].values(), key=torch.numel).numpy().tobytes()
    content[content.index(weights) + 10] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty])
def test_best_pt_is_used_in_place_of_a_damaged_last_pt(stopped, capsys, whole, damage):
    damage(stopped / "last.pt")
    assert main(["--resume", str(stopped)]) == 0
    out = capsys.readouterr().out
    assert f"note: {stopped / 'last.pt'}: is damaged" in out and "resumed after epoch 2\n" in out
    assert_same(whole(**MODELS["lgn_mm"]), stopped)


def test_a_run_whose_checkpoints_are_all_damaged_starts_again(stopped, capsys, whole):
    cut(stopped / "last.pt")
    flip_a_bit(stopped / "best.pt")
    assert main(["--resume", str(stopped)]) == 0
    out = capsys.readouterr().out
    assert out.count("is damaged") == 2 and "resumed after epoch 0\n" in out
    assert read_json(stopped)["status"] == "finished"
    assert_same(whole(**MODELS["lgn_mm"]), stopped)
