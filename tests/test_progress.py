"""Progress bars of the data tools: drawn on a terminal, absent from a redirected log."""

import io
import re
import sys
from pathlib import Path

import pytest

from data.progress import progress_bar

TOOLS = Path(__file__).resolve().parents[1] / "data"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_is_drawn_on_a_terminal_only(is_terminal, monkeypatch):
    class Stderr(io.StringIO):
        def isatty(self):
            return is_terminal

    log = Stderr()
    monkeypatch.setattr(sys, "stderr", log)
    assert list(progress_bar(range(3), desc="rows")) == [0, 1, 2]
    assert ("rows: 100%" in log.getvalue()) == is_terminal == ("\r" in log.getvalue())


def test_every_data_tool_uses_these_bars():
    """No tool draws a tqdm bar of its own, which would ignore where stderr goes."""
    calls = {path.name for path in TOOLS.glob("*.py") if re.search(r"\btqdm\(", path.read_text())}
    assert calls == {"progress.py"}
