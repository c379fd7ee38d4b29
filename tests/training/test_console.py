"""The table of epochs: at most 80 columns, one heading, and seconds that add up; train.log is the console."""

import re
import time

import pytest
from small_runs import command_line, only, read_json, read_metrics, train

from main import main
from training.console import epoch_line, heading, shown_metrics
from world import Config, metric_names


@pytest.mark.parametrize(
    "topks, valid_metric",
    [
        ((10, 20), ""),
        ((20,), ""),
        ((5, 10, 20, 50), "ndcg@50"),
        ((10, 20), "hitrate@20"),
        ((100, 1000, 5000), "precision@5000"),
    ],
)
def test_a_line_fits_80_columns_and_shows_what_selects(topks, valid_metric):
    config = Config(topks=topks, valid_metric=valid_metric)
    metrics = {name: 0.9999 - index / 1e4 for index, name in enumerate(metric_names(topks))}
    about, names = heading(config)
    line = epoch_line(config, 99999, 123.4567, metrics, 123456.7, best=True)
    assert max(map(len, (about, names, line))) <= 80
    columns = dict(zip(names.split(), line.split()))
    assert columns.pop("epoch") == "99999" and columns.pop("loss") == "123.4567"
    assert columns.pop("seconds") == "123456.7" and line.endswith("  best")
    assert columns == {name: f"{metrics[name]:.4f}" for name in shown_metrics(config)}
    assert config.selection_metric in columns and config.selection_metric in about


def test_each_value_stands_below_the_end_of_its_name():
    config = Config(topks=(5, 100))
    line = epoch_line(config, 5, None, dict.fromkeys(metric_names((5, 100)), 0.5), 1.0, best=False)
    _, names = heading(config)
    ends = [[match.end() for match in re.finditer(r"\S+", text)] for text in (names, line)]
    assert ends[0] == ends[1]


def test_the_log_has_all_that_the_console_has(small_dataset, capsys):
    runs = small_dataset.parent.parent / "runs"
    assert main(command_line(small_dataset, runs, model="mf", epochs=4, eval_every=2, warm_up_steps=3)) == 0
    out, log = capsys.readouterr().out, (only(runs) / "train.log").read_text()
    assert log == out and out.startswith("note: --warm_up_steps has no effect")
    assert out.count("epoch     loss") == 1 and "run folder" in out
    assert main(["--resume", str(only(runs)), "--epochs", "6", "--cuda", "0"]) == 0
    assert (only(runs) / "train.log").read_text() == out + capsys.readouterr().out


def test_an_error_in_a_run_is_in_its_log(small_dataset, capsys):
    runs = small_dataset.parent.parent / "runs"
    assert main(command_line(small_dataset, runs, model="mf", epochs=4, lr=1e30)) == 1
    assert capsys.readouterr().err in (only(runs) / "train.log").read_text()


def test_the_seconds_of_a_run_are_those_that_pass(small_dataset):
    started = time.perf_counter()
    folder, result, lines = train(small_dataset, model="mf", epochs=3)
    passed = time.perf_counter() - started
    seconds = [line["seconds"] for line in lines]
    parts = sum(line["epoch_seconds"] + line["evaluation_seconds"] for line in lines)
    assert seconds == sorted(seconds) and parts <= result["seconds"] <= passed
    assert result["seconds"] == read_json(folder)["seconds"] and read_metrics(folder) == lines
