"""Top-K lists and similar items, ranked as the evaluation does."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse as sp
import torch

from dataloader import Dataset, HeldOut, Rows
from models.base import ItemWeights, Recommender
from recommending.explanations import make_explainer
from recommending.flags import SIMILAR_BY, parse_splits
from recommending.requests import indices_of, items_of_splits, read_histories
from recommending.trained import tell
from recommending.vectors import Vectors
from recommending.writers import Lists, TopList, Why
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


@dataclasses.dataclass(frozen=True)
class Request:
    """What lists are wanted; the same as the flags of recommend.py, in which ids are one text."""

    topk: int = 20
    users: str | Sequence[str] | None = None  # None or "": all
    new_users: str = ""
    similar_items: str | Sequence[str] = ""
    similar_by: str = "vectors"
    exclude: str = ""
    explain: bool = False

    def __post_init__(self) -> None:
        if self.topk < 1:
            raise UserError(f"--topk {self.topk}: must be at least 1")
        if self.similar_by not in SIMILAR_BY:
            raise UserError(f"--similar_by {self.similar_by}: choose from {', '.join(SIMILAR_BY)}")


@dataclasses.dataclass(frozen=True)
class Query:
    """Who or what n lists are for."""

    names: list[str]
    user: torch.Tensor  # [n, d]
    history: sp.csr_matrix  # [n, I], the items that item weights apply to
    seen: sp.csr_matrix  # [n, items], those left out
    numbers: list[int] | None = None  # of the users, if they were in training


def make_lists(
    args: argparse.Namespace | Request,
    vectors: Vectors,
    model: Recommender,
    dataset: Dataset,
    config: Config,
) -> Lists:
    """The lists that parsed arguments or a request ask for."""
    if args.topk > len(vectors.item):
        raise UserError(f"--topk {args.topk}: there are only {len(vectors.item)} items; give a smaller K")
    item, weights, columns = vectors.item, vectors.weights, ("user", "item")
    if args.similar_items != "":
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
        query = items_query(args.similar_items, vectors, item)
    elif args.new_users:
        query = new_users_query(args.new_users, vectors, model)
    else:
        index = {name: number for number, name in enumerate(vectors.user_ids)}
        asked = vectors.user_ids if args.users is None or args.users == "" else args.users
        users = indices_of(asked, index, "--users")
        query = users_query(users, parse_splits(args.exclude, config), vectors, dataset)
    scorer = list_scorer(query, item, weights)
    chunks = top_lists(scorer, query.seen, args.topk, config.eval_chunk)
    if args.similar_items != "" and weights is not None:
        chunks = with_weights(chunks)
    why = None
    if args.explain:
        explainer, numbers = make_explainer(model, dataset), typing.cast("list[int]", query.numbers)
        why = Why(explainer.names, lambda row, items: explainer.explain(numbers[row], items))
    return Lists(columns, query.names, vectors.item_ids, vectors.titles, chunks, why)


def with_weights(chunks: Iterator[tuple[int, list[TopList]]]) -> Iterator[tuple[int, list[TopList]]]:
    """The lists of top_lists without items that have no weight, or a negative one; notes those left empty."""
    empty = 0
    for start, lists in chunks:
        lengths = [sum(score > 0 for score in scores) for _, scores in lists]
        empty += lengths.count(0)
        yield start, [(items[:n], scores[:n]) for (items, scores), n in zip(lists, lengths, strict=True)]
    if empty:
        tell(f"note: {empty} items have no weights to others; their lists are empty")


def items_query(asked: str | Sequence[str], vectors: Vectors, item: torch.Tensor) -> Query:
    """Lists for items, each without itself."""
    index = {name: number for number, name in enumerate(vectors.item_ids)}
    chosen = indices_of(asked, index, "--similar_items")
    ones = np.ones(len(chosen), np.float32)
    seen = sp.csr_matrix((ones, (range(len(chosen)), chosen)), (len(chosen), len(item)))
    names = [vectors.item_ids[number] for number in chosen]
    return Query(names, item[chosen], seen[:, : vectors.n_known], seen)


def new_users_query(path: str, vectors: Vectors, model: Recommender) -> Query:
    """Lists for users that a file gives the items of, without these."""
    known = vectors.item_ids[: vectors.n_known]
    names, history = read_histories(path, {name: number for number, name in enumerate(known)})
    user, notes = model.new_user_vectors(history, vectors.item[: vectors.n_known])
    for note in notes:
        tell(note)
    seen = history.copy()
    seen.resize(len(names), len(vectors.item))
    return Query(names, user, history, seen)


def users_query(users: Sequence[int], exclude: Sequence[str], vectors: Vectors, dataset: Dataset) -> Query:
    """Lists for users of the run, given by their numbers, without their items of these splits."""
    data, n_users, chosen = dataset.interactions, len(vectors.user), list(users)
    history = items_of_splits(data, ("train",), (n_users, vectors.n_known))
    seen = items_of_splits(data, exclude, (n_users, len(vectors.item)))
    names = [vectors.user_ids[number] for number in chosen]
    return Query(names, vectors.user[chosen], history[chosen], seen[chosen], chosen)


def list_scorer(query: Query, item: torch.Tensor, weights: ItemWeights | None) -> Scorer:
    """The scorer of a query's lists."""
    return Scorer(query.user, item, weights, to_rows(query.history, item.device))
