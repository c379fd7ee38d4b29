"""The planner of benchmarks/scale.py against the collectives that processes really make."""

import sys

import pytest
import torch
from parallel_helpers import in_processes

from benchmarks import scale

SMALL = {"users": 300, "items": 200, "interactions": 3000, "recdim": 64, "batch": 256, "heads": 4}
WITH_FEATURES = {**SMALL, "text": 24, "image": 32, "plan_every": 2}


def measure(plan):
    return scale.measure(plan, scale.make_config(plan), torch.device("cpu"), steps=4)


@pytest.mark.parametrize("devices, attention_layers", [(2, 1), (4, 2)])
def test_bytes_sent_in_a_step_are_those_of_the_plan(devices, attention_layers):
    plan = scale.Plan(devices=devices, attention_layers=attention_layers, **WITH_FEATURES)
    for found in in_processes(devices, measure, plan):
        planned = sum(scale.step_bytes(plan, found.positives, found.items).values())
        assert found.sent == pytest.approx(planned, rel=0.05)


def test_without_features_a_step_sends_the_scores_alone():
    plan = scale.Plan(devices=2, **SMALL)
    found = in_processes(2, measure, plan)[0]
    # 256 float32 scores, and two numbers for the norm of the batch.
    assert 256 * 4 <= found.sent <= 256 * 4 + 16
    assert sum(scale.step_bytes(plan, 1, 1).values()) == 256 * 4


@pytest.mark.parametrize("devices, measured", [(1, 4694), (2, 3648)])
def test_plan_of_electronics_is_within_ten_percent_of_the_measured_peaks(devices, measured):
    """The peaks of docs/scale.md; measuring them takes minutes and 5 GB."""
    shape = {"users": 192403, "items": 63001, "interactions": 1254441, "text": 1024, "image": 4096}
    plan = scale.Plan(devices=devices, recdim=256, **shape)
    assert sum(scale.memory(plan, cpu=True).values()) / 1e6 == pytest.approx(measured, rel=0.1)


def test_largest_moment_of_a_step_counts():
    def moment(**changes):
        plan = scale.Plan(devices=1, **{**WITH_FEATURES, **changes})
        return next(name for name in scale.memory(plan, cpu=True) if name.endswith("in a step"))

    assert moment() == "attention in a step"
    assert moment(users=100000) == "propagation in a step"


def test_comparison_prints_the_ratio_of_the_slowest_processes(monkeypatch, capsys):
    seconds = {1: [2.0], 2: [2.5, 3.0]}

    def measured(plan, steps, processes, threads):
        assert (processes, threads, steps) in ((1, 2, 10), (2, 1, 10))
        return [scale.Measured(1e6, one, 500.0, 20, 30) for one in seconds[processes]]

    monkeypatch.setattr(scale, "measure_apart", measured)
    sizes = ["--users", "300", "--items", "200", "--interactions", "3000", "--recdim", "64"]
    lines = run(monkeypatch, capsys, "--compare", *sizes).splitlines()
    assert lines[-1].startswith("a step with P = 2 takes 1.500 times as long")
    assert sum(line.strip().startswith("plan") for line in lines) == 2


def run(monkeypatch, capsys, *flags):
    monkeypatch.setattr(sys, "argv", ["scale", *flags])
    assert scale.main() == 0
    return capsys.readouterr().out


def test_report_says_what_no_longer_fits(monkeypatch, capsys):
    def verdict(*flags):
        return run(monkeypatch, capsys, *flags).splitlines()[-1]

    small = ["--users", "1e5", "--items", "1e5", "--recdim", "64"]
    assert verdict(*small, "--interactions", "1e6").startswith("fits")
    large = ["--users", "1e8", "--items", "1e7", "--recdim", "512", "--interactions", "1e8"]
    assert "the largest part: propagation" in verdict(*large)
    assert verdict(*large, "--devices", "64").startswith("fits")
    edges = ["--users", "1e8", "--items", "1e7", "--recdim", "64", "--interactions", "5e9"]
    assert "does not fit on any number of devices" in verdict(*edges, "--devices", "8")
    assert "under 8 columns" in verdict(*small, "--interactions", "1e6", "--devices", "16")
