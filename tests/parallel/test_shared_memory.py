"""Features of which the processes of a machine hold one copy: the pages are shared, and the values equal."""

import os
import re
from pathlib import Path

import torch
from helpers import random_features
from parallel_helpers import in_processes

from layers.agreement import from_all
from layers.columns import rank
from layers.kernels import column_major
from layers.shared_memory import one_copy

ROWS, COLUMNS = 5000, 400  # 8 MB


def shared_sizes():
    """Resident and proportional size of this process's mappings from one_copy, kB."""
    mappings = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    mine = [text for text in mappings if "memfd:recgoat" in text]
    return [
        sum(int(re.search(rf"^{name}: +(\d+)", text, re.M)[1]) for text in mine) for name in ("Rss", "Pss")
    ]


def arranged():
    features = torch.from_numpy(random_features(ROWS, COLUMNS))
    columns = column_major(features)
    equal = torch.equal(columns, features)
    from_all(None)  # all have read all pages
    sizes = shared_sizes()
    from_all(None)
    return equal, columns.stride(), sizes


def test_processes_share_the_pages_of_column_major_features():
    for equal, stride, (resident, proportional) in in_processes(2, arranged):
        assert equal and stride == (1, 5008)
        assert resident >= ROWS * COLUMNS * 4 / 1024
        assert proportional < 0.6 * resident


def copy_of_own_machine():
    os.environ["GROUP_RANK"] = str(rank() // 2)
    return one_copy((3,), torch.int64, lambda x: x.fill_(rank()))


def test_the_first_process_of_each_machine_sets_the_values():
    found = [tensor.tolist() for tensor in in_processes(4, copy_of_own_machine)]
    assert found == [[0] * 3, [0] * 3, [2] * 3, [2] * 3]


def test_one_process_has_a_tensor_of_its_own():
    tensor = one_copy((2, 3), torch.float64, lambda x: x.fill_(7))
    assert tensor.dtype == torch.float64 and tensor.tolist() == [[7] * 3] * 2
    assert shared_sizes() == [0, 0]
