"""Shared by the tests of training: command lines and runs of a few epochs on the fixture small_dataset."""

import json

import torch
from helpers import dataset_of

from models.registry import config_class
from procedure import fit
from session import make_model
from training import ranking
from training.folder import make_run_folder
from training.run import start_run
from world import seed_everything

CPU = torch.device("cpu")
METRICS = ("recall", "ndcg", "precision", "map", "hitrate")
SMALL = {
    "recdim": 8,
    "attn_heads": 2,
    "item_knn_k": 4,
    "user_knn_k": 4,
    "topks": (3, 5),
    "eval_every": 1,
    "bpr_batch": 64,
    "lr": 0.02,
    "tensorboard": 0,
    "cuda": 0,
}


def flags(settings):
    """{"epochs": 3, "topks": (3, 5)} -> ["--epochs", "3", "--topks", "3,5"]."""
    texts = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in settings.items()
    }
    return [word for name, text in texts.items() for word in (f"--{name}", text)]


def command_line(folder, runs, **changes):
    """Flags of main.py for a small run on a dataset folder; its run folder is created in `runs`."""
    places = {"dataset": folder.name, "data_root": folder.parent, "path": runs}
    return flags({**places, **SMALL, "threads": 1, **changes})


def small_config(folder, **changes):
    """Config of a small run of RecGOAT with four epochs."""
    values = {
        "dataset": folder.name,
        "data_root": str(folder.parent),
        "path": str(folder.parent.parent / "runs"),
        **SMALL,
        "model": "lgn_mm",
        "epochs": 4,
        "patience": 0,
        **changes,
    }
    return config_class(values["model"])(**values)


def start(folder, **changes):
    """A small run before its first step."""
    config = small_config(folder, **changes)
    seed_everything(config.seed)
    dataset = dataset_of(config)
    return start_run(make_model(config, dataset, CPU), dataset, config, make_run_folder(config), CPU)


def train(folder, **changes):
    """Train a small run. Returns (run folder, result, lines of metrics.jsonl)."""
    run = start(folder, **changes)
    result = fit(run)
    return run.folder, result, read_metrics(run.folder)


def only(runs):
    """The one run folder in a folder."""
    (folder,) = runs.iterdir()
    return folder


def read_json(folder, name="result.json"):
    return json.loads((folder / name).read_text())


def read_metrics(folder):
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_state(path):
    """The content of a checkpoint."""
    return torch.load(path, weights_only=True)


def same_weights(a, b):
    """Whether two checkpoints have the same weights, bit for bit."""
    a, b = read_state(a)["model"], read_state(b)["model"]
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def best_model(config, run_folder):
    """A new model with the weights of best.pt, in eval mode."""
    model = make_model(config, dataset_of(config), CPU)
    model.load_state_dict(read_state(run_folder / "best.pt")["model"])
    return model.eval()


def script_metrics(monkeypatch, values, metric="ndcg@3"):
    """Make the n-th evaluation report metric = values[n]; later ones, such as that of test, report 0.123."""
    values, original = iter(values), ranking.mean_metrics

    def mean_metrics(*arguments):
        return {**original(*arguments), metric: next(values, 0.123)}

    monkeypatch.setattr(ranking, "mean_metrics", mean_metrics)


def spy_on_splits(monkeypatch):
    """A list that collects the relevant items of every split that is scored from now on."""
    scored, original = [], ranking.mean_metrics

    def mean_metrics(ranks, split, ks):
        scored.append(split.relevant[1].tolist())
        return original(ranks, split, ks)

    monkeypatch.setattr(ranking, "mean_metrics", mean_metrics)
    return scored
