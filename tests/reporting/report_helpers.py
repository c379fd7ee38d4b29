"""Helpers for the tests of reports: write run folders, run report.py on them, and read what it wrote."""

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

# ---------------------------------------------------------------- run folders


def write_run(root, seed, recall, status="finished", data="one", protocol=PROTOCOL, result=None, **settings):
    """Write a run folder with the given test recall@5; the other metrics are 1/2, 1/3 and 1/4 of it.

    result: contents of result.json in place of those of a finished run. settings: those not at their default.
    """
    config = Config(**{"dataset": "baby_raw", "topks": (5, 10), "seed": seed, **settings})
    folder = root / f"run_{len(list(root.glob('*')))}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**config.as_dict(), "provenance": {}}))
    evaluations = [
        {
            "epoch": epoch,
            "epoch_seconds": float(epoch),
            "evaluation_seconds": 0.5,
            "valid": dict.fromkeys(METRICS, recall * epoch),
        }
        for epoch in (1, 2, 6)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in evaluations))
    finished = {
        "status": status,
        "test": {name: recall / divisor for divisor, name in enumerate(METRICS, 1)},
        "protocol": protocol,
        "data": {"interactions": data, "all": data},
        "seconds": 10.0 * seed,
        "peak_memory_mb": 100.0 * seed,
        "device": "cpu",
        "epochs": 6,
        "versions": {"git_commit": "a" * 40, "torch": "2.13.0", "platform": "Linux"},
    }
    if status != "unfinished":
        (folder / "result.json").write_text(json.dumps(finished if result is None else result))
    return folder


def edit_json(path, changes):
    """Replace entries of a JSON object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_two_models(root, recgoat=(0.3, 0.35, 0.36), lightgcn=(0.2, 0.29, 0.1)):
    """Write runs of RecGOAT and LightGCN with these test recalls, with seeds 1, 2, ..."""
    for seed, (ours, other) in enumerate(zip(recgoat, lightgcn), 1):
        write_run(root, seed, ours, model="lgn_mm")
        write_run(root, seed, other, model="lgn")


def write_ranked_run(root, seed, n_users=50, n_items=40, **settings):
    """Write a run folder with random ranked lists and their metrics. Returns the folder and the arrays."""
    # Users, relevant items and popularity are those of the dataset, so they are the same for every seed.
    data_rng, rng = np.random.default_rng(7), np.random.default_rng(seed)
    relevant = [
        np.sort(data_rng.choice(n_items, data_rng.integers(1, 5), replace=False)) for _ in range(n_users)
    ]
    popularity = np.sort(data_rng.integers(0, 12, n_items))
    arrays = {
        "users": np.arange(n_users) * 2,
        "items": np.stack([rng.permutation(n_items)[:10] for _ in range(n_users)]),
        "relevant_crow": np.cumsum([0, *map(len, relevant)]),
        "relevant_items": np.concatenate(relevant),
        "history": data_rng.integers(1, 9, n_users),
        "popularity": popularity,
    }
    arrays = {name: array.astype(np.int32) for name, array in arrays.items()}
    folder = write_run(root, seed, 0.1, **settings)
    edit_json(folder / "result.json", {"test": {name: per_user(arrays, name).mean() for name in METRICS}})
    np.savez(folder / "test_ranking.npz", **arrays)
    return folder, arrays


def per_user(arrays, metric):
    """A metric of every user of a test_ranking.npz, computed by loops."""
    name, k = metric.split("@")
    starts = arrays["relevant_crow"]
    values = []
    for items, start, stop in zip(arrays["items"].tolist(), starts, starts[1:]):
        relevant = set(arrays["relevant_items"][start:stop].tolist())
        recall, ndcg = recall_and_ndcg(items, relevant, int(k))
        values.append(recall if name == "recall" else ndcg)
    return np.array(values)


def recall_and_ndcg(items, relevant, k):
    """Recall and NDCG of one ranked list, computed by loops."""
    gains = [1 / math.log2(rank + 2) for rank, item in enumerate(items[:k]) if item in relevant]
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(relevant))))
    return len(gains) / len(relevant), sum(gains) / ideal


# ---------------------------------------------------------------- reports


def run_report(root, *flags):
    """Run report.py on the runs below root, with its output in "out" beside root. Returns the exit code."""
    return report.main([str(root), "--output", str(root.parent / "out"), *flags])


def read_table(root, slug):
    """Rows of a CSV file that run_report wrote, as dicts."""
    with open(root.parent / "out" / f"{slug}.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_page(root):
    """The HTML page that run_report wrote, as text."""
    return (root.parent / "out" / "report.html").read_text()


def check_figure(root, slug):
    """Check that run_report wrote a figure as PDF and as an image that is not blank."""
    from PIL import Image

    path = root.parent / "out" / slug
    assert path.with_name(path.name + ".pdf").read_bytes()[:5] == b"%PDF-"
    with Image.open(path.with_name(path.name + ".png")) as image:
        assert min(image.size) > 300
        assert len(image.convert("RGB").getcolors(10**6)) > 50


class Page(html.parser.HTMLParser):
    """Tags and texts of an HTML page; fails if a tag is not closed or closed out of order."""

    VOID_TAGS = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open_tags, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open_tags

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID_TAGS:
            self.open_tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
