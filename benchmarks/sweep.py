"""Random combinations of settings, valid and not: each must end in a finished run or in one line of error.

    python benchmarks/sweep.py --count 500 --seed 0
    python benchmarks/sweep.py --count 1 --seed 0 --first 317     # one of them again, with its output

Every flag of main.py takes part, those of each model included. A combination has up to twelve flags that are
not defaults, of which some have values that are impossible. The runs are of one or two epochs on a synthetic
dataset of 60 users, one after the other in one process. Of a finished run, all numbers that it wrote must be
finite. Exits with 1 if any combination ends otherwise.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
# A fixed order of sums, so that a seed always gives the same outcomes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import main as program
from data.synthetic import make_dataset, write_dataset
from models.registry import MODELS, config_class

DATASET = {"users": 60, "items": 54, "interactions_per_user": 8, "seed": 3}
# Short runs. Those in SIZES may be drawn too.
FIXED = {"epochs": "2", "eval_every": "1", "threads": "1", "bpr_batch": "256", "recdim": "8", "topks": "5,10"}
# Whole numbers up to which runs are short, and others that are short although they may be large.
SIZES = {"recdim": 40, "layer": 4, "item_branch_layers": 3, "user_branch_layers": 3, "item_graph_layers": 4}
SIZES |= {"sinkhorn_iters": 200, "attn_heads": 9, "epochs": 2}
ODD = ("", "x", "nan", "inf", "-inf", "-1", "1.5", "1e400", "99999999999999999999", "0x10", "½", "a\nb", "[]")
ODD_FLOATS = ("-0.0", "-1e-9", "1e-300", "1e29", "1e30", "1e31", "1e300", "0.999999999")
EXTREMES = (0.0, 1e-12, 1e-6, 1e-3, 0.5, 1.0, 2.0, 10.0, 1e3, 1e6, 1e12, 1e30)
# The most memory that a combination may ask for.
MEMORY = 16 * 2**30

# ---------------------------------------------------------------- drawing


def draw(rng: random.Random, work: Path) -> dict[str, str]:
    """A combination of settings as {flag: text}."""
    model = rng.choice([*MODELS, "lgn_mm", "lgn_mm"])
    flags = {"dataset": "small", "data_root": str(work / "data"), "path": str(work / "runs"), "model": model}
    flags |= FIXED
    fields = {field.name: field for field in dataclasses.fields(config_class(model))}
    odd = rng.random() < 0.4  # among up to twelve, one impossible value would hide the others
    for name in rng.sample(list(fields), rng.randint(1, 12)):
        if name == "dataset" or (name == "model" and not odd):
            continue
        if odd and rng.random() < 0.2:
            flags[name] = rng.choice(ODD + ODD_FLOATS)
        elif name != "model":
            flags[name] = value_of(fields[name], rng, work)
    return flags


def value_of(field: dataclasses.Field, rng: random.Random, work: Path) -> str:
    """A value of the type and in the range of a setting, which may yet not fit the data or other settings."""
    rules, name = field.metadata, field.name
    if rules["choices"]:
        return str(rng.choice(rules["choices"]))
    if name == "topks":
        return ",".join(str(rng.choice((1, 2, 5, 10, 20, 50, 54, 55))) for _ in range(rng.randint(1, 3)))
    if isinstance(field.default, float):
        inside = [x for x in EXTREMES if (rules["low"] or 0) <= x <= (rules["high"] or 1e30)]
        return repr(rng.choice([*inside, field.default, rng.uniform(0, rules["high"] or 1)]))
    if isinstance(field.default, int):
        low, high = int(rules["low"] or 0), SIZES.get(name, 60)
        return str(rng.choice((low, low + 1, rng.randint(low, high), high)))
    return text_of(name, rng, work)


def text_of(name: str, rng: random.Random, work: Path) -> str:
    """A text for a setting that is a path or a name."""
    runs = sorted(work.glob("runs/*/best.pt"))
    if name in ("resume", "checkpoint") and runs:
        run = rng.choice(runs)
        return str(run if name == "checkpoint" else run.parent)
    if name == "valid_metric":
        return rng.choice(("recall@5", "ndcg@10", "map@5", "hitrate@7", "accuracy"))
    if name in ("path", "data_root", "cache_dir"):
        return str(work / rng.choice(("data", "runs", "new", "a file")))
    kind = "user" if name.startswith("user") else "item"
    ending = "npz" if name.endswith("graph") else "npy"
    return rng.choice((str(work / f"{kind}.{ending}"), str(work / "a file"), str(work / "none"), "mean", ""))


def write_inputs(work: Path) -> None:
    """Write the dataset, and feature files and graphs of its size."""
    write_dataset(work / "data" / "small", make_dataset(**DATASET), DATASET)
    rng = np.random.default_rng(1)
    for kind, rows in (("item", DATASET["items"]), ("user", DATASET["users"])):
        np.save(work / f"{kind}.npy", rng.standard_normal((rows, 6)).astype(np.float32))
        np.savez(work / f"{kind}.npz", nbr=(np.arange(rows)[:, None] + [1, 2, 3]) % rows)
    (work / "a file").write_text("text\n")


# ---------------------------------------------------------------- running


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a combination ended: "finished", "refused" (exit code 2), "failed" (1) or "DEFECT"."""

    kind: str
    said: str  # the error line, or what is wrong
    seconds: float


def run(flags: dict[str, str]) -> Outcome:
    """Run a combination in this process."""
    argv = [word for name, value in flags.items() for word in (f"--{name}", value)]
    began = time.perf_counter()
    before = set(Path(flags["path"]).glob("*"))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = program.main(argv)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            code = -1
            traceback.print_exc()
    seconds = time.perf_counter() - began
    errors = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    if code == 0 and not errors:
        new = set(Path(flags["path"]).glob("*")) - before
        wrong = [fault for folder in new if folder.is_dir() for fault in faults(folder)]
        return Outcome("DEFECT" if wrong else "finished", ", ".join(wrong), seconds)
    if code in (1, 2) and len(errors) == 1 and "Traceback" not in err.getvalue():
        return Outcome("refused" if code == 2 else "failed", errors[0], seconds)
    return Outcome("DEFECT", f"exit {code}\n{err.getvalue()[-3000:]}", seconds)


def faults(folder: Path) -> list[str]:
    """What is wrong with the files of a finished run."""
    wrong = []
    for path in (folder / "result.json", folder / "metrics.jsonl", folder / "config.json"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        try:
            values = [json.loads(line, parse_constant=not_finite) for line in lines]
        except ValueError as error:
            wrong.append(f"{path.name}: {error}")
            continue
        if path.name == "result.json" and values[0].get("status") not in ("finished", "interrupted"):
            wrong.append(f"status {values[0].get('status')}")
        if path.name == "result.json" and None in values[0].get("test", {}).values():
            wrong.append("a test metric is null")
    return wrong


def not_finite(text: str) -> None:
    """Refuse NaN and Infinity, which are no JSON."""
    raise ValueError(f"{text} is no JSON")


def sweep(count: int, seed: int, work: Path, first: int = 0) -> list[tuple[int, dict[str, str], Outcome]]:
    """Run combinations first, first + 1, ... of a seed. Returns (number, flags, outcome) of each."""
    write_inputs(work)
    found = []
    for number in range(first, first + count):
        flags = draw(random.Random(f"{seed}/{number}"), work)
        found.append((number, flags, run(flags)))
        # A few runs, to be resumed or scored by others.
        for folder in sorted((work / "runs").glob("*"))[3:]:
            shutil.rmtree(folder, ignore_errors=True)
    return found


def report(found: Sequence[tuple[int, dict[str, str], Outcome]]) -> int:
    """Print counts and defects. Returns the number of defects."""
    kinds = collections.Counter(outcome.kind for *_, outcome in found)
    for number, flags, outcome in found:
        if outcome.kind == "DEFECT":
            chosen = {name: value for name, value in flags.items() if FIXED.get(name) != value}
            print(f"--first {number}: {chosen}\n{outcome.said}\n")
    slowest = max(found, key=lambda entry: entry[2].seconds)
    print(
        f"{len(found)} combinations: {kinds['finished']} finished, {kinds['refused']} refused in one line, "
        f"{kinds['failed']} ended in one line while training, {kinds['DEFECT']} defects; the slowest, "
        f"{slowest[0]}, took {slowest[2].seconds:.1f} s"
    )
    return kinds["DEFECT"]


def main() -> int:
    """Run the sweep. Returns 1 if there is a defect, else 0."""
    parser = argparse.ArgumentParser(
        description="Train with random combinations of settings.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=500, help="combinations")
    parser.add_argument("--seed", type=int, default=0, help="seed of the combinations")
    parser.add_argument("--first", type=int, default=0, help="number of the first combination")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as work:
        found = sweep(args.count, args.seed, Path(work), args.first)
    if args.count == 1:
        print(*(f"{name} {value!r}" for name, value in found[0][1].items()), found[0][2], sep="\n")
    return int(report(found) > 0)


if __name__ == "__main__":
    sys.exit(main())
