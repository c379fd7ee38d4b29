"""Ranked test lists of runs, user by user and item by item."""

import dataclasses
import zipfile

import numpy as np
import torch
from tqdm import tqdm

from training.metrics import ranking_metrics
from training.ranking import row_numbers
from utils import UserError

ITEM_BINS = ("head", "middle", "tail", "cold")


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What the ranked test lists of a run say, for n users.

    users, history (train items): [n]; values: {"recall@10": [n] float64, ...}; found: {K: [4] recommended relevant pairs by
    item bin}; relevant, items: [4] relevant pairs and items by item bin.
    """

    users: np.ndarray
    history: np.ndarray
    values: dict
    found: dict
    relevant: np.ndarray
    items: np.ndarray


def item_bins(popularity):
    """Train interactions of every item [I] -> 0 head, 1 middle, 2 tail, 3 cold.

    Items in falling order of popularity: head until half of all interactions are reached, middle until four fifths, tail
    the rest; cold: no train interaction.
    """
    order = np.argsort(-popularity, kind="stable")
    before = (np.cumsum(popularity[order]) - popularity[order]) / max(popularity.sum(), 1)
    bins = np.empty(len(popularity), dtype=np.int64)
    bins[order] = (before >= 0.5).astype(int) + (before >= 0.8)
    bins[popularity == 0] = 3
    return bins


def history_bins(history):
    """Lengths [n] -> bin of each [n] at the quartiles, and the bins' names; equal lengths share a bin, so there may be fewer."""
    edges = np.unique(np.quantile(history, [0.25, 0.5, 0.75]))
    _, bins = np.unique(np.searchsorted(edges, history), return_inverse=True)
    ends = [
        (history[bins == number].min(), history[bins == number].max()) for number in range(bins.max() + 1)
    ]
    return bins, [f"{low}" if low == high else f"{low}–{high}" for low, high in ends]


def read_ranking(run):
    """test_ranking.npz of a run -> Ranking, None where there is none. Raises UserError if it does not fit result.json."""
    path, ks = run.folder / "test_ranking.npz", sorted(run.config.topks)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            ranking = summarise(
                *(
                    file[name]
                    for name in ("users", "items", "relevant_crow", "relevant_items", "history", "popularity")
                ),
                ks,
            )
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: is damaged ({str(error).splitlines()[0][:80]}); remove it or leave this run out"
        ) from None
    for metric, values in ranking.values.items():
        if metric in run.result["test"] and not np.isclose(
            values.mean(), run.result["test"][metric], atol=1e-6
        ):
            raise UserError(
                f"{path}: gives {metric} {values.mean():.6f} where result.json says {run.result['test'][metric]:.6f}; "
                "they are not of one run: leave it out"
            )
    return ranking


def find_hits(top, relevant, n_items):
    """Which of the items [n, k] of each row are relevant: [n, k] bool. relevant: CSR (crow [n + 1], items)."""
    crow, items = relevant
    keys = row_numbers(crow, 0, len(top)) * n_items + items  # ascending
    wanted = torch.arange(len(top), device=top.device)[:, None] * n_items + top
    return keys[torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)] == wanted


def summarise(users, items, crow, relevant, history, popularity, ks):
    """The arrays of test_ranking.npz -> Ranking."""
    bins, crow = item_bins(popularity), torch.from_numpy(crow.astype(np.int64))
    hits = find_hits(
        torch.from_numpy(items.astype(np.int64)),
        (crow, torch.from_numpy(relevant.astype(np.int64))),
        len(popularity),
    )
    values = {metric: value.numpy() for metric, value in ranking_metrics(hits, crow.diff(), ks).items()}
    found = {k: np.bincount(bins[items[:, :k][hits[:, :k].numpy()]], minlength=4) for k in ks}
    return Ranking(
        users,
        history,
        values,
        found,
        np.bincount(bins[relevant], minlength=4),
        np.bincount(bins, minlength=4),
    )


def read_rankings(groups):
    """{(dataset, name): [Ranking, one a run]} of the Groups whose runs all have ranked lists."""
    rankings = {}
    for group in tqdm(groups, desc="ranked lists", unit="row", leave=False, delay=1):
        found = [read_ranking(run) for run in group.runs]
        if all(found):
            rankings[group.first.dataset, group.name] = found
    return rankings


def check_users(section, rankings):
    """Raise UserError if the ranked lists of a table are not of the same users."""
    lists = [
        (run.folder, ranking)
        for group in section
        if group.name in rankings
        for run, ranking in zip(group.runs, rankings[group.name])
    ]
    for folder, ranking in lists[1:]:
        if not (
            np.array_equal(ranking.users, lists[0][1].users)
            and np.array_equal(ranking.history, lists[0][1].history)
        ):
            raise UserError(f"{folder}: its test users are not those of {lists[0][0]}; leave one of them out")


def user_means(rankings, metric):
    """A metric of every user, averaged over the runs: [n]."""
    return np.mean([ranking.values[metric] for ranking in rankings], axis=0)
