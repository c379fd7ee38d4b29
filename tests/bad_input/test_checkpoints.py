"""Damaged and malicious checkpoints and run folders: exit code 2 and one line; code in a file never runs."""

import io
import json
import pickle
import shutil
import zipfile

import pytest
import torch
from broken import Trap, assert_refused, remove_file, replace_by_folder

from main import main


@pytest.fixture
def run_folder(trained, tmp_path):
    """A copy of the trained run, to be damaged."""
    return shutil.copytree(trained[1], tmp_path / "run")


# ---------------------------------------------------------------- how to damage a run folder
# Each of these functions returns a function of the run folder that damages both last.pt and best.pt.


def each_checkpoint(damage):
    """Call damage(path) for both checkpoints."""

    def break_run(folder):
        for name in ("last.pt", "best.pt"):
            damage(folder / name)

    return break_run


def change_state(change):
    """Load each checkpoint, call change(state), save it again."""

    def damage(path):
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return each_checkpoint(damage)


def put(*keys, value):
    """Replace the value at state[key][key]..."""

    def change(state):
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change_state(change)


def delete(*keys):
    """Delete state[key][key]..."""

    def change(state):
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change_state(change)


def write_bytes(data):
    return each_checkpoint(lambda path: path.write_bytes(data))


def save_value(value):
    return each_checkpoint(lambda path: torch.save(value, path))


def cut_in_half():
    return each_checkpoint(lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]))


def save_in_legacy_format():
    def damage(path):
        state = torch.load(path, weights_only=True)
        torch.save(state, path, _use_new_zipfile_serialization=False)

    return each_checkpoint(damage)


def save_compressed_zeros():
    """Replace each checkpoint by an archive that unpacks to much more than its size."""

    def damage(path):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({}))
            archive.writestr("archive/data/0", bytes(10**7))

    return each_checkpoint(damage)


# ---------------------------------------------------------------- files that are no valid checkpoint


WEIGHT = "user"
# One element in memory with the shape of a terabyte.
WIDE = torch.zeros(1).expand(10**6, 10**6)

DAMAGED = ["is damaged", "name another"]
NOT_A_CHECKPOINT = ["is not a checkpoint of this program"]
FILES = {
    "empty": (write_bytes(b""), DAMAGED),
    "text": (write_bytes(b"no checkpoint\n"), DAMAGED),
    "cut off": (cut_in_half(), DAMAGED),
    "a zip of something else": (write_bytes(b"PK\x05\x06" + bytes(18)), DAMAGED),
    "a pickle": (write_bytes(pickle.dumps({"format": 1})), DAMAGED),
    "the old format of torch": (save_in_legacy_format(), DAMAGED),
    "unpacks to more than it holds": (save_compressed_zeros(), ["is damaged", "unpacks to more"]),
    "a list": (save_value([1, 2]), NOT_A_CHECKPOINT),
    "a tensor": (save_value(torch.zeros(3)), NOT_A_CHECKPOINT),
    "an empty dict": (save_value({}), NOT_A_CHECKPOINT),
    "bare weights": (save_value({WEIGHT: torch.zeros(3)}), NOT_A_CHECKPOINT),
    "another format number": (put("format", value=1), ["format 1", "train again"]),
    "format true": (put("format", value=True), NOT_A_CHECKPOINT),
    "model missing": (delete("model"), NOT_A_CHECKPOINT),
    "model a list": (put("model", value=[1]), NOT_A_CHECKPOINT),
    "weight a string": (put("model", value={WEIGHT: "heavy"}), NOT_A_CHECKPOINT),
    "weight complex": (put("model", value={WEIGHT: torch.zeros(3, dtype=torch.complex64)}), NOT_A_CHECKPOINT),
    "weight larger than its memory": (put("model", value={WEIGHT: WIDE}), NOT_A_CHECKPOINT),
    "weight sparse": (put("model", value={WEIGHT: torch.eye(3).to_sparse()}), NOT_A_CHECKPOINT),
    "weight NaN": (put("model", value={WEIGHT: torch.full((3,), torch.nan)}), ["NaN or Inf"]),
    "progress missing": (delete("progress"), NOT_A_CHECKPOINT),
    "progress a list": (put("progress", value=[3]), NOT_A_CHECKPOINT),
    "epoch a string": (put("progress", "epoch", value="2"), NOT_A_CHECKPOINT),
    "epoch missing": (delete("progress", "epoch"), NOT_A_CHECKPOINT),
    "epoch negative": (put("progress", "epoch", value=-1), NOT_A_CHECKPOINT),
    "step a float": (put("progress", "step", value=0.5), NOT_A_CHECKPOINT),
    "data a number": (put("data", value=5), NOT_A_CHECKPOINT),
    "sampler a string": (put("sampler", value="x"), NOT_A_CHECKPOINT),
    "config a list": (put("config", value=[]), NOT_A_CHECKPOINT),
}


@pytest.mark.parametrize("case", FILES)
def test_file(case, run_folder, capsys):
    break_run, words = FILES[case]
    break_run(run_folder)
    code = main(["--evaluate_only", "1", "--checkpoint", str(run_folder / "best.pt")])
    assert_refused(code, capsys.readouterr().err, ["best.pt", *words])


# ---------------------------------------------------------------- valid checkpoints that cannot be scored


SCORED = {
    "weights of another shape": (
        put("model", WEIGHT, value=torch.zeros(3, 3)),
        ["best.pt: does not fit this dataset"],
    ),
    "a weight missing": (delete("model", WEIGHT), ["best.pt: does not fit this dataset"]),
    "an unknown setting": (put("config", "warp", value=9), ["best.pt: has unknown settings (warp)"]),
    "a setting of a wrong type": (put("config", "recdim", value="8"), ["--recdim 8: must be of type int"]),
    "a setting that is no choice": (put("config", "model", value="svd"), ["--model svd", "lgn_mm"]),
}


@pytest.mark.parametrize("case", SCORED)
def test_scored(case, run_folder, capsys):
    break_run, words = SCORED[case]
    break_run(run_folder)
    code = main(["--evaluate_only", "1", "--checkpoint", str(run_folder / "best.pt")])
    assert_refused(code, capsys.readouterr().err, words)


# ---------------------------------------------------------------- valid checkpoints that cannot be resumed


FIT = "its checkpoint does not fit"
RESUMED = {
    "unknown progress": (put("progress", "luck", value=1), [FIT, "luck"]),
    "best missing": (put("progress", "best", value=None), [FIT, "progress"]),
    "best without metrics": (delete("progress", "best", "metrics"), [FIT]),
    "best of text": (put("progress", "best", "metrics", value={"ndcg@5": "high"}), [FIT]),
    "latest without the metric": (put("progress", "latest", value={}), [FIT]),
    "latest a number": (put("progress", "latest", value=3), [FIT]),
    "waited a string": (put("progress", "waited", value="long"), [FIT]),
    "seconds a string": (put("progress", "seconds", value="long"), [FIT]),
    "step beyond the epoch": (put("progress", "step", value=4), [FIT, "progress"]),
    "sums a list": (put("progress", "sums", value=[1]), [FIT]),
    "sums of vectors": (put("progress", "sums", value={"loss": torch.ones(2)}), [FIT]),
    "optimiser empty": (put("optimizer", value={}), [FIT]),
    "optimiser of another rate": (
        put("optimizer", "param_groups", 0, "lr", value="fast"),
        [FIT, "optimiser"],
    ),
    "moments of another shape": (
        put("optimizer", "state", 0, "exp_avg", value=torch.zeros(2)),
        [FIT, "optimiser"],
    ),
    "moments missing": (delete("optimizer", "state", 0, "exp_avg_sq"), [FIT, "optimiser"]),
    "sampler of another size": (put("sampler", value=torch.zeros(5, dtype=torch.uint8)), [FIT]),
    "random empty": (put("random", value={}), [FIT]),
    "random of nonsense": (put("random", "python", value=[3, ["a"], None]), [FIT]),
    "numpy of nonsense": (put("random", "numpy", value=["MT19937", [-1], 0, 0, 0.0]), [FIT]),
    "weights of another shape": (put("model", WEIGHT, value=torch.zeros(3, 3)), [FIT]),
    "other data": (put("data", value="0" * 64), ["the data have changed"]),
    "best.pt lost": (remove_file("best.pt"), ["best.pt: cannot be read", "remove", "last.pt"]),
    "best.pt damaged": (
        lambda folder: (folder / "best.pt").write_bytes(b"PK"),
        ["best.pt: is damaged", "remove", "last.pt"],
    ),
}


@pytest.mark.parametrize("case", RESUMED)
def test_resumed(case, run_folder, capsys):
    break_run, words = RESUMED[case]
    break_run(run_folder)
    before = sorted(path.name for path in run_folder.iterdir())
    assert_refused(main(["--resume", str(run_folder)]), capsys.readouterr().err, words)
    assert {path.name for path in run_folder.iterdir()} - {".lock"} == {*before} - {".lock"}


# ---------------------------------------------------------------- config.json


def change_settings(**change):
    """Return a function that changes settings in the config.json of a run folder."""

    def break_run(folder):
        stored = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**stored, **change}))

    return break_run


def write_config(data):
    return lambda folder: (folder / "config.json").write_bytes(data)


CONFIG = {
    "missing": (remove_file("config.json"), ["config.json: cannot be read", "--resume takes a run folder"]),
    "empty": (write_config(b""), ["config.json: is not JSON"]),
    "not JSON": (write_config(b"{'lr': 1}"), ["config.json: is not JSON"]),
    "not text": (write_config(b"\xff\xfe\x00\x01"), ["config.json: is not JSON"]),
    "too large": (write_config(b"[" + b"1," * 10**6 + b"1]"), ["config.json: is not JSON (over 1 MB)"]),
    "deeply nested": (write_config(b"[" * 10**5 + b"]" * 10**5), ["config.json: is not JSON"]),
    "a list": (write_config(b"[1, 2]"), ["config.json: is not a JSON object"]),
    "an unknown setting": (change_settings(warp=9), ["unknown settings (warp)"]),
    "lr a string": (change_settings(lr="0.1"), ["--lr 0.1: must be of type float"]),
    "lr a list": (change_settings(lr=[0.1]), ["--lr", "must be of type float"]),
    "lr infinite": (write_config(b'{"lr": 1e999}'), ["--lr inf", "finite"]),
    "lr of 400 digits": (write_config(b'{"lr": 1' + b"0" * 400 + b"}"), ["--lr", "too large"]),
    "recdim true": (change_settings(recdim=True), ["--recdim True: must be of type int"]),
    "recdim huge": (change_settings(recdim=10**30), ["--recdim", "too large"]),
    "topks a number": (change_settings(topks=10), ["--topks 10: must be of type tuple"]),
    "topks of strings": (change_settings(topks=["10"]), ["--topks ['10']", "whole numbers"]),
    "dataset that leaves the root": (
        change_settings(dataset="../small"),
        ["--dataset ../small", "--data_root"],
    ),
    "path with a zero byte": (change_settings(cache_dir="a\0b"), ["--cache_dir", "control characters"]),
    "half a surrogate pair": (change_settings(cache_dir="\ud800"), ["--cache_dir", "UTF-8"]),
    "a folder": (replace_by_folder("config.json"), ["config.json: cannot be read"]),
}


@pytest.mark.parametrize("case", CONFIG)
def test_config(case, run_folder, capsys):
    break_run, words = CONFIG[case]
    break_run(run_folder)
    assert_refused(main(["--resume", str(run_folder)]), capsys.readouterr().err, words)


def test_the_config_of_a_resumed_run_cannot_make_it_score_another_checkpoint(run_folder, capsys):
    change_settings(evaluate_only=1, checkpoint="elsewhere.pt")(run_folder)
    assert main(["--resume", str(run_folder)]) == 0
    assert "elsewhere" not in capsys.readouterr().out


# ---------------------------------------------------------------- code in a checkpoint


PAYLOADS = {
    "whole": save_value,
    "entry": lambda trap: put("data", value=trap),
    "plain pickle": lambda trap: write_bytes(pickle.dumps(trap)),
}


@pytest.mark.parametrize("argv", [["--evaluate_only", "1", "--checkpoint", "{}/best.pt"], ["--resume", "{}"]])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_pickle_payload_does_not_run(payload, argv, run_folder, capsys, tmp_path):
    marker = tmp_path / "marker"
    PAYLOADS[payload](Trap(marker))(run_folder)
    code = main([word.format(run_folder) for word in argv])
    assert not marker.exists()
    captured = capsys.readouterr()
    if argv[0] == "--resume":
        # Without a valid checkpoint the run starts again and says so.
        assert code == 0 and captured.out.count("is damaged") == 2
        assert "resumed after epoch 0" in captured.out
    else:
        assert_refused(code, captured.err, ["best.pt: is damaged"])


def test_the_payload_runs_where_pickles_are_allowed(tmp_path):
    buffer = io.BytesIO()
    torch.save(Trap(tmp_path / "marker"), buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=False)
    assert (tmp_path / "marker").exists()


CASES = {
    **FILES,
    **{f"scored: {name}": 0 for name in SCORED},
    **{f"resumed: {name}": 0 for name in RESUMED},
    **{f"config: {name}": 0 for name in CONFIG},
    **{f"payload: {name}": 0 for name in PAYLOADS},
}
