"""A marker pair that only the test split holds is in no file that any tool writes before test is scored.

Two datasets differ in that pair alone. Every tool writes the same files from both, apart from times and from
hashes of the whole dataset.
"""

import importlib.util
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_pairs, stop_after, write_txt
from small_runs import flags
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import main
import recommend
import report
import tune
from benchmarks.processes import TIMES
from data import features

SETTINGS = {"dataset": "small", "data_root": "data", "path": "runs", "cache_dir": "cache", "epochs": 3}
SETTINGS |= {
    "model": "lgn_mm",
    "recdim": 8,
    "attn_heads": 2,
    "item_knn_k": 4,
    "user_knn_k": 4,
    "topks": "3,29",  # all items that are not masked: the rank of a test item always shows
}
SETTINGS |= {"eval_every": 1, "bpr_batch": 64, "cuda": 0, "threads": 1, "user_text_feat": "mean"}
SETTINGS |= {"neighbour_weight": 1.0, "plan_image_every": 1}
HASHES = {"data", "fingerprint"}  # entries that are a hash of the whole dataset


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Function: test item of user 0 -> folder with all files that the tools wrote before test was scored."""
    monkeypatch.setattr(time, "strftime", lambda *_: "20260101-000000")

    def run(name, item):
        folder = tmp_path / name
        write_dataset(folder / "data" / "small", item)
        monkeypatch.chdir(folder)
        with monkeypatch.context() as patch:
            stop_after(patch, 6, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
            assert main.main(flags(SETTINGS | {"projector": 1})) == 130
        search = {
            "study": "s",
            "storage": "s.db",
            "trials": 2,
            **SETTINGS,
            "path": "trials",
            "tensorboard": 0,
        }
        assert tune.main([*flags(search), "--space", "lr=1e-3..1e-2:log"]) == 0
        argv = ["users", "small", "--data_root", "data", "--until", "prompts"]
        argv += ["--endpoint", "http://127.0.0.1:9/v1", "--llm", "x"]
        assert features.main(argv) == 0
        assert report.main(["trials", "--list"]) == 0
        use_unscored_runs()
        return folder

    return run


def use_unscored_runs():
    """Run the tools that read runs whose test split was not scored, and those that read no interactions."""
    (run,) = Path("runs").iterdir()
    flags_of_run = ["--checkpoint", str(run), "--cuda", "0"]
    for words in (
        ["--output", "lists.tsv"],
        ["--exclude", "train,valid", "--output", "unseen.tsv"],
        ["--similar_items", "0,1,2", "--output", "similar.tsv"],
        ["--export_embeddings", "vectors.npz"],
    ):
        assert recommend.main([*flags_of_run, *words]) == 0
    assert report.main(["runs", "trials", "--output", "page", "--figures", "0"]) in (0, 2)
    if importlib.util.find_spec("PIL"):
        from PIL import Image

        Path("pictures").mkdir()
        Image.new("RGB", (8, 8), (1, 2, 3)).save("pictures/0.png")
        words = ["image", "small", "--data_root", "data", "--model", "colours", "--pictures", "pictures"]
        assert features.main([*words, "--out", "image_feat.npy"]) == 0


def write_dataset(folder, item):
    """Two datasets of this function differ in the test item of user 0 alone."""
    pairs = random_pairs(0, 40, 30, 6)
    pairs["test"][0] = (0, item)
    write_txt(folder, **pairs)
    np.save(folder / "text_feat.npy", np.random.default_rng(1).standard_normal((30, 12)).astype(np.float32))
    lines = (json.dumps({"item": i, "title": f"thing {i}"}) + "\n" for i in range(30))
    (folder / "item_text.jsonl").write_text("".join(lines))


def items_of_nobody():
    """Two items that user 0 has in no split."""
    pairs = np.concatenate(list(random_pairs(0, 40, 30, 6).values()))
    taken = set(pairs[pairs[:, 0] == 0, 1].tolist())
    return [item for item in range(29) if item not in taken][:2]


# ---------------------------------------------------------------- what a file says


def plain(value):
    """A JSON value or checkpoint without times and hashes of the dataset, as comparable text."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items() if key not in TIMES | HASHES}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def events(path):
    """(step, tag, value) of a TensorBoard file, without speeds."""
    return [
        (event.step, value.tag, value.SerializeToString())
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if "speed/" not in value.tag
    ]


def trials(path):
    import optuna

    study = optuna.load_study(study_name="s", storage=f"sqlite:///{path}")
    rows = [
        (t.params, t.value, t.intermediate_values, t.state, t.user_attrs | {"folder": ""})
        for t in study.trials
    ]
    return [*rows, study.user_attrs["settings"], study.user_attrs["space"]]


def content(path):
    """What a file says, comparably."""
    if path.suffix in (".json", ".jsonl"):
        lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
        return [plain(json.loads(line)) for line in lines]
    if path.suffix == ".pt":
        return plain(torch.load(path, weights_only=True))
    if path.suffix == ".db":
        return trials(path)
    if "tfevents" in path.name:
        return events(path)
    if path.suffix == ".log":
        return re.sub(r"\b\d+(\.\d)? s\b|\b\d+\.\d\b", "", path.read_text())  # seconds
    return path.read_bytes()


def files(folder):
    """{name: path} of all files that the tools wrote: all but the dataset's own."""
    own = {"train.txt", "valid.txt", "test.txt", "item_text.jsonl", "text_feat.npy"}
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in own]
    return {re.sub(r"tfevents.*", "tfevents", path.relative_to(folder).as_posix()): path for path in paths}


def test_no_file_that_is_written_before_the_test_knows_it(tools, capsys, monkeypatch):
    first, second = items_of_nobody()
    a, b = files(tools("a", first)), files(tools("b", second))
    assert a.keys() == b.keys()
    kinds = {Path(name).suffix for name in a}
    assert {".pt", ".json", ".jsonl", ".npz", ".db", ".sh", ".tsv", ".log"} <= kinds
    assert any("tfevents" in name for name in a) and "data/small/user_prompts.jsonl" in a
    assert not [name for name in a if "test" in name]
    different = [name for name in a if content(a[name]) != content(b[name])]
    assert different == []
    # Once test is scored, its files do differ, and so would those above.
    for folder in (a, b):
        root = folder["s.db"].parent
        monkeypatch.chdir(root)
        assert main.main(["--resume", *map(str, Path("runs").iterdir())]) == 0
    a, b = files(a["s.db"].parent), files(b["s.db"].parent)
    different = {Path(name).name for name in a if content(a[name]) != content(b[name])}
    assert "test_ranking.npz" in different and "result.json" in different
