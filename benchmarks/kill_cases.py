"""The tools that kills.py disturbs: their command lines, what they read, and what their files say.

with server(work / "pictures") as url:
    write_inputs(folder, url)
    code = run_case(CASES["recommend"], folder, url)            # in a process of its own
    code = run_case(CASES["recommend"], folder, url, point=3)   # which is killed at a point
    contents(folder)                                            # {name: content}, without times
"""

import dataclasses
import functools
import importlib
import importlib.util
import json
import os
import re
import signal
import sqlite3
import sys
import time
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests")]

import numpy as np
import torch

from benchmarks.processes import SERVER, TIMES, finish, resume_command, without
from data.synthetic import make_dataset, write_dataset

DATASET = {"users": 60, "items": 54, "interactions_per_user": 8, "seed": 3}
DATA = ["--data_root", "data"]
TRAINING = [
    *(
        "--dataset",
        "small",
        *DATA,
        "--model",
        "lgn_mm",
        "--recdim",
        "8",
        "--attn_heads",
        "2",
        "--epochs",
        "3",
    ),
    *("--eval_every", "1", "--topks", "5,10", "--item_knn_k", "4", "--bpr_batch", "128", "--cuda", "0"),
    *("--threads", "1", "--tensorboard", "0"),
]
STUDY = ["--study", "s", "--storage", "s.db", "--trials", "2"]
RUN = ["--checkpoint", "run", *DATA, "--cuda", "0"]

# ---------------------------------------------------------------- the tools


@dataclasses.dataclass(frozen=True)
class Case:
    """A command line, run in a folder that has data/small, pictures/, model/, run/, orders.csv and knn.npz.

    URL in it stands for the server of this benchmark. needs: packages without which it cannot run; resumes:
    whether the command after a kill is --resume, where there is a run; ends: what a tool says that has done
    its work already, if it refuses to do it again.
    """

    tool: str
    argv: list[str]
    needs: tuple[str, ...] = ()
    resumes: bool = False
    ends: str = ""


URLS = ["--urls", "urls.tsv", "--allow_private", "1", "--workers", "1"]
FEATURES = ["small", *DATA, "--device", "cpu"]
TEXT = ("sentence_transformers",)
CASES = {
    "main": Case(
        "main", [*TRAINING, "--path", "runs", "--tensorboard", "1", "--projector", "1"], resumes=True
    ),
    "tune": Case(
        "tune",
        [*STUDY, *TRAINING, "--path", "trials", "--space", "lr=1e-3..1e-2:log"],
        ("optuna",),
    ),
    "recommend": Case("recommend", [*RUN, "--output", "lists.tsv"]),
    "recommend-vectors": Case("recommend", [*RUN, "--export_embeddings", "vectors.npz"]),
    "report": Case("report", ["run", "--output", "page"], ("matplotlib",)),
    "prepare": Case(
        "data.prepare",
        ["made", *DATA, "--interactions", "orders.csv", "--core", "2", "--format", "txt"],
        ends="exists already",
    ),
    "synthetic": Case("data.synthetic", ["made", *DATA, "--users", "50", "--items", "60"]),
    "reconstruct": Case("data.reconstruct", ["knn.npz", "--output", "rebuilt.npy", "--epochs", "3"]),
    "download": Case("data.download", ["toy", *DATA, "--base_url", "URL"]),
    "features-text": Case("data.features", ["text", *FEATURES, "--model", "./model"], TEXT),
    "features-colours": Case(
        "data.features", ["image", *FEATURES, "--model", "colours", "--pictures", "pictures"], ("PIL",)
    ),
    "pictures": Case(
        "data.features",
        ["image", *FEATURES, "--model", "colours", *URLS],
        ("PIL",),
    ),
    "profiles": Case(
        "data.features",
        ["users", *FEATURES, "--model", "./model", "--endpoint", "URL/v1", "--llm", "x", "--workers", "1"],
        TEXT,
    ),
}


def write_inputs(folder: Path, url: str, with_model: bool) -> None:
    """Write everything that a case reads. with_model: also a text model, which takes some seconds."""
    data = folder / "data" / "small"
    write_dataset(data, make_dataset(**DATASET), DATASET)
    titles = (json.dumps({"item": item, "title": f"red toy {item}"}) for item in range(DATASET["items"]))
    (data / "item_text.jsonl").write_text("\n".join(titles) + "\n")
    orders = [f"u{n % 30},i{n * n % 17},{n}" for n in range(400)]
    (folder / "orders.csv").write_text("\n".join(["user,item,timestamp", *dict.fromkeys(orders)]) + "\n")
    rng = np.random.default_rng(1)
    nearest = np.stack([rng.permutation(DATASET["items"])[:4] for _ in range(DATASET["items"])])
    np.savez(folder / "knn.npz", nbr=nearest, cos=rng.uniform(0.5, 0.9, nearest.shape))
    (folder / "urls.tsv").write_text("".join(f"{item}\t{url}/{item}.png\n" for item in range(5)))
    code = run_case(Case("main", [*TRAINING, "--path", "made"]), folder, url)
    assert code == 0, (folder / "log.err").read_text()
    (made,) = (folder / "made").iterdir()
    made.rename(folder / "run")
    (folder / "made").rmdir()
    (folder / "pictures").mkdir()
    if has(("PIL",)):
        from PIL import Image

        for item in range(8):
            picture = Image.new("RGB", (8, 8), (item * 20, 90, 200 - item * 9))
            picture.save(folder / "pictures" / f"{item}.png")
    if with_model and has(TEXT):
        import tiny_models

        tiny_models.save_bert(folder / "model")


def has(packages: Sequence[str]) -> bool:
    """Whether packages are installed."""
    return all(importlib.util.find_spec(name) for name in packages)


@contextmanager
def server(pictures: Path) -> Iterator[str]:
    """A server of a table, which it sends in parts on request, of pictures, and of a chat model; its URL."""
    from raw_server import message, ok, raw_server

    table = b"u,i,5,1\n" * 40_000
    profile = json.dumps({"choices": [{"message": {"content": "<answer>likes red</answer>"}}]}).encode()

    def answer(connection: typing.Any, request: bytes) -> None:
        path = request.split(b" ")[1].decode()
        start = re.search(rb"Range: bytes=(\d+)-", request)
        if request.startswith(b"POST"):
            connection.sendall(ok(profile))
        elif path.endswith(".png"):
            connection.sendall(ok((pictures / path[1:]).read_bytes()))
        elif start:
            rest, begin = table[int(start[1]) :], int(start[1])
            fields = ('ETag: "1"', f"Content-Length: {len(rest)}")
            place = f"Content-Range: bytes {begin}-{len(table) - 1}/{len(table)}"
            connection.sendall(message("206 Partial Content", place, *fields, body=rest))
        else:
            connection.sendall(ok(table, 'ETag: "1"'))

    with raw_server(answer) as running:
        yield running.url


# ---------------------------------------------------------------- processes


def run_and_die(case: Case, folder: str, url: str, point: int, again: bool) -> None:
    """Run a tool in a folder and die by SIGKILL at a point.

    point: 2n - 1 is before its n-th rename, fsync or commit to a database, 2n after it; 0: run to the end,
    and write the number of points to the file `points`.
    """
    os.chdir(folder)
    for stream, name in ((1, "log.out"), (2, "log.err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    passed = 0

    def pass_point() -> None:
        nonlocal passed
        passed += 1
        if passed == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(function: Callable) -> Callable:
        def call(*args: typing.Any, **named: typing.Any) -> typing.Any:
            pass_point()
            result = function(*args, **named)
            pass_point()
            return result

        return call

    class Connection(sqlite3.Connection):
        commit = watched(sqlite3.Connection.commit)

    os.replace, os.rename, os.fsync = watched(os.replace), watched(os.rename), watched(os.fsync)
    sqlite3.connect = functools.partial(sqlite3.connect, factory=Connection)  # type: ignore[assignment]
    time.strftime = lambda *_: "20260101-000000"  # in names of run folders and in pages
    code = 1
    try:
        code = importlib.import_module(case.tool).main(command(case, url, again))
    except Exception:
        traceback.print_exc()
    if not point:
        Path("points").write_text(str(passed))
    sys.stdout.flush()
    os._exit(code)


def command(case: Case, url: str, again: bool) -> list[str]:
    """The command line of a case, the first or the one after a kill."""
    if case.tool == "data.download":
        from data.sources import SOURCES, Remote, Source

        SOURCES["toy"] = Source("toy", (Remote("rows", "rows.csv"),), "http://x", "ask the authors")
    argv = [word.replace("URL", url) for word in case.argv]
    return resume_command(argv, "runs") if again and case.resumes else argv


def start(case: Case, folder: Path, url: str, point: int = 0, again: bool = False) -> typing.Any:
    """A process of run_and_die."""
    process = SERVER.Process(target=run_and_die, args=(case, str(folder), url, point, again))
    process.start()
    return process


def run_case(case: Case, folder: Path, url: str, point: int = 0, again: bool = False) -> int | None:
    """Exit code of run_and_die, in a process of its own."""
    return finish(start(case, folder, url, point, again))


# ---------------------------------------------------------------- what is there


def contents(folder: Path) -> dict[str, typing.Any]:
    """{name: content} of all files in a folder without times, logs, locks and folders of runs never begun."""
    names = run_names(folder)
    found = {}
    for path in folder.rglob("*"):
        place = path.parent.relative_to(folder).as_posix()
        never_begun = place.startswith(("runs/", "trials/")) and not (folder / place / "config.json").exists()
        if path.is_file() and not is_log(path) and not never_begun:
            found[f"{names.get(place, place)}/{path.name}"] = content(path)
    return found


def run_names(folder: Path) -> dict[str, str]:
    """{run folder: name that does not depend on how often a process was killed before it had begun a run}."""
    begun = [path.parent.relative_to(folder).as_posix() for path in folder.glob("runs/*/config.json")]
    return dict.fromkeys(begun, "run") | {
        trial.user_attrs["folder"]: f"trial {trial.user_attrs['number']}"
        for path in folder.glob("s.db")
        for trial in finished_trials(path)
    }


def is_log(path: Path) -> bool:
    """Whether a file has times, or belongs to this benchmark, or is a lock."""
    own = ("log.out", "log.err", "points", "train.log")
    return path.name.endswith(".lock") or path.name in own or "tfevents" in path.name


def content(path: Path) -> typing.Any:
    """The content of a file without times."""
    if path.suffix == ".pt":
        return places_removed(torch.load(path, weights_only=True))
    if path.name in ("metrics.jsonl", "result.json", "config.json") and path.parts[-3] in ("runs", "trials"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        return [places_removed(json.loads(line)) for line in lines]
    if path.suffix == ".db":
        return [
            [t.user_attrs["number"], t.params, t.value, t.intermediate_values] for t in finished_trials(path)
        ]
    return path.read_bytes()


def places_removed(value: typing.Any) -> typing.Any:
    """A value without times and without the settings that name a resumed run."""
    return without(value, TIMES | {"resume", "provenance"})


def finished_trials(path: Path) -> list[typing.Any]:
    """The complete and pruned trials of a study."""
    import optuna

    study = optuna.load_study(study_name="s", storage=f"sqlite:///{path}")
    return study.get_trials(states=[optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED])
