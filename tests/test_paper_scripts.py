"""The scripts of the paper's tables: the runs they start, and that interrupted ones can be started again."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tune
from parse import parse_args
from training.space import check_space
from world import recipe_settings

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = [
    "table1.sh",
    "table3.sh",
    "table5.sh",
    "figure3.sh",
    "figure4.sh",
    "released.sh",
    "neighbours.sh",
    "missing.sh",
    "fills.sh",
    "cold.sh",
]
TINY = (
    "--recdim 8 --attn_heads 2 --epochs 2 --eval_every 1 --item_knn_k 4 --bpr_batch 64 --topks 5 "
    "--valid_metric ndcg@5 --cuda 0"
)
# In place of python: appends the arguments of main.py to a file, tab-separated, and runs nothing.
RECORDER = """#!/usr/bin/env bash
case "$1" in report.py | -m | -c) exit 0 ;; esac
shift
(IFS=$'\\t'; echo "$*") >>"{calls}"
"""
# In place of python: runs what it is given on stdin, and writes a list in place of recommend.py.
TOY_MAKER = """#!/usr/bin/env bash
case "$1" in
    -) exec "{python}" - ;;
    recommend.py) printf 'user\\ttitle\\nc0000@example.org\\tgarden rake\\n' >toy_shop/recommendations.tsv ;;
esac
"""


@pytest.fixture
def environment(small_dataset, tmp_path):
    """Environment variables for runs of two epochs on a tiny dataset called baby."""
    shutil.copytree(small_dataset, small_dataset.parent / "baby")
    return {
        **os.environ,
        "SMALL": "1",
        "JOBS": "2",
        "DATA_ROOT": str(small_dataset.parent),
        "RUNS": str(tmp_path / "paper"),
        "REPORTS": str(tmp_path / "report"),
        "FLAGS": TINY,
    }


def start(script, environment):
    return subprocess.Popen(
        [str(ROOT / "scripts" / script), "baby"],
        env={"SEEDS": "1", **environment},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(script, environment):
    """(exit code, output) of a script."""
    process = start(script, environment)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def read_tables(environment):
    """The tables of the report that do not depend on times."""
    return [
        path.read_text()
        for name in ("results", "users", "items")
        for path in Path(environment["REPORTS"]).glob(f"*/baby_{name}.csv")
    ]


def record(script, environment, tmp_path, datasets=("baby",)):
    """(process, Config of every run) of a script whose runs are recorded and not made."""
    done, calls = record_calls(script, environment, tmp_path, datasets)
    return done, [parse_args(call)[0] for call in calls]


def record_calls(script, environment, tmp_path, datasets=("baby",)):
    """(process, words of every command line) of a script whose commands are recorded and not run."""
    calls, python, scripts = tmp_path / "calls", tmp_path / "python", tmp_path / "scripts"
    python.write_text(RECORDER.format(calls=calls))
    python.chmod(0o755)
    scripts.mkdir(exist_ok=True)
    for path in (ROOT / "scripts").glob("*.sh"):
        shutil.copy(path, scripts)
    (scripts / "setup.sh").write_text(f"cd {tmp_path}\nPYTHON={python}\n")
    calls.write_text("")
    (Path(environment["DATA_ROOT"]) / "baby" / "baby.inter").touch()  # cold.sh makes its split of this file
    done = subprocess.run(
        [str(scripts / script), *datasets],
        env={"SEEDS": "1 2", **environment, "FLAGS": "", "STEP": "50"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, [line.split("\t") for line in calls.read_text().splitlines()]


@pytest.mark.parametrize("folder", ["baby", "baby_raw"])
def test_cold_items_need_a_table_of_interactions(folder, environment):
    """Which the command in the message makes."""
    root = Path(environment["DATA_ROOT"])
    (root / "baby").rename(root / folder)
    code, output = run("cold.sh", environment)
    remedy = f"python -m data.prepare {folder} --data_root {root} --convert inter"
    assert code == 2 and f"{root}/{folder}/baby.inter: is missing; make it: {remedy}" in output
    subprocess.run([sys.executable, *remedy.split()[1:]], cwd=ROOT, check=True)
    assert (root / folder / "baby.inter").exists()


def test_splits_of_two_shares_of_cold_items_do_not_mix(environment, tmp_path):
    environment["ONLY"] = "LightGCN"
    paths = []
    for share, dataset in (("0.2", "baby_cold"), ("0.1", "baby_cold_0.1")):
        _, configs = record("cold.sh", {**environment, "COLD": share}, tmp_path)
        assert {config.dataset for config in configs} == {dataset}
        paths += [config.path for config in configs]
    assert len(set(paths)) == len(paths) == 4


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_settings_of_every_run_are_valid_and_no_two_runs_are_the_same(script, environment, tmp_path):
    done, configs = record(script, environment, tmp_path)
    # The recorder has trained nothing, which the script notices.
    assert done.returncode == 1 and "not finished" in done.stdout
    assert {config.seed for config in configs} == {1, 2}
    assert len({config.path for config in configs}) == len(configs)
    if script == "released.sh":
        check_recipes([config for config in configs if config.name in ("Paper", "Released")])
    settings = {
        tuple((key, str(value)) for key, value in config.as_dict().items() if key not in ("name", "path"))
        for config in configs
    }
    assert len(settings) == len(configs)


@pytest.mark.parametrize("name", ["RUNS", "DATA_ROOT", "TEXT", "IMAGE", "AUDIO"])
@pytest.mark.parametrize("script", ["table1.sh", "confirm.sh"])
def test_paths_with_white_space_are_refused(script, name, environment, tmp_path):
    """The flags of a run are split into words."""
    folder = tmp_path / "my files"
    shutil.copytree(environment["DATA_ROOT"], folder)
    environment[name] = str(folder)
    done, calls = record_calls(script, environment, tmp_path)
    assert done.returncode == 2 and not calls
    assert f"{name}='{folder}': contains white space" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("datasets", [("lastfm", "baby"), ("baby", "lastfm")])
def test_the_size_and_the_seeds_of_a_dataset_do_not_follow_from_those_before_it(
    datasets, environment, tmp_path
):
    environment.update(ONLY="MF", SMALL="0", SEEDS="")
    _, configs = record("table1.sh", environment, tmp_path, datasets)
    runs = [(config.dataset, config.recdim, Path(config.path).parts[-3]) for config in configs]
    assert sorted(runs) == [("baby", 800, "baby_full")] * 10 + [("lastfm", 64, "lastfm_small")] * 3


def test_the_studies_of_the_search_are_valid_and_of_one_size(environment, tmp_path):
    done, calls = record_calls("search.sh", environment, tmp_path)
    assert done.returncode == 0
    requests = [tune.parse(call) for call in calls]
    assert len({request.args.storage for request in requests}) == len(requests) == 10
    for request in requests:
        check_space(request.space, request.base, request.given)
        assert (request.args.trials, request.args.warm_up, request.base.seed) == (30, 6, 2025)
        tuned = {"itemknn_k"} if request.base.model == "itemknn" else {"lr", "decay"}
        assert tuned <= set(request.space)


@pytest.mark.slow
def test_a_search_makes_its_trials(environment):
    environment.update(ONLY="RecGOAT", TRIALS="2", FLAGS=TINY.replace("--item_knn_k 4", ""))
    code, output = run("search.sh", environment)
    assert code == 0, output
    assert len(list(Path(environment["RUNS"]).glob("search/baby_*/*/result.json"))) == 2


def write_best_trial(environment):
    """A trial of a study that never ran, as tune.py leaves it."""
    search = Path(environment["RUNS"]) / "search"
    search.mkdir(parents=True)
    (search / "baby_mf.best.sh").write_text(
        '#!/usr/bin/env bash\n# Trial 3 of study baby_mf.\npython main.py --model mf --lr 0.02 "$@"\n'
    )


def test_the_best_trial_of_a_study_is_trained_with_every_seed(environment, tmp_path):
    environment["ONLY"] = "MF"
    done, _ = record_calls("confirm.sh", environment, tmp_path)
    assert done.returncode == 2 and "baby_mf.best.sh: not found; scripts/search.sh makes it" in done.stderr
    write_best_trial(environment)
    done, configs = record("confirm.sh", environment, tmp_path)
    assert done.returncode == 1 and "MF trial, seed 2: not finished" in done.stdout
    assert sorted((config.name, config.seed, config.lr) for config in configs) == [
        ("MF", 1, 5e-3),
        ("MF", 2, 5e-3),
        ("MF trial", 1, 0.02),
        ("MF trial", 2, 0.02),
    ]


@pytest.mark.slow
def test_the_best_trial_is_compared_on_validation(environment):
    write_best_trial(environment)
    environment["ONLY"] = "MF"
    code, output = run("confirm.sh", environment)
    assert code == 0, output
    title, _, *lines = output.splitlines()[-4:]
    assert title.startswith("Validation results on baby")
    assert {tuple(line.split()[:2]) for line in lines} == {("MF", "1"), ("MF", "trial")}


def check_recipes(configs):
    """Assert that these rows have their recipe, the flags of the published command, and nothing else."""
    published = {"model", "fusion", "item_branch_layers", "lr", "contrastive_weight", "bpr_batch", "recipe"}
    for config in configs:
        allowed = {*published, *recipe_settings(config.recipe, {})}
        assert config.recipe == config.name.lower() and set(config.non_defaults()) <= allowed
        assert all(
            getattr(config, name) == value
            for name, value in recipe_settings(config.recipe, {}).items()
            if name != "topks"
        )
    assert {config.name for config in configs} == {"Paper", "Released"}


def test_a_script_that_was_killed_as_it_began_to_write_its_flags(environment, tmp_path):
    """An empty file says nothing; another row's flags are those of other settings."""
    _, configs = record("table1.sh", environment, tmp_path)
    folders = [Path(config.path) for config in configs if config.seed == 1]
    (folders[0] / "flags").write_text("")
    (folders[1] / "flags").write_text("--other flags\n")
    done, again = record("table1.sh", environment, tmp_path)
    assert len(again) == len(configs) - 1 and "was made with other settings" in done.stderr
    assert folders[1] not in [Path(config.path) for config in again]


def finish(configs):
    """Make the folders of these runs those of finished ones."""
    for config in configs:
        (Path(config.path) / "attempt").mkdir()
        (Path(config.path) / "attempt" / "result.json").write_text('{"status": "finished"}')


def test_a_finished_run_with_other_settings_is_not_reported(environment, tmp_path):
    environment["ONLY"] = "MF"
    _, configs = record("table1.sh", environment, tmp_path)
    finish(configs)
    done, again = record("table1.sh", environment, tmp_path)
    assert done.returncode == 0 and not again and not done.stderr
    (Path(configs[0].path) / "flags").write_text("--other flags\n")
    done, again = record("table1.sh", environment, tmp_path)
    assert done.returncode == 1 and not again and "not finished" not in done.stdout
    assert f"MF/seed_{configs[0].seed}: was made with other settings" in done.stderr
    assert "table1_baby_small: not made" in done.stderr


@pytest.mark.parametrize("script", ["table1.sh", "confirm.sh"])
def test_a_dataset_with_an_unfinished_run_does_not_take_the_table_of_the_next(script, environment, tmp_path):
    environment["ONLY"] = "MF"
    write_best_trial(environment)
    best = Path(environment["RUNS"]) / "search" / "baby_mf.best.sh"
    shutil.copy(best, best.with_name("sports_mf.best.sh"))
    _, configs = record(script, environment, tmp_path, ["sports"])
    finish(configs)
    commands = tmp_path / "commands"
    (tmp_path / "python").write_text(f'#!/usr/bin/env bash\necho "$*" >>"{commands}"\n')
    done = subprocess.run(
        [str(tmp_path / "scripts" / script), "baby", "sports"],
        env={"SEEDS": "1 2", **environment, "FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    tables = [line for line in commands.read_text().splitlines() if not line.startswith("main.py")]
    assert done.returncode == 1 and len(tables) == 1
    assert "sports_small/MF" in tables[0] and "baby" not in tables[0]


def last_fm(tmp_path, environment):
    """Environment variables for lastfm.sh with two runs of two epochs on the tiny dataset."""
    source = tmp_path / "source"
    shutil.copytree(Path(environment["DATA_ROOT"]) / "small", source)
    (source / "text_feat.npy").rename(source / "audio_feat_vggish.npy")
    return {**environment, "SOURCE": str(source), "ONLY": "lightgcn text_audio"}


def test_an_attempt_at_last_fm_that_did_not_finish_is_resumed_and_a_failure_is_named(environment, tmp_path):
    environment = last_fm(tmp_path, environment)
    done, configs = record("lastfm.sh", environment, tmp_path, ())
    assert done.returncode == 1 and "text_audio, seed 2: not finished" in done.stdout
    names = [(config.name, config.seed) for config in configs]
    assert sorted(names) == [("lightgcn", 1), ("lightgcn", 2), ("text_audio", 1), ("text_audio", 2)]
    finish(configs)
    attempt = Path(configs[0].path) / "attempt"
    (attempt / "result.json").write_text('{"status": "interrupted"}')
    (attempt / "config.json").write_text("{}")
    done, calls = record_calls("lastfm.sh", environment, tmp_path, ())
    assert done.returncode == 1 and [call[call.index("--resume") + 1] for call in calls] == [str(attempt)]


def test_the_features_of_last_fm_are_asked_for_every_time_and_are_of_one_source(environment, tmp_path):
    environment = {**last_fm(tmp_path, environment), "MODEL": "first"}
    record("lastfm.sh", environment, tmp_path, ())
    commands, train = tmp_path / "commands", tmp_path / "data" / "lastfm" / "train.txt"
    (tmp_path / "python").write_text(f'#!/usr/bin/env bash\necho "$1 $2 $3" >>"{commands}"\n')
    for name in ("text_feat.npy", "user_text_feat.npy", "audio_feat.npy"):
        train.with_name(name).touch()
    before = train.read_bytes()

    def again(**changes):
        commands.write_text("")
        done = subprocess.run(
            [str(tmp_path / "scripts" / "lastfm.sh")],
            env={**environment, "SEEDS": "1", "FLAGS": "", **changes},
            capture_output=True,
            text=True,
            check=False,
        )
        return done, [line for line in commands.read_text().splitlines() if not line.startswith("main.py")]

    _, asked = again()
    assert "-m data.features text" in asked and "-m data.features users" in asked
    shutil.copytree(environment["SOURCE"], tmp_path / "other")
    (tmp_path / "other" / "train.txt").write_text("0 1\n")
    for changes in ({"SOURCE": str(tmp_path / "other")}, {"MODEL": "second"}):
        done, asked = again(**changes)
        assert done.returncode == 2 and not asked and train.read_bytes() == before
        assert done.stderr.startswith(
            f"data/lastfm: was made from SOURCE={environment['SOURCE']} MODEL=first"
        )
        assert "move it" in done.stderr and done.stderr.count("\n") == 1
    train.with_name("made_from").unlink()
    done, _ = again()
    assert done.returncode == 2 and "was made from unknown files" in done.stderr


def test_the_table_of_last_fm_is_of_finished_runs(environment, tmp_path):
    environment = last_fm(tmp_path, environment)
    _, configs = record("lastfm.sh", environment, tmp_path, ())
    finish(configs)
    # Killed before it had a result.
    (Path(configs[0].path) / "aborted").mkdir()
    done, calls = record_calls("lastfm.sh", environment, tmp_path, ())
    assert done.returncode == 0, done.stderr
    assert [sorted(call) for call in calls] == [
        ["--mean", *sorted(f"{config.path}/attempt" for config in configs)]
    ]


def test_the_toy_shop_leaves_other_data_alone_and_is_made_anew_where_it_was_not_completed(tmp_path):
    python, scripts = tmp_path / "python", tmp_path / "scripts"
    python.write_text(TOY_MAKER.format(python=sys.executable))
    python.chmod(0o755)
    scripts.mkdir()
    shutil.copy(ROOT / "scripts" / "own_data.sh", scripts)
    (scripts / "setup.sh").write_text(f"cd {tmp_path}\nPYTHON={python}\n")
    (tmp_path / "data" / "shop").mkdir(parents=True)
    # A script that was killed as it made the toy.
    (tmp_path / "toy_shop.tmp" / "pictures").mkdir(parents=True)
    done = subprocess.run(
        [str(scripts / "own_data.sh")], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "of 1 recommended items" in done.stdout
    assert len(list((tmp_path / "toy_shop" / "pictures").iterdir())) == 120
    assert (tmp_path / "data" / "shop").exists() and not (tmp_path / "toy_shop.tmp").exists()


@pytest.mark.slow
def test_a_killed_script_ends_with_the_same_tables_when_it_is_started_again(environment, tmp_path):
    environment["ONLY"] = "MF,RecGOAT"
    code, output = run("table1.sh", environment)
    assert code == 0, output
    expected = read_tables(environment)
    assert len(expected) == 3 and "RecGOAT" in expected[0]
    environment.update(RUNS=str(tmp_path / "again"), REPORTS=str(tmp_path / "report_again"))
    # Killed during the first runs, and when one has finished.
    for finished in (0, 1):
        process, deadline = start("table1.sh", environment), time.monotonic() + 120
        results = Path(environment["RUNS"])
        while len(list(results.glob("*/*/*/*/result.json"))) < finished and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    code, output = run("table1.sh", environment)
    assert code == 0, output
    assert read_tables(environment) == expected
    # Finished runs were not started again.
    assert len([line for line in output.splitlines() if "seed_1" in line]) < 2


@pytest.mark.parametrize("script", ["table1.sh", "search.sh"])
def test_a_row_that_does_not_exist_is_named(environment, tmp_path, script):
    environment["ONLY"] = "MF, RecGoat"
    done, configs = record(script, environment, tmp_path)
    assert done.returncode == 2 and not configs
    assert len(done.stderr.splitlines()) == 1 and "there is no row 'RecGoat'; choose from: " in done.stderr


@pytest.mark.slow
def test_a_run_with_a_preset_is_resumed(environment):
    environment |= {"FLAGS": f"{TINY} --epochs 40 --patience 0", "ONLY": "RecGOAT"}
    process, deadline = start("table1.sh", environment), time.monotonic() + 120
    while not list(Path(environment["RUNS"]).glob("*/*/*/*/last.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    code, output = run("table1.sh", environment)
    assert code == 0 and "RecGOAT/seed_1 (resumed)" in output, output


@pytest.mark.slow
def test_a_failed_run_is_named_and_other_settings_are_refused(environment):
    # FREEDOM and RecGOAT fail: there are only 30 items.
    environment.update(FLAGS=f"{environment['FLAGS']} --item_knn_k 30", ONLY="MF,FREEDOM,RecGOAT")
    code, output = run("table1.sh", environment)
    assert code != 0 and "RecGOAT, seed 1: not finished" in output
    assert "MF, seed 1: not finished" not in output
    environment["FLAGS"] += " --lr 0.5"
    assert "MF/seed_1: was made with other settings" in run("table1.sh", environment)[1]
