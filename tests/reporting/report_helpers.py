"""Run folders for the tests of reports, and readers of what a report wrote."""

import csv
import html.parser
import json
import math

import numpy as np

import report
from world import Config

METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")


PROTOCOL = {
    "selected_on": "valid",
    "selection_metric": "ndcg@5",
    "eval_dropout": 0,
    "masked_at_test": ["train"],
}


def write_run(root, seed, recall, status="finished", data="one", protocol=PROTOCOL, result=None, **settings):
    """A run folder whose recall@5 is `recall`; the other metrics are half, a third and a quarter of it."""
    config = Config(**{"dataset": "baby_raw", "topks": (5, 10), "seed": seed, **settings})
    folder = root / f"run_{len(list(root.glob('*')))}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.as_dict()))
    lines = [
        {
            "epoch": epoch,
            "epoch_seconds": float(epoch),
            "evaluation_seconds": 0.5,
            "valid": {name: recall * epoch for name in METRICS},
        }
        for epoch in (1, 2, 6)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    test = {name: recall / part for part, name in enumerate(METRICS, 1)}
    whole = {
        "status": status,
        "test": test,
        "protocol": protocol,
        "data": {"interactions": data, "all": data},
        "seconds": 10.0 * seed,
        "peak_memory_mb": 100.0 * seed,
        "device": "cpu",
        "epochs": 6,
        "versions": {"git_commit": "a" * 40, "torch": "2.13.0", "platform": "Linux"},
    }
    if status != "unfinished":
        (folder / "result.json").write_text(json.dumps(whole if result is None else result))
    return folder


def naive_metrics(items, relevant, k):
    """Recall and NDCG of one list by loops."""
    gains = [1 / math.log2(rank + 2) for rank, item in enumerate(items[:k]) if item in relevant]
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(relevant))))
    return len(gains) / len(relevant), sum(gains) / ideal


def write_ranked_run(root, seed, n_users=50, n_items=40, **settings):
    """A run folder with random ranked lists whose metrics stand in result.json. Returns the folder and the arrays."""
    world, rng = (
        np.random.default_rng(7),
        np.random.default_rng(seed),
    )  # users, relevant items and popularity are the same for all
    relevant = [np.sort(world.choice(n_items, world.integers(1, 5), replace=False)) for _ in range(n_users)]
    popularity = np.sort(world.integers(0, 12, n_items))
    arrays = {
        "users": np.arange(n_users) * 2,
        "items": np.stack([rng.permutation(n_items)[:10] for _ in range(n_users)]),
        "relevant_crow": np.cumsum([0, *map(len, relevant)]),
        "relevant_items": np.concatenate(relevant),
        "history": world.integers(1, 9, n_users),
        "popularity": popularity,
    }
    arrays = {name: array.astype(np.int32) for name, array in arrays.items()}
    folder = write_run(root, seed, 0.1, **settings)
    result = json.loads((folder / "result.json").read_text())
    for k in (5, 10):
        values = np.array(
            [naive_metrics(row, set(wanted), k) for row, wanted in zip(arrays["items"].tolist(), relevant)]
        )
        result["test"][f"recall@{k}"], result["test"][f"ndcg@{k}"] = values.mean(0).tolist()
    (folder / "result.json").write_text(json.dumps(result))
    np.savez(folder / "test_ranking.npz", **arrays)
    return folder, arrays


def per_user(arrays, metric):
    """A metric of every user of a test_ranking.npz, by loops."""
    name, k = metric.split("@")
    bounds = arrays["relevant_crow"]
    return np.array(
        [
            naive_metrics(row, set(arrays["relevant_items"][low:high].tolist()), int(k))[name == "ndcg"]
            for row, low, high in zip(arrays["items"].tolist(), bounds, bounds[1:])
        ]
    )


def run_report(root, *flags):
    """Exit code of the report on the runs below root, written beside them."""
    return report.main([str(root), "--output", str(root.parent / "out"), *flags])


def read_table(root, slug):
    """A CSV that a report has written, as {first cells joined: {column: value}}."""
    with open(root.parent / "out" / f"{slug}.csv", newline="") as file:
        return list(csv.DictReader(file))


def two_names(root, ours=(0.3, 0.35, 0.36), other=(0.2, 0.29, 0.1)):
    """Three seeds of RecGOAT and of LightGCN."""
    for seed, (mine, theirs) in enumerate(zip(ours, other), 1):
        write_run(root, seed, mine, model="lgn_mm")
        write_run(root, seed, theirs, model="lgn")


def t_test_by_hand(ours, other):
    """Two-sided p of the paired t-test from its definition, by integrating the density of Student's t."""
    difference, n = np.subtract(ours, other), len(ours)
    t = abs(difference.mean()) / (difference.std(ddof=1) / math.sqrt(n))
    x = np.linspace(0, t, 200_001)
    density = (
        (1 + x**2 / (n - 1)) ** (-n / 2)
        * math.gamma(n / 2)
        / (math.sqrt((n - 1) * math.pi) * math.gamma((n - 1) / 2))
    )
    return 1 - 2 * np.trapezoid(density, x)


def check_figure(path):
    """Both files of a figure are there, and the picture holds many colours."""
    from PIL import Image

    assert path.with_name(path.name + ".pdf").read_bytes()[:5] == b"%PDF-"
    with Image.open(path.with_name(path.name + ".png")) as image:
        assert min(image.size) > 300 and len(image.convert("RGB").getcolors(10**6)) > 50


class Page(html.parser.HTMLParser):
    """Collects tags and text, and fails on one that is closed out of turn."""

    EMPTY = {"meta", "img"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
