"""Ranked test lists of runs (test_ranking.npz), evaluated per user and per item.

rankings = read_rankings(section)                    # {row label: one Ranking per seed}
user_means(rankings["RecGOAT"], "recall@20")         # [n users]
"""

import dataclasses
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from tqdm import tqdm

from reporting.groups import Section
from reporting.runs import Run
from training.metrics import ranking_metrics
from utils import UserError
from world import MODALITIES

ARRAYS = ("users", "items", "relevant_crow", "relevant_items", "history", "popularity")
QUALITY_BINS = ("low", "middle", "high", "none")
POPULARITY_GROUPS = 10
LIFTS = {f"lift_{m}": m for m in MODALITIES}


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Evaluation of the ranked test lists of one run, for n users.

    users, history_lengths: user ids and numbers of training items, [n].
    metrics: {"recall@10": [n] float64, ...}.
    hits: {K: [I]}, users for whom the item is relevant and in the top K.
    relevant, popularity: users for whom the item is relevant, and its training interactions, [I].
    lifts: {modality: [I]}, quality of the item's features where the run has stored it (training/quality.py).
    """

    users: np.ndarray
    history_lengths: np.ndarray
    metrics: dict[str, np.ndarray]
    hits: dict[int, np.ndarray]
    relevant: np.ndarray
    popularity: np.ndarray
    lifts: dict[str, np.ndarray]


# Rankings of the rows of a section, one per seed, by row label.
Rankings = Mapping[str, Sequence[Ranking]]


# ---------------------------------------------------------------- bins


def history_bins(lengths: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Split users at the quartiles of their history lengths [n].

    Returns the bin of each user [n] and the names of the bins. Users of equal length share a bin, so there
    may be fewer than four.
    """
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75]))
    _, bins = np.unique(np.searchsorted(edges, lengths), return_inverse=True)
    members = [lengths[bins == index] for index in range(bins.max() + 1)]
    ranges = [(inside.min(), inside.max()) for inside in members]
    return bins, [f"{low}" if low == high else f"{low}–{high}" for low, high in ranges]


def quality_bins(lift: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    """Assign each item to a third by the lift of its features [I]: an index into QUALITY_BINS, [I].

    Items without interactions in common with their neighbours are mostly unpopular ones, so items are ranked
    among those of similar popularity: in POPULARITY_GROUPS groups, ordered by training interactions, with
    equal shares of them. Equal lifts have the mean of their ranks. Items without a lift are in a bin of
    their own.
    """
    bins = np.full(len(lift), QUALITY_BINS.index("none"))
    known = np.flatnonzero(np.isfinite(lift) & (popularity > 0))
    order = known[np.argsort(popularity[known], kind="stable")]
    interactions = popularity[order]
    share = (np.cumsum(interactions) - interactions / 2) / max(interactions.sum(), 1)
    groups = (POPULARITY_GROUPS * share).astype(int)
    for group in np.unique(groups):
        members = order[groups == group]
        _, value, counts = np.unique(lift[members], return_inverse=True, return_counts=True)
        mean_rank = np.cumsum(counts) - counts / 2
        bins[members] = 3 * mean_rank[value] / len(members)
    return bins


# ---------------------------------------------------------------- reading


def read_ranking(run: Run) -> Ranking | None:
    """Read test_ranking.npz of a run; None if it has none. Raises UserError if it contradicts result.json."""
    path = run.folder / "test_ranking.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            lifts = [name for name in LIFTS if name in file]
            arrays = {name: file[name] for name in (*ARRAYS, *lifts)}
            ranking = evaluate_ranking(arrays, sorted(run.config.topks))
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0][:80]
        raise UserError(f"{path}: is damaged ({reason}); remove it or leave this run out") from None
    for metric in ranking.metrics.keys() & run.result["test"].keys():
        recomputed, stored = ranking.metrics[metric].mean(), run.result["test"][metric]
        if not np.isclose(recomputed, stored, atol=1e-6):
            raise UserError(
                f"{path}: yields {metric} {recomputed:.6f} but result.json has {stored:.6f}, so the files "
                "are not from the same run; leave this run out"
            )
    return ranking


def evaluate_ranking(arrays: dict[str, np.ndarray], ks: Sequence[int]) -> Ranking:
    """Evaluate the arrays of a test_ranking.npz at the cut-offs ks."""
    items, relevant = arrays["items"].astype(np.int64), arrays["relevant_items"].astype(np.int64)
    crow = arrays["relevant_crow"].astype(np.int64)
    counts = crow[1:] - crow[:-1]
    rows = np.arange(len(items))
    # A (row, item) pair as one integer, so that one set operation finds the hits of all users.
    n_items = len(arrays["popularity"])
    hits = np.isin(rows[:, None] * n_items + items, np.repeat(rows, counts) * n_items + relevant)
    metrics = ranking_metrics(torch.from_numpy(hits), torch.from_numpy(counts), ks)
    if max(items.max(), relevant.max()) >= n_items:
        raise IndexError(f"an item id is not below {n_items}, the number of items")
    lifts = {LIFTS[name]: array for name, array in arrays.items() if name in LIFTS}
    if any(lift.shape != (n_items,) or lift.dtype.kind != "f" for lift in lifts.values()):
        raise ValueError(f"a lift is not a list of {n_items} numbers")
    return Ranking(
        users=arrays["users"],
        history_lengths=arrays["history"],
        metrics={name: values.numpy() for name, values in metrics.items()},
        hits={k: np.bincount(items[:, :k][hits[:, :k]], minlength=n_items) for k in ks},
        relevant=np.bincount(relevant, minlength=n_items),
        popularity=arrays["popularity"],
        lifts=lifts,
    )


def read_rankings(section: Section) -> dict[str, list[Ranking]]:
    """Rankings of those rows of which every run has one. Raises UserError if their users or items differ."""
    rankings = {}
    for group in tqdm(section.groups, desc="ranked lists", unit="row", leave=False, delay=1, disable=None):
        found = [ranking for run in group.runs if (ranking := read_ranking(run)) is not None]
        if len(found) == len(group.runs):
            rankings[group.name] = found
    check_users(section, rankings)
    return rankings


def check_users(section: Section, rankings: Rankings) -> None:
    """Raise UserError unless all rankings are of the same users and items."""
    ranked = [
        (run.folder, ranking)
        for group in section.groups
        if group.name in rankings
        for run, ranking in zip(group.runs, rankings[group.name])
    ]
    for folder, ranking in ranked[1:]:
        first_folder, first = ranked[0]
        for name in ("users", "history_lengths", "popularity"):
            if not np.array_equal(getattr(ranking, name), getattr(first, name)):
                raise UserError(
                    f"{folder}: its test users or items differ from those of {first_folder}; leave one of "
                    "them out"
                )


def user_means(rankings: Sequence[Ranking], metric: str) -> np.ndarray:
    """A metric per user, averaged over runs: [n]."""
    return np.mean([ranking.metrics[metric] for ranking in rankings], axis=0)
