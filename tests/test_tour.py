"""docs/tour.ipynb: what is stored in it is what it gives."""

import io
from pathlib import Path

import pandas as pd
import pytest

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parents[1]
TOUR = ROOT / "docs" / "tour.ipynb"


def read_tour():
    return nbformat.read(TOUR, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def metrics(notebook):
    """The table of test metrics that a notebook shows: model by metric."""
    texts = (output["data"]["text/plain"] for cell in code_cells(notebook) for output in shown(cell))
    return pd.read_csv(io.StringIO(next(text for text in texts if "ndcg@20" in text)), sep=r"\s+")


def shown(cell):
    """The results and figures of a cell."""
    return [output for output in cell.outputs if output.output_type in ("execute_result", "display_data")]


def test_the_stored_notebook_was_executed_from_top_to_bottom():
    cells, text = code_cells(read_tour()), TOUR.read_text()
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds == {"stream", "execute_result", "display_data"}  # and no error
    assert '"stderr"' not in text and "/tmp" not in text and str(ROOT) not in text
    assert '"image/png"' in text and len(text) < 100_000
    assert (metrics(read_tour()).loc["RecGOAT"] > metrics(read_tour()).loc["LightGCN"]).all()


@pytest.mark.slow
def test_executing_the_notebook_gives_the_stored_metrics(monkeypatch, tmp_path):
    client = pytest.importorskip("nbclient")
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = read_tour()
    for cell in code_cells(notebook):
        cell.outputs = []
    resources = {"metadata": {"path": str(TOUR.parent)}}
    client.NotebookClient(notebook, timeout=300, resources=resources).execute()
    # On another machine, rounding may lead to other weights.
    pd.testing.assert_frame_equal(metrics(notebook), metrics(read_tour()), atol=0.01, rtol=0)
