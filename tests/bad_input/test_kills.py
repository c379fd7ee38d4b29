"""Tools that are killed at their renames and fsyncs: nothing is lost, halved or left behind.

benchmarks/kills.py does this at every point of every tool; here are some points of those that take no time.
main.py and tune.py have tests of their own.
"""

import dataclasses

import pytest

from benchmarks.kill_cases import CASES, has, server
from benchmarks.kills import Kills

QUICK = ("recommend", "recommend-vectors", "report", "prepare", "synthetic", "reconstruct", "download")
QUICK += ("pictures",)
# Instead of three: all points of tools that write one file, for which the last ones matter most.
POINTS = {"recommend": 4, "download": 12}


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    work = tmp_path_factory.mktemp("kills")
    with server(work / "pictures") as url:
        yield Kills(work, url, with_model=False)


@pytest.mark.parametrize("name", QUICK)
def test_killed_and_run_again(name, kills):
    case = CASES[name]
    if not has(case.needs):
        pytest.skip(f"needs {', '.join(case.needs)}")
    if name == "report":  # figures take seconds
        case = dataclasses.replace(case, argv=[*case.argv, "--figures", "0"])
    before = kills.kills
    assert kills.kill(name, case, POINTS.get(name, 3)) == []
    assert kills.kills - before >= 3
