"""Runs that fail: divergence, exhausted memory, a full disk, a run folder that disappears."""

import shutil

import pytest
import torch
from helpers import stop_after
from resume_helpers import MODELS, assert_same, command
from small_runs import only, read_json, read_state

from benchmarks.processes import errors, finish, launch, run_folders
from main import main
from models.mf import MF
from training.checkpoint import newest_checkpoint


def last_error(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def failure(folder):
    """The error in result.json, once every checkpoint of the folder has been checked to be finite."""
    for path in folder.glob("*.pt"):
        assert all(weight.isfinite().all() for weight in read_state(path)["model"].values())
    result = read_json(folder)
    assert result["status"] == "failed"
    return result["error"]


# ---------------------------------------------------------------- divergence


def test_a_learning_rate_at_which_the_loss_diverges(small_dataset, tmp_path, capsys):
    assert main(command(small_dataset, tmp_path / "runs", model="lgn", lr=1e30)) == 1
    error = last_error(capsys)
    assert error.startswith("error: epoch 1, step ")
    assert all(words in error for words in ("not finite", "there is no checkpoint yet", "--lr"))
    assert failure(only(tmp_path / "runs")) in error


def make_nan(monkeypatch, step, term):
    """Make a term of the loss NaN in one step."""
    original, calls = MF.loss, []

    def loss(self, batch):
        terms = original(self, batch)
        calls.append(1)
        if len(calls) == step:
            terms[term] = terms[term] * torch.nan
            terms["loss"] = terms["loss"] + terms[term]
        return terms

    monkeypatch.setattr(MF, "loss", loss)


@pytest.mark.parametrize("term", ["bpr", "norm"])
def test_a_loss_that_is_not_finite(small_dataset, tmp_path, monkeypatch, capsys, whole, term):
    """The error names epoch, step, term and the last good checkpoint, from which the run can be resumed."""
    reference = whole(**MODELS["lgn"])
    with monkeypatch.context() as patch:
        make_nan(patch, 21, term)
        assert main(command(small_dataset, tmp_path / "runs", **MODELS["lgn"])) == 1
    folder, error = only(tmp_path / "runs"), last_error(capsys)
    assert f"epoch 3, step 5: the loss is not finite ({term} nan)" in error
    assert f"the last good checkpoint is {folder / 'last.pt'}" in error
    assert failure(folder) in error and newest_checkpoint(folder)[0]["progress"]["epoch"] == 2
    assert main(["--resume", str(folder)]) == 0
    assert_same(reference, folder)


def test_weights_that_are_not_finite_although_every_loss_is(small_dataset, tmp_path, monkeypatch, capsys):
    original, calls = MF.loss, []

    def loss(self, batch):
        calls.append(1)
        # In the last step of epoch 2, for the user without train items: no loss of the epoch shows it.
        if len(calls) == 16:
            with torch.no_grad():
                self.user[39] = torch.inf
        return original(self, batch)

    monkeypatch.setattr(MF, "loss", loss)
    assert main(command(small_dataset, tmp_path / "runs", model="mf")) == 1
    error = last_error(capsys)
    assert "epoch 2, step 8: weights are not finite (user; loss " in error and "last.pt" in error
    assert failure(only(tmp_path / "runs"))


# ---------------------------------------------------------------- memory and disk


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    ],
)
@pytest.mark.parametrize("method", ["loss", "embeddings"])
def test_out_of_memory(small_dataset, tmp_path, monkeypatch, capsys, error, method):
    def fail(self, *_):
        raise error

    monkeypatch.setattr(MF, method, fail)
    assert main(command(small_dataset, tmp_path / "runs", model="mf")) == 1
    line = last_error(capsys)
    assert line.startswith("error: out of memory") and "--bpr_batch" in line and "--eval_chunk" in line


def test_any_other_error_is_not_hidden(small_dataset, tmp_path, monkeypatch):
    def fail(self, batch):
        raise RuntimeError("a bug")

    monkeypatch.setattr(MF, "loss", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(command(small_dataset, tmp_path / "runs", model="mf"))


@pytest.mark.parametrize("limit", [1_000, 6_000, 20_000])
def test_a_full_disk_is_one_line_and_the_run_can_be_resumed(small_dataset, tmp_path, whole, limit):
    """With a limit on the size of a file in place of a full disk."""
    reference = whole(**MODELS["lgn"], tensorboard=1)
    argv = command(small_dataset, tmp_path / "runs", **MODELS["lgn"], tensorboard=1)
    code = finish(launch(argv, tmp_path / "log", file_limit=limit), 60)
    lines = errors(tmp_path / "log")
    assert code in (1, 2) and len(lines) == 1, (code, lines)
    assert lines[0].startswith(f"error: {tmp_path / 'runs'}/")
    folders = run_folders(tmp_path / "runs")
    if folders:
        assert main(["--resume", str(folders[0])]) == 0
        assert_same(reference, folders[0])


def test_a_full_disk_below_the_log_is_an_error_that_names_it(stopped, capsys):
    log = stopped / "train.log"
    log.unlink()
    log.symlink_to("/dev/full")
    assert main(["--resume", str(stopped)]) == 1
    assert last_error(capsys).startswith(f"error: {log}: No space left on device; the run can be resumed")


def test_a_run_folder_that_disappears(small_dataset, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 12, lambda: shutil.rmtree(only(tmp_path / "runs")))
        assert main(command(small_dataset, tmp_path / "runs", model="lgn")) == 1
    error = last_error(capsys)
    assert error.startswith("error: ") and "cannot be written" in error
