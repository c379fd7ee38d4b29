"""The log of a run: TensorBoard events, which agree with metrics.jsonl, and output to a file."""

import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import METRICS, command_line, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

ROOT = Path(__file__).resolve().parents[2]


def read_events(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars(events, tag):
    """[(step, value), ...] of a scalar."""
    return [(event.step, event.value) for event in events.Scalars(tag)]


# ---------------------------------------------------------------- TensorBoard


def test_events_agree_with_metrics_jsonl(small_dataset):
    folder, _, lines = train(small_dataset, epochs=3, tensorboard=1, plan_image_every=2)
    events = read_events(folder)
    tags = events.Tags()
    # tensorboardX writes _ for @.
    expected = {
        "train/loss",
        "train/bpr",
        "train/contrastive",
        "train/grad_norm",
        "speed/epoch_seconds",
        "speed/samples_per_second",
        "speed/peak_memory_mb",
        *(f"{split}/{name}_{k}" for split in ("valid", "test") for name in METRICS for k in (3, 5)),
        *(f"model/plan/{m}/{name}" for m in ("text", "image") for name in ("w1", "mass", "entropy")),
    }
    assert sorted(expected - set(tags["scalars"])) == []
    for tag, values in (
        ("train/loss", [line["train"]["loss"] for line in lines]),
        ("valid/ndcg_5", [line["valid"]["ndcg@5"] for line in lines]),
        ("model/plan/text/w1", [line["model"]["plan/text/w1"] for line in lines]),
    ):
        assert scalars(events, tag) == [
            (epoch, pytest.approx(value, rel=1e-5)) for epoch, value in enumerate(values, 1)
        ]
    masses = scalars(events, "model/plan/image/mass")
    assert all(mass == pytest.approx(1, abs=1e-3) for _, mass in masses)
    assert {"plan/text", "plan/image"} <= set(tags["images"])
    images = events.Images("plan/text")
    assert [image.step for image in images] == [1, 2] and (images[0].width, images[0].height) == (8, 8)


def test_hparams_compare_settings_with_final_metrics(small_dataset):
    folder, result, _ = train(small_dataset, epochs=2, tensorboard=1, lr=0.005)
    events = read_events(folder)
    content = {
        tag: HParamsPluginData.FromString(data) for tag, data in events.PluginTagToContent("hparams").items()
    }
    assert content["_hparams_/session_start_info"].session_start_info.hparams["lr"].number_value == 0.005
    experiment = content["_hparams_/experiment"].experiment
    expected = {"valid_best/ndcg_3": result["valid"]["ndcg@3"]}
    for k in (3, 5):
        expected |= {f"test/{name}_{k}": result["test"][f"{name}@{k}"] for name in ("recall", "ndcg")}
    assert [info.name.tag for info in experiment.metric_infos] == list(expected)
    # Each column of the comparison is also a scalar.
    for name, value in expected.items():
        assert [point for _, point in scalars(events, name)] == [pytest.approx(value, rel=1e-6)]
    shown_first = {info.name for info in experiment.hparam_infos if info.differs}
    assert shown_first == {"model", "recdim", "attn_heads", "bpr_batch", "lr"}


def test_tensorboard_0_writes_no_events(small_dataset):
    folder, _, _ = train(small_dataset, epochs=1, tensorboard=0)
    assert not [path for path in folder.rglob("*") if "events" in path.name]


def test_learned_fusion_weights_are_logged_over_time(small_dataset):
    folder, _, lines = train(small_dataset, epochs=3, tensorboard=1, learn_fusion_weights=1)
    events = read_events(folder)
    for name in ("id", "text", "image"):
        values = [value for _, value in scalars(events, f"model/fusion/{name}")]
        logged = [line["model"][f"fusion/{name}"] for line in lines]
        assert len(set(values)) == 3 and values == pytest.approx(logged, rel=1e-6)


def test_the_image_of_a_plan_of_zeros_has_no_nan(small_dataset, recwarn):
    """Plain Sinkhorn underflows at this scale."""
    underflow = dict(sinkhorn="exp", ot_unit="absolute", ot_scale=1e6, ot_epsilon=0.01)
    _, _, lines = train(small_dataset, epochs=1, tensorboard=1, **underflow)
    assert lines[0]["model"]["plan/text/mass"] == 0
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


# ---------------------------------------------------------------- redirected output


@pytest.mark.parametrize("script, flags", [("main.py", []), ("tune.py", ["--study", "s", "--trials", "1"])])
def test_redirected_output_has_no_progress_bar(small_dataset, tmp_path, script, flags):
    if script == "tune.py":
        pytest.importorskip("optuna")
        flags = [*flags, "--storage", str(tmp_path / "s.db")]
    words = [*flags, *command_line(small_dataset, tmp_path / "runs", model="mf", epochs=2)]
    done = subprocess.run([sys.executable, ROOT / script, *words], capture_output=True, check=True, cwd=ROOT)
    assert b"ndcg@3" in done.stdout and done.stderr == b""
    assert b"\r" not in done.stdout and b"\x1b" not in done.stdout
