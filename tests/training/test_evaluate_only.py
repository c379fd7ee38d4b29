"""--evaluate_only 1: scoring a checkpoint on validation and test without training."""

import numpy as np
import pytest
from resume_helpers import MODELS, assert_refused
from small_runs import read_json

from main import main


def score(folder, *flags):
    """Score best.pt of a run folder. Returns the exit code."""
    return main(["--evaluate_only", "1", "--checkpoint", str(folder / "best.pt"), *flags])


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_the_result_is_reproduced_and_nothing_is_written(whole, model, capsys):
    folder = whole(**model)
    table = (folder / "train.log").read_text().split("best epoch")[1]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    assert score(folder) == 0
    out = capsys.readouterr().out
    assert out.split("best epoch")[1] == table
    result = read_json(folder)
    for k in (3, 5):
        assert f"{result['test'][f'ndcg@{k}']:.4f}" in out and f"{result['valid'][f'recall@{k}']:.4f}" in out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "changes",
    [{}, {"eval_dropout_users": 7}, {"eval_dropout_users": 7, "select_on": "test"}, {"select_on": "test"}],
)
def test_dropout_in_scoring_has_the_masks_of_the_run(whole, capsys, changes):
    folder = whole(model="lgn_mm", eval_dropout=1, fuse_drop=0.5, **changes)
    table = (folder / "train.log").read_text().split("best epoch")[1]
    capsys.readouterr()
    assert score(folder) == 0
    assert capsys.readouterr().out.split("best epoch")[1] == table


def sentence(capsys, checkpoint, *flags):
    """The line on the selection of a scored checkpoint, and whether there is a warning."""
    capsys.readouterr()
    assert main(["--evaluate_only", "1", "--checkpoint", str(checkpoint), *flags]) == 0
    out = capsys.readouterr().out
    return next(line for line in out.splitlines() if "selected by" in line), "WARNING" in out


@pytest.mark.parametrize("select_on", ["valid", "test"])
def test_the_selection_is_that_of_the_run_whatever_is_scored(whole, capsys, select_on):
    folder = whole(model="lgn", epochs=9, lr=0.5, eval_every=1, patience=0, select_on=select_on)
    best, warned = read_json(folder)["best_epoch"], select_on == "test"
    expected = f"best epoch {best}, selected by ndcg@3 on {select_on}"
    assert sentence(capsys, folder / "best.pt") == (expected, warned)
    assert sentence(capsys, folder / "best.pt", "--topks", "4,20") == (expected, warned)
    assert best < 9
    expected = f"epoch 9, not the one selected by ndcg@3 on {select_on}"
    assert sentence(capsys, folder / "last.pt") == (expected, False)
    for flag in (["--select_on", "valid"], ["--select_on", "test"], ["--valid_metric", "recall@3"]):
        argv = ["--evaluate_only", "1", "--checkpoint", str(folder / "best.pt"), *flag]
        assert_refused(capsys, argv, flag[0], "has been selected already")


def test_no_metric_exceeds_one_in_parts(whole):
    folder = whole(model="lgn", epochs=1, topks=(30,), eval_dropout=1, eval_dropout_users=1)
    assert read_json(folder)["test"]["recall@30"] == 1.0


def test_changed_features_are_noted(small_dataset, whole, capsys):
    folder, path = whole(**MODELS["lgn_mm"]), small_dataset / "text_feat.npy"
    capsys.readouterr()
    assert score(folder) == 0 and "note:" not in capsys.readouterr().out
    np.save(path, np.load(path)[::-1])
    assert score(folder) == 0
    assert f"differ from those of {folder / 'best.pt'}" in capsys.readouterr().out


def test_resume_beside_it_is_refused(whole, capsys):
    folder = whole(**MODELS["lgn"])
    argv = ["--resume", str(folder), "--evaluate_only", "1", "--checkpoint", str(folder / "best.pt")]
    assert_refused(capsys, argv, "--evaluate_only 1", "--resume", "drop one of them")


def test_fusion_weights_can_be_changed(whole, capsys):
    folder, tables = whole(**MODELS["lgn_mm"]), []
    for flags in ([], ["--beta", "0", "--alpha", "1"]):
        capsys.readouterr()
        assert score(folder, *flags) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] != tables[1]


def test_another_dataset_is_refused(small_dataset, whole, capsys):
    folder = whole(**MODELS["lgn"])
    (small_dataset / "valid.txt").write_text((small_dataset / "valid.txt").read_text() + "40 3\n")
    argv = ["--evaluate_only", "1", "--checkpoint", str(folder / "best.pt")]
    assert_refused(capsys, argv, "best.pt: does not fit this dataset", "trained with")
