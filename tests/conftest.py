"""Fixtures shared by the tests: a small random dataset, and the real Amazon Baby data where it is available.

Tests on real data are skipped unless RECGOAT_TEST_DATA names a folder that contains the dataset folder baby/:

    RECGOAT_TEST_DATA=FOLDER bash scripts/test.sh
"""

import os
from pathlib import Path

import pytest
import torch
from helpers import write_small_dataset


@pytest.fixture(autouse=True)
def same_threads():
    """Restore the number of threads that --threads changed: the last bits of later results depend on it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_dataset(tmp_path):
    """tmp_path/data/small: 40 users, 30 items, 6 train items per user, text [30, 12], image [30, 20]."""
    return write_small_dataset(tmp_path)


@pytest.fixture
def baby():
    """Folder of the real Baby data, $RECGOAT_TEST_DATA/baby; skips the test where there is none."""
    root = os.environ.get("RECGOAT_TEST_DATA")
    if not root:
        pytest.skip("set RECGOAT_TEST_DATA to a folder that contains baby/ to test on real data")
    folder = Path(root) / "baby"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set RECGOAT_TEST_DATA to a folder that contains baby/")
    return folder
