"""Fixtures shared by the tests of reports."""

from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Folder for run folders; run_report writes to "out" beside it."""
    return tmp_path / "runs"
