"""Tools that are killed at their renames and fsyncs: nothing is lost, halved or left behind.

benchmarks/kills.py does this at every point of every tool; here are a few points of some of them. main.py and
tune.py have tests of their own.
"""

import dataclasses

import pytest

from benchmarks.kill_cases import CASES, has, server
from benchmarks.kills import Kills


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    work = tmp_path_factory.mktemp("kills")
    with server(work / "pictures") as url:
        yield Kills(work, url, with_model=False)


@pytest.mark.parametrize(
    "name, count", [("recommend", 3), ("report", 3), ("prepare", 2), ("download", 4), ("features-colours", 3)]
)
def test_killed_and_run_again(name, count, kills):
    case = CASES[name]
    if not has(case.needs):
        pytest.skip(f"needs {', '.join(case.needs)}")
    if name == "report":  # figures take seconds
        case = dataclasses.replace(case, argv=[*case.argv, "--figures", "0"])
    before = kills.kills
    assert kills.kill(name, case, count) == []
    assert kills.kills - before == count
