"""Run folders that others made: report.py and scripts/table.py refuse what does not fit, in one line."""

import json
import shutil

import pytest
from broken import assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st

import report
from cli import run_tool
from scripts import table


@pytest.fixture
def run_folder(trained, tmp_path):
    """A copy of the trained run, to be damaged."""
    return shutil.copytree(trained[1], tmp_path / "runs" / "run")


def put(path, keys, value):
    """Replace the entry at [key][key]... of a JSON file; returns the file's text of before."""
    text = path.read_text("utf-8")
    content = json.loads(text)
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))
    return text


def report_code(folder):
    return report.main([str(folder), "--output", str(folder.parents[1] / "out"), "--figures", "0"])


RESULT = {
    "status unknown": (["status"], "well", "status is 'well', not one of finished"),
    "status a list": (["status"], [], "status is []"),
    "test a list": (["test"], [0.1], "test is not an object"),
    "metric null": (["test", "precision@5"], None, "test.precision@5 is None, not a number from 0 to 1"),
    "metric a text": (["test", "map@5"], "0.1", "test.map@5 is '0.1'"),
    "metric NaN": (["test", "ndcg@5"], float("nan"), "test.ndcg@5 is nan"),
    "metric infinite": (["test", "hitrate@5"], float("inf"), "test.hitrate@5 is inf"),
    "metric above 1": (["test", "recall@5"], 1.5, "test.recall@5 is 1.5"),
    "metric true": (["test", "recall@5"], True, "test.recall@5 is True"),
    "metric of 400 digits": (["test", "recall@5"], 10**400, "test.recall@5 is 1000"),
    "protocol a text": (["protocol"], "x", "protocol is not an object"),
    "masks a text": (["protocol", "masked_at_test"], "train", "protocol.masked_at_test is not a list"),
    "masks of other names": (["protocol", "masked_at_test"], ["all"], "protocol.masked_at_test[0] is 'all'"),
    "selected on nonsense": (["protocol", "selected_on"], {}, "protocol.selected_on is {}"),
    "hash a number": (["data", "interactions"], 7, "data.interactions is 7, not a text"),
    "features a text": (["data", "features"], "x", "data.features is not an object"),
    "seconds a text": (["seconds"], "long", "seconds is 'long', not a finite number"),
    "seconds of 400 digits": (["seconds"], 10**400, "seconds is 1000"),
    "memory a list": (["peak_memory_mb"], [1], "peak_memory_mb is [1]"),
    "device half a surrogate pair": (["device"], "\ud800", "device is '\\ud800', not a text"),
    "platform a list": (["versions", "platform"], [], "versions.platform is []"),
}
CONFIG = {
    "model a number": (["model"], 3, "model is 3, not a text"),
    "model null": (["model"], None, "model is None"),
    "seed a text": (["seed"], "x", "seed is 'x', not a whole number"),
    "dataset a list": (["dataset"], [], "dataset is []"),
    "lr of 400 digits": (["lr"], 10**400, "--lr: is too large"),
    "lr NaN": (["lr"], float("nan"), "--lr nan"),
    "topks nested": (["topks"], [[5]], "--topks [[5]]"),
    "name with an escape": (["name"], "\x1b[31mred", "--name '\\x1b[31mred': contains control characters"),
    "name half a surrogate pair": (["name"], "\ud800", "--name '\\ud800': contains control characters"),
    "name two lines": (["name"], "a\n| b |", "contains control characters"),
    "setting unknown": (["warp"], 9, "unknown settings (warp)"),
}
EVALUATIONS = {
    "epoch a text": ({"epoch": "x"}, "line 1: epoch is 'x', not a whole number"),
    "epoch negative": ({"epoch": -1}, "line 1: epoch is -1"),
    "metrics a list": ({"epoch": 1, "valid": []}, "line 1: valid is not an object"),
    "metric NaN": ({"epoch": 1, "valid": {"ndcg@5": float("nan")}}, "line 1: valid.ndcg@5 is nan"),
    "seconds a text": ({"epoch": 1, "epoch_seconds": "x"}, "line 1: epoch_seconds is 'x'"),
}


@pytest.mark.parametrize("case", RESULT)
def test_result(case, run_folder, capsys):
    keys, value, word = RESULT[case]
    put(run_folder / "result.json", keys, value)
    assert_refused(report_code(run_folder), capsys.readouterr().err, [f"{run_folder}/result.json: ", word])
    code = run_tool(table.command, table.make_parser(), [str(run_folder)])
    assert_refused(code, capsys.readouterr().err, ["result.json"])


@pytest.mark.parametrize("case", CONFIG)
def test_config(case, run_folder, capsys):
    keys, value, word = CONFIG[case]
    put(run_folder / "config.json", keys, value)
    assert_refused(report_code(run_folder), capsys.readouterr().err, [f"{run_folder}/config.json: ", word])


@pytest.mark.parametrize("case", EVALUATIONS)
def test_evaluations(case, run_folder, capsys):
    entry, word = EVALUATIONS[case]
    (run_folder / "metrics.jsonl").write_text(json.dumps(entry) + "\n")
    assert_refused(report_code(run_folder), capsys.readouterr().err, ["metrics.jsonl", word])


def test_a_row_without_the_settings_that_identify_it(run_folder, capsys):
    (run_folder / "config.json").write_text("{}")
    code = run_tool(table.command, table.make_parser(), [str(run_folder)])
    assert_refused(code, capsys.readouterr().err, ["not a finished run", "'model'"])


def places(content, above=()):
    """The keys of every entry of nested objects."""
    for key, value in content.items():
        yield (*above, key)
        yield from places(value, (*above, key)) if isinstance(value, dict) else ()


JUNK = st.sampled_from(
    [None, "x", [], {}, [1], {"a": 1}, -1, 1e308, float("nan"), True, "\ud800", 10**400, "=1", "\n"]
)


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(data=st.data())
def test_a_report_is_made_or_refused(trained, tmp_path_factory, data):
    """Never a traceback, whichever entry holds what."""
    folder = shutil.copytree(trained[1], tmp_path_factory.mktemp("junk") / "runs" / "run")
    path = folder / data.draw(st.sampled_from(["result.json", "config.json"]))
    keys = data.draw(st.sampled_from(list(places(json.loads(path.read_text("utf-8"))))))
    put(path, keys, data.draw(JUNK))
    assert report_code(folder) in (0, 2)


CASES = [*RESULT, *CONFIG, *EVALUATIONS]
