"""Top-K lists and similar items, ranked as the evaluation does."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
import torch

from dataloader import Dataset, HeldOut, Rows
from models.base import Recommender
from recommending.flags import parse_splits
from recommending.requests import indices_of, items_of_splits, read_histories
from recommending.trained import tell
from recommending.vectors import Vectors
from recommending.writers import Lists, TopList
from training.ranking import rank_items
from training.scoring import Scorer
from utils import UserError
from world import Config


def top_lists(scorer: Scorer, seen: sp.csr_matrix, k: int, chunk: int) -> Iterator[tuple[int, list[TopList]]]:
    """The best k items of every user without those seen [n, I], by chunks: (first user, a list for each).

    A user with fewer than k other items gets those.
    """
    device, n_items = scorer.item.device, len(scorer.item)
    nothing = torch.zeros(len(scorer.user) + 1, dtype=torch.int64, device=device)
    split = HeldOut(
        torch.arange(len(scorer.user), device=device), (nothing, nothing[:0]), to_rows(seen, device)
    )
    for start, stop, top, scores in rank_items(scorer, split, k, chunk):
        lengths = np.minimum(n_items - np.diff(seen.indptr)[start:stop], k)
        rows = zip(top.tolist(), scores.tolist(), lengths, strict=True)
        yield start, [(items[:n], values[:n]) for items, values, n in rows]


def to_rows(matrix: sp.csr_matrix, device: torch.device) -> Rows:
    """The non-zero columns of each row of a sparse matrix."""
    crow, columns = (torch.as_tensor(part, dtype=torch.int64) for part in (matrix.indptr, matrix.indices))
    return crow.to(device), columns.to(device)


def make_lists(
    args: argparse.Namespace, vectors: Vectors, model: Recommender, dataset: Dataset, config: Config
) -> Lists:
    """The lists that parsed arguments ask for."""
    n_items, index = len(vectors.item), {name: number for number, name in enumerate(vectors.item_ids)}
    weights = vectors.weights
    user, item, columns, data = vectors.user, vectors.item, ("user", "item"), dataset.interactions
    if args.topk > n_items:
        raise UserError(f"--topk {args.topk}: there are only {n_items} items; give a smaller K")
    if args.similar_items:
        chosen = indices_of(args.similar_items, index, "--similar_items")
        columns = ("item", "similar_item")
        # Cosines of vectors and sums of weights have different scales: one of them decides.
        if args.similar_by == "vectors" and item.shape[1]:
            item, weights = torch.nn.functional.normalize(item, dim=1), None
        elif weights is None:
            raise UserError(
                "--similar_by weights: this run has no weights between items; take vectors, or a run "
                "with --neighbour_weight"
            )
        else:
            item = item[:, :0]
        user, names = item[chosen], [vectors.item_ids[number] for number in chosen]
        ones = np.ones(len(chosen), np.float32)
        seen = sp.csr_matrix((ones, (range(len(chosen)), chosen)), (len(chosen), n_items))
        history = seen[:, : vectors.n_known]
    elif args.new_users:
        known = {name: index[name] for name in vectors.item_ids[: vectors.n_known]}
        names, history = read_histories(args.new_users, known)
        user, notes = model.new_user_vectors(history, item[: vectors.n_known])
        for note in notes:
            tell(note)
        seen = history.copy()
        seen.resize(len(names), n_items)
    else:
        names = vectors.user_ids
        history = items_of_splits(data, ("train",), (len(user), vectors.n_known))
        seen = items_of_splits(data, parse_splits(args.exclude, config), (len(user), n_items))
        if args.users:
            chosen = indices_of(args.users, {name: number for number, name in enumerate(names)}, "--users")
            user, seen, history = user[chosen], seen[chosen], history[chosen]
            names = [names[number] for number in chosen]
    scorer = Scorer(user, item, weights, to_rows(history.tocsr(), item.device))
    return Lists(
        columns,
        names,
        vectors.item_ids,
        vectors.titles,
        top_lists(scorer, seen, args.topk, config.eval_chunk),
    )
