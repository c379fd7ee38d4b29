"""What a run that diverges says: the term, its size, and the setting or the features that are too large."""

import numpy as np
import pytest
from small_runs import command_line, only

from main import main
from models.mf import MF


def error_of(folder, tmp_path, capsys, **changes):
    """The line on stderr of a run that fails; no checkpoint of it holds anything that is not finite."""
    assert main(command_line(folder, tmp_path / "runs", epochs=2, **changes)) == 1
    assert not list(only(tmp_path / "runs").glob("best.pt"))
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("modality", ["text", "image"])
def test_features_that_are_too_large_are_named(small_dataset, tmp_path, capsys, modality):
    path = small_dataset / f"{modality}_feat.npy"
    np.save(path, (np.load(path).astype(np.float64) * 1e30).astype(np.float32))
    error = error_of(small_dataset, tmp_path, capsys, model="lgn_mm")
    assert "the loss is not finite (bpr nan" in error
    assert f"lower the {modality} features, which reach" in error and "e+30" in error
    assert "--lr" not in error


def test_a_weight_that_is_too_large_is_named_with_the_terms(small_dataset, tmp_path, capsys):
    error = error_of(small_dataset, tmp_path, capsys, model="lgn_mm", w1_weight=1e30)
    assert "lower --w1_weight 1e+30, and start a new run" in error
    assert "e+2" in error.split(";")[0] and "loss" in error and "lower --lr" not in error


def test_a_first_loss_that_is_not_finite_is_not_blamed_on_the_learning_rate(
    small_dataset, tmp_path, capsys, monkeypatch
):
    original = MF.loss
    monkeypatch.setattr(
        MF, "loss", lambda self, batch: {name: x * np.nan for name, x in original(self, batch).items()}
    )
    error = error_of(small_dataset, tmp_path, capsys, model="mf")
    assert "epoch 1, step 1: the loss is not finite (bpr nan, norm nan)" in error
    assert error.endswith("so --lr is not the cause: lower the weight of the largest term")


def test_buffers_are_checked_as_weights_are(small_dataset, tmp_path, capsys, monkeypatch):
    import model

    original = model.RecGOAT.begin_step

    def begin_step(self, step):
        original(self, step)
        self.fusion.transport("text").figures.fill_(float("nan"))

    monkeypatch.setattr(model.RecGOAT, "begin_step", begin_step)
    error = error_of(small_dataset, tmp_path, capsys, model="lgn_mm")
    assert "weights are not finite (fusion" in error and "figures" in error


@pytest.mark.parametrize("name", ["ot_epsilon", "ot_scale", "w1_weight", "temperature", "lr", "decay"])
def test_no_setting_is_beyond_float32(small_dataset, tmp_path, capsys, name):
    flags = command_line(small_dataset, tmp_path / "runs", model="lgn_mm", **{name: 1e300})
    assert main(flags) == 2
    assert capsys.readouterr().err == f"error: --{name} 1e+300: must be finite and at most 1e+30\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["ot_epsilon", "ot_scale"])
def test_the_largest_transport_settings_train_or_fail_in_one_line(small_dataset, tmp_path, capsys, name):
    flags = command_line(small_dataset, tmp_path / "runs", model="lgn_mm", epochs=1, ot_unit="absolute")
    assert main([*flags, f"--{name}", "1e30"]) in (0, 1)
    err = capsys.readouterr().err
    assert "Traceback" not in err and err.count("error: ") <= 1
