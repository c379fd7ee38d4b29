"""The log of a run: TensorBoard events, which agree with metrics.jsonl, and output to a file."""

import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import command_line, only, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from main import main

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
    folder, result, lines = train(small_dataset, epochs=3, tensorboard=1, plan_image_every=2)
    events = read_events(folder)
    tags = events.Tags()
    expected = {
        "2_training/loss",
        "2_training/bpr",
        "2_training/contrastive",
        "2_training/grad_norm",
        "3_speed/epoch_seconds",
        "3_speed/samples_per_second",
        "3_speed/peak_memory_mb",
        *(f"1_metrics/valid {name}@{k}" for name in ("recall", "ndcg") for k in (3, 5)),
        *(f"5_more_metrics/valid {name}@{k}" for name in ("precision", "map", "hitrate") for k in (3, 5)),
        *(f"4_model/plan/{m}/{name}" for m in ("text", "image") for name in ("w1", "entropy")),
    }
    assert sorted(expected - set(tags["scalars"])) == []
    for tag, values in (
        ("2_training/loss", [line["train"]["loss"] for line in lines]),
        ("1_metrics/valid ndcg@5", [line["valid"]["ndcg@5"] for line in lines]),
        ("4_model/plan/text/w1", [line["model"]["plan/text/w1"] for line in lines]),
    ):
        assert scalars(events, tag) == [
            (epoch, pytest.approx(value, rel=1e-5)) for epoch, value in enumerate(values, 1)
        ]
    assert {"plan/text", "plan/image"} <= set(tags["images"])
    assert [image.step for image in events.Images("plan/text")] == [1, 2]
    (best,) = events.Images("plan/image_best")
    assert best.step == result["best_epoch"]


def text(events, tag):
    """The content of a text summary."""
    (event,) = events.Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_what_never_varies_is_a_text_and_no_curve(small_dataset):
    folder, _, lines = train(small_dataset, epochs=3, tensorboard=1)
    events = read_events(folder)
    for name in ("id", "text", "image"):
        assert f"4_model/fusion/{name}" not in events.Tags()["scalars"]
        assert f"4_model/fusion/{name}: {lines[0]['model'][f'fusion/{name}']:g}" in text(
            events, "0_run/constants"
        )


def test_the_text_about_a_run_has_its_data_command_and_settings(small_dataset, monkeypatch):
    words = command_line(
        small_dataset, small_dataset.parent.parent / "runs", model="mf", epochs=1, tensorboard=1
    )
    monkeypatch.setattr(sys, "argv", ["/somewhere/main.py", *words])
    assert main(words) == 0
    about = text(read_events(only(small_dataset.parent.parent / "runs")), "0_run/about")
    assert "40 users, 30 items" in about and "| recdim | 8 |" in about and "| seed |" not in about
    assert "`python main.py --dataset small" in about


def test_hparams_compare_settings_with_final_metrics(small_dataset):
    folder, result, _ = train(small_dataset, epochs=2, tensorboard=1, lr=0.005)
    events = read_events(folder)
    content = {
        tag: HParamsPluginData.FromString(data) for tag, data in events.PluginTagToContent("hparams").items()
    }
    assert content["_hparams_/session_start_info"].session_start_info.hparams["lr"].number_value == 0.005
    experiment = content["_hparams_/experiment"].experiment
    expected = {"9_final/valid best ndcg@3": result["valid"]["ndcg@3"]}
    for k in (3, 5):
        expected |= {f"9_final/test {name}@{k}": result["test"][f"{name}@{k}"] for name in ("recall", "ndcg")}
    assert [info.name.tag for info in experiment.metric_infos] == list(expected)
    # Each column of the comparison is also a scalar; only metrics beyond accuracy have a single point too.
    for name, value in expected.items():
        assert scalars(events, name) == [(result["best_epoch"], pytest.approx(value, rel=1e-6))]
    single = {tag for tag in events.Tags()["scalars"] if len(scalars(events, tag)) == 1}
    assert {tag for tag in single if not tag.startswith("6_beyond_accuracy/")} == expected.keys()
    shown_first = {info.name for info in experiment.hparam_infos if info.differs}
    assert shown_first == {"model", "recdim", "attn_heads", "bpr_batch", "lr"}


def test_tensorboard_0_writes_no_events(small_dataset):
    folder, _, _ = train(small_dataset, epochs=1, tensorboard=0)
    assert not [path for path in folder.rglob("*") if "events" in path.name]


def test_learned_fusion_weights_are_logged_over_time(small_dataset):
    folder, _, lines = train(small_dataset, epochs=3, tensorboard=1, learn_fusion_weights=1)
    events = read_events(folder)
    for name in ("id", "text", "image"):
        values = [value for _, value in scalars(events, f"4_model/fusion/{name}")]
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
