"""scripts/term_grid.py: the metrics at a run's own weights are those it was selected with."""

import json

import pytest
from small_runs import command_line

from main import main
from scripts import term_grid

pytest.importorskip("matplotlib")


@pytest.fixture
def run(small_dataset, tmp_path):
    """A run with lambda 0.5 and alpha 0.2."""
    term = {"model": "lgn", "neighbour_weight": 0.5, "neighbour_content": 0.2, "topks": (5, 20)}
    assert main(command_line(small_dataset, tmp_path / "runs", epochs=2, **term)) == 0
    [folder] = (tmp_path / "runs").iterdir()
    return folder


def test_own_weights_give_the_metrics_of_the_run_and_others_give_others(run, tmp_path, capsys):
    capsys.readouterr()
    flags = ["--weights", "0.5", "50", "--contents", "0.2", "5", "--output", str(tmp_path / "grid.png")]
    assert term_grid.main([str(run), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = {name: i for i, line in enumerate(lines) for name in ("recall@20", "ndcg@20") if f" {name}," in line}
    valid = json.loads((run / "result.json").read_text())["valid"]
    for name, start in at.items():
        row = lines[start + 2].split()
        assert row[:2] == ["0.2", f"{valid[name]:.4f}"]
    rows = [lines[at["ndcg@20"] + 2 + i].split()[1:] for i in range(2)]
    assert len({value for row in rows for value in row}) > 1
    assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG"


def test_an_output_that_cannot_be_written_is_refused_first(tmp_path, capsys):
    assert term_grid.main([str(tmp_path / "no run"), "--output", str(tmp_path / "absent" / "a.png")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "absent/a.png: is a folder, or its folder does not exist" in line


def test_a_run_without_the_term_is_refused_in_one_line(small_dataset, tmp_path, capsys):
    assert main(command_line(small_dataset, tmp_path / "runs", epochs=1, model="lgn")) == 0
    [folder] = (tmp_path / "runs").iterdir()
    capsys.readouterr()
    assert term_grid.main([str(folder)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "--neighbour_weight" in line
