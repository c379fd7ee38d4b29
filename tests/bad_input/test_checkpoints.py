"""Broken and hostile checkpoints and run folders: exit code 2 and one line; code in a file never runs."""

import io
import json
import pickle
import shutil
import zipfile

import pytest
import torch
from broken import Trap, assert_refused

from main import main


@pytest.fixture
def run_folder(trained, tmp_path):
    """A copy of the small run."""
    return shutil.copytree(trained[1], tmp_path / "run")


def rewrite(change):
    """A case that changes the content of last.pt and best.pt."""

    def breaking(folder):
        for name in ("last.pt", "best.pt"):
            state = torch.load(folder / name, weights_only=True)
            change(state)
            torch.save(state, folder / name)

    return breaking


def entry(key, value):
    return rewrite(lambda state: state.update({key: value}))


def deeper(*keys, value):
    """A case that puts a value deep inside the checkpoints."""

    def change(state):
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return rewrite(change)


def without(*keys):
    def change(state):
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return rewrite(change)


def content(data):
    """A case that replaces both checkpoints by these bytes."""
    return lambda folder: [(folder / name).write_bytes(data) for name in ("last.pt", "best.pt")]


def saved(value):
    def breaking(folder):
        for name in ("last.pt", "best.pt"):
            torch.save(value, folder / name)

    return breaking


def compressed_zeros(folder):
    """Archives that unpack to much more than their size."""
    for name in ("last.pt", "best.pt"):
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({}))
            archive.writestr("archive/data/0", bytes(10**7))


def cut(folder):
    for name in ("last.pt", "best.pt"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])


def legacy(folder):
    for name in ("last.pt", "best.pt"):
        torch.save(
            torch.load(folder / name, weights_only=True), folder / name, _use_new_zipfile_serialization=False
        )


WEIGHT = "user"
# One element in memory that claims to be a terabyte.
WIDE = torch.zeros(1).expand(10**6, 10**6)

FILES = {  # refused when scored with --checkpoint, whatever the settings
    "empty": (content(b""), ["is damaged", "name another"]),
    "text": (content(b"no checkpoint\n"), ["is damaged", "name another"]),
    "cut off": (cut, ["is damaged", "name another"]),
    "a zip of something else": (content(b"PK\x05\x06" + bytes(18)), ["is damaged", "name another"]),
    "a pickle": (content(pickle.dumps({"format": 1})), ["is damaged", "name another"]),
    "the old format of torch": (legacy, ["is damaged", "name another"]),
    "unpacks to more than it holds": (compressed_zeros, ["is damaged", "unpacks to more"]),
    "a list": (saved([1, 2]), ["no checkpoint of this program"]),
    "a tensor": (saved(torch.zeros(3)), ["no checkpoint of this program"]),
    "an empty dict": (saved({}), ["no checkpoint of this program"]),
    "bare weights": (saved({WEIGHT: torch.zeros(3)}), ["no checkpoint of this program"]),
    "another format number": (entry("format", 1), ["format 1", "train again"]),
    "format true": (entry("format", True), ["no checkpoint of this program"]),
    "model missing": (without("model"), ["no checkpoint of this program"]),
    "model a list": (entry("model", [1]), ["no checkpoint of this program"]),
    "weight a string": (entry("model", {WEIGHT: "heavy"}), ["no checkpoint of this program"]),
    "weight complex": (
        entry("model", {WEIGHT: torch.zeros(3, dtype=torch.complex64)}),
        ["no checkpoint of this program"],
    ),
    "weight larger than its memory": (entry("model", {WEIGHT: WIDE}), ["no checkpoint of this program"]),
    "weight sparse": (entry("model", {WEIGHT: torch.eye(3).to_sparse()}), ["no checkpoint of this program"]),
    "weight NaN": (entry("model", {WEIGHT: torch.full((3,), torch.nan)}), ["NaN or Inf"]),
    "progress missing": (without("progress"), ["no checkpoint of this program"]),
    "progress a list": (entry("progress", [3]), ["no checkpoint of this program"]),
    "epoch a string": (deeper("progress", "epoch", value="2"), ["no checkpoint of this program"]),
    "epoch missing": (without("progress", "epoch"), ["no checkpoint of this program"]),
    "epoch negative": (deeper("progress", "epoch", value=-1), ["no checkpoint of this program"]),
    "step a float": (deeper("progress", "step", value=0.5), ["no checkpoint of this program"]),
    "data a number": (entry("data", 5), ["no checkpoint of this program"]),
    "sampler a string": (entry("sampler", "x"), ["no checkpoint of this program"]),
    "config a list": (entry("config", []), ["no checkpoint of this program"]),
}


@pytest.mark.parametrize("case", FILES)
def test_file(case, run_folder, capsys):
    breaking, words = FILES[case]
    breaking(run_folder)
    code = main(["--evaluate_only", "1", "--checkpoint", str(run_folder / "best.pt")])
    assert_refused(code, capsys.readouterr().err, ["best.pt", *words])


SCORED = {  # whole, but not of this dataset or program
    "weights of another shape": (
        deeper("model", WEIGHT, value=torch.zeros(3, 3)),
        ["best.pt: does not fit this dataset"],
    ),
    "a weight missing": (without("model", WEIGHT), ["best.pt: does not fit this dataset"]),
    "an unknown setting": (deeper("config", "warp", value=9), ["best.pt: has unknown settings (warp)"]),
    "a setting of a wrong type": (deeper("config", "recdim", value="8"), ["--recdim 8: must be of type int"]),
    "a setting that is no choice": (deeper("config", "model", value="svd"), ["--model svd", "lgn_mm"]),
}


@pytest.mark.parametrize("case", SCORED)
def test_scored(case, run_folder, capsys):
    breaking, words = SCORED[case]
    breaking(run_folder)
    assert_refused(
        main(["--evaluate_only", "1", "--checkpoint", str(run_folder / "best.pt")]),
        capsys.readouterr().err,
        words,
    )


FIT = "its checkpoint does not fit"
RESUMED = {  # whole, but no state that the run could be in
    "unknown progress": (deeper("progress", "luck", value=1), [FIT, "luck"]),
    "best missing": (deeper("progress", "best", value=None), [FIT, "progress"]),
    "best without metrics": (without("progress", "best", "metrics"), [FIT]),
    "best of text": (deeper("progress", "best", "metrics", value={"ndcg@5": "high"}), [FIT]),
    "latest without the metric": (deeper("progress", "latest", value={}), [FIT]),
    "latest a number": (deeper("progress", "latest", value=3), [FIT]),
    "waited a string": (deeper("progress", "waited", value="long"), [FIT]),
    "seconds a string": (deeper("progress", "seconds", value="long"), [FIT]),
    "step beyond the epoch": (deeper("progress", "step", value=4), [FIT, "progress"]),
    "sums a list": (deeper("progress", "sums", value=[1]), [FIT]),
    "sums of vectors": (deeper("progress", "sums", value={"loss": torch.ones(2)}), [FIT]),
    "optimiser empty": (entry("optimizer", {}), [FIT]),
    "optimiser of another rate": (
        deeper("optimizer", "param_groups", 0, "lr", value="fast"),
        [FIT, "optimiser"],
    ),
    "moments of another shape": (
        deeper("optimizer", "state", 0, "exp_avg", value=torch.zeros(2)),
        [FIT, "optimiser"],
    ),
    "moments missing": (without("optimizer", "state", 0, "exp_avg_sq"), [FIT, "optimiser"]),
    "sampler of another size": (entry("sampler", torch.zeros(5, dtype=torch.uint8)), [FIT]),
    "random empty": (entry("random", {}), [FIT]),
    "random of nonsense": (deeper("random", "python", value=[3, ["a"], None]), [FIT]),
    "numpy of nonsense": (deeper("random", "numpy", value=["MT19937", [-1], 0, 0, 0.0]), [FIT]),
    "weights of another shape": (deeper("model", WEIGHT, value=torch.zeros(3, 3)), [FIT]),
    "other data": (entry("data", "0" * 64), ["the data have changed"]),
    "best.pt lost": (
        lambda folder: (folder / "best.pt").unlink(),
        ["best.pt: cannot be read", "remove", "last.pt"],
    ),
    "best.pt damaged": (
        lambda folder: (folder / "best.pt").write_bytes(b"PK"),
        ["best.pt: is damaged", "remove", "last.pt"],
    ),
}


@pytest.mark.parametrize("case", RESUMED)
def test_resumed(case, run_folder, capsys):
    breaking, words = RESUMED[case]
    breaking(run_folder)
    before = sorted(path.name for path in run_folder.iterdir())
    assert_refused(main(["--resume", str(run_folder)]), capsys.readouterr().err, words)
    assert {path.name for path in run_folder.iterdir()} - {".lock"} == {*before} - {".lock"}


def settings(change):
    """A case that changes the settings in config.json."""

    def breaking(folder):
        stored = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**stored, **change}))

    return breaking


def text(data):
    return lambda folder: (folder / "config.json").write_bytes(data)


CONFIG = {
    "missing": (
        lambda folder: (folder / "config.json").unlink(),
        ["config.json: cannot be read", "--resume takes a run folder"],
    ),
    "empty": (text(b""), ["config.json: is no JSON"]),
    "not JSON": (text(b"{'lr': 1}"), ["config.json: is no JSON"]),
    "not text": (text(b"\xff\xfe\x00\x01"), ["config.json: is no JSON"]),
    "too large": (text(b"[" + b"1," * 10**6 + b"1]"), ["config.json: is no JSON (over 1 MB)"]),
    "deeply nested": (text(b"[" * 10**5 + b"]" * 10**5), ["config.json: is no JSON"]),
    "a list": (text(b"[1, 2]"), ["config.json: holds no settings"]),
    "an unknown setting": (settings({"warp": 9}), ["unknown settings (warp)"]),
    "lr a string": (settings({"lr": "0.1"}), ["--lr 0.1: must be of type float"]),
    "lr a list": (settings({"lr": [0.1]}), ["--lr", "must be of type float"]),
    "lr infinite": (text(b'{"lr": 1e999}'), ["--lr inf", "finite"]),
    "lr of 400 digits": (text(b'{"lr": 1' + b"0" * 400 + b"}"), ["--lr", "too large"]),
    "recdim true": (settings({"recdim": True}), ["--recdim True: must be of type int"]),
    "recdim huge": (settings({"recdim": 10**30}), ["--recdim", "too large"]),
    "topks a number": (settings({"topks": 10}), ["--topks 10: must be of type tuple"]),
    "topks of strings": (settings({"topks": ["10"]}), ["--topks ['10']", "whole numbers"]),
    "dataset that leaves the root": (
        settings({"dataset": "../small"}),
        ["--dataset ../small", "--data_root"],
    ),
    "path with a zero byte": (settings({"cache_dir": "a\0b"}), ["--cache_dir", "control characters"]),
    "half a surrogate pair": (settings({"cache_dir": "\ud800"}), ["--cache_dir", "UTF-8"]),
    "a folder": (
        lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").mkdir()),
        ["config.json: cannot be read"],
    ),
}


@pytest.mark.parametrize("case", CONFIG)
def test_config(case, run_folder, capsys):
    breaking, words = CONFIG[case]
    breaking(run_folder)
    assert_refused(main(["--resume", str(run_folder)]), capsys.readouterr().err, words)


def test_a_config_cannot_turn_a_resumed_run_into_a_scoring(run_folder, capsys):
    settings({"evaluate_only": 1, "checkpoint": "elsewhere.pt"})(run_folder)
    assert main(["--resume", str(run_folder)]) == 0
    assert "elsewhere" not in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--evaluate_only", "1", "--checkpoint", "{}/best.pt"], ["--resume", "{}"]])
@pytest.mark.parametrize("inside", ["whole", "entry", "plain pickle"])
def test_a_pickle_payload_does_not_run(inside, argv, run_folder, capsys, tmp_path):
    marker = tmp_path / "marker"
    for name in ("last.pt", "best.pt"):
        state = torch.load(run_folder / name, weights_only=True)
        if inside == "plain pickle":
            (run_folder / name).write_bytes(pickle.dumps(Trap(marker)))
        else:
            torch.save(
                Trap(marker) if inside == "whole" else {**state, "data": Trap(marker)}, run_folder / name
            )
    code = main([word.format(run_folder) for word in argv])
    assert not marker.exists()
    said = capsys.readouterr()
    if argv[0] == "--resume":  # without any whole checkpoint the run starts again, and says so
        assert code == 0 and said.out.count("is damaged") == 2 and "resumed after epoch 0" in said.out
    else:
        assert_refused(code, said.err, ["best.pt: is damaged"])


def test_the_traps_are_armed(tmp_path):
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
    "payload: whole": 0,
    "payload: entry": 0,
    "payload: plain pickle": 0,
}
