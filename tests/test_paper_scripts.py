"""The scripts of the paper's tables: what they run, and that a killed one goes on to the same table."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLES = ["table1.sh", "table3.sh", "table5.sh", "figure3.sh", "figure4.sh", "released.sh"]


@pytest.fixture
def environment(small_dataset, tmp_path):
    """Variables under which the scripts make runs of two epochs on a tiny dataset called baby."""
    shutil.copytree(small_dataset, small_dataset.parent / "baby")
    return {
        **os.environ,
        "SMALL": "1",
        "SEEDS": "1",
        "JOBS": "2",
        "DATA_ROOT": str(small_dataset.parent),
        "RUNS": str(tmp_path / "paper"),
        "REPORTS": str(tmp_path / "report"),
        "FLAGS": "--recdim 8 --attn_heads 2 --epochs 2 --eval_every 1 --item_knn_k 4 --bpr_batch 64 --topks 5 --valid_metric ndcg@5 --cuda 0",
    }


def start(script, environment):
    return subprocess.Popen(
        ["bash", str(ROOT / "scripts" / script), "baby"],
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def table(environment):
    """The tables of the report that do not depend on the clock."""
    return [
        path.read_text()
        for name in ("results", "users", "items")
        for path in Path(environment["REPORTS"]).glob(f"*/baby_{name}.csv")
    ]


@pytest.mark.parametrize("script", TABLES)
def test_every_run_of_a_script_has_settings_that_the_program_takes(script, environment, tmp_path):
    """With a python that only parses: names, seeds and flags of all runs, and no two runs of one folder."""
    fake = tmp_path / "python"
    fake.write_text(f"""#!/bin/bash
[ "$1" = report.py ] && exit 0
cd {ROOT}
{shutil.which("python3")} - "$@" <<'END'
import sys
with open("{tmp_path}/calls", "a") as file:
    print(*sys.argv[2:], sep="\\t", file=file)
END
""")
    fake.chmod(0o755)
    (tmp_path / "scripts").mkdir()
    for path in (ROOT / "scripts").glob("*.sh"):
        (tmp_path / "scripts" / path.name).write_text(path.read_text())
    (tmp_path / "scripts" / "setup.sh").write_text(f"cd {tmp_path}\nPYTHON={fake}\n")
    done = subprocess.run(
        ["bash", str(tmp_path / "scripts" / script), "baby"],
        env={**environment, "FLAGS": "", "SEEDS": "1 2", "STEP": "50"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "not finished" in done.stdout  # nothing ran, and it says so
    from parse import parse_args

    configs = [parse_args(line.split("\t"))[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert {config.seed for config in configs} == {1, 2} and len({config.path for config in configs}) == len(
        configs
    )
    settings = [
        tuple((key, value) for key, value in config.as_dict().items() if key not in ("name", "path"))
        for config in configs
    ]
    assert len({json.dumps(each) for each in settings}) == len(
        settings
    )  # no two rows are the same experiment


@pytest.mark.slow
def test_a_killed_table_script_goes_on_to_the_same_table(environment, tmp_path):
    whole = start("table1.sh", environment)
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output
    expected = table(environment)
    assert len(expected) == 3 and "RecGOAT" in expected[0]
    environment.update(RUNS=str(tmp_path / "again"), REPORTS=str(tmp_path / "report_again"))
    for at in (0, 2):  # at the first run, and when two have finished
        killed = start("table1.sh", environment)
        deadline = time.monotonic() + 120
        while (
            len(list(Path(environment["RUNS"]).glob("*/*/*/*/result.json"))) < at
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        time.sleep(1)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
    last = start("table1.sh", environment)
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output
    assert table(environment) == expected
    names = [line.split("/")[-2] for line in output.splitlines() if "seed_1" in line]
    assert len(names) < 5  # what had finished was not made again


@pytest.mark.slow
def test_a_failed_run_is_named_and_other_settings_are_refused(environment, tmp_path):
    environment["FLAGS"] += " --item_knn_k 30"  # as many as there are items
    done = start("table1.sh", environment)
    output, _ = done.communicate(timeout=300)
    assert (
        done.returncode != 0
        and "RecGOAT, seed 1: not finished" in output
        and "MF, seed 1: not finished" not in output
    )
    environment["FLAGS"] += " --lr 0.5"
    output, _ = start("table1.sh", environment).communicate(timeout=300)
    assert "MF/seed_1: was made with other settings" in output
