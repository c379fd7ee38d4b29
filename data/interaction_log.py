"""Interactions of a raw table: read with any ids, deduplicated and filtered.

log = read_log("ratings_Baby.csv", {}, None, inputs={})
log = log.take(distinct_rows(log))
log = log.take(k_core(log.user, log.item, 5))
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data.raw import Inputs, tables
from utils import UserError


@dataclasses.dataclass(frozen=True)
class InteractionLog:
    """n interactions in the order of the file, with users and items as codes from 0."""

    user: np.ndarray  # [n] int64
    item: np.ndarray  # [n] int64
    rating: np.ndarray | None  # [n] float64
    time: np.ndarray | None  # [n] float64
    # Original ids: user_ids[code], item_ids[code].
    user_ids: list[str]
    item_ids: list[str]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> "InteractionLog":
        """The log of these rows (mask or positions), with codes by first appearance in them."""
        user, kept_users = pd.factorize(self.user[rows])
        item, kept_items = pd.factorize(self.item[rows])
        return InteractionLog(
            user,
            item,
            rating=None if self.rating is None else self.rating[rows],
            time=None if self.time is None else self.time[rows],
            user_ids=[self.user_ids[code] for code in kept_users],
            item_ids=[self.item_ids[code] for code in kept_items],
        )


def read_log(
    path: str | Path, wanted: Mapping[str, str | None], columns: Sequence[str] | None, inputs: Inputs
) -> InteractionLog:
    """Read a table of interactions, with codes by first appearance. For the arguments see raw.tables.

    Raises UserError for a table without rows.
    """
    codes: dict[str, dict[str, int]] = {"user": {}, "item": {}}
    parts: list[dict[str, np.ndarray]] = []
    for _, frame in tables(path, wanted, columns, inputs):
        for role, known in codes.items():
            local, names = pd.factorize(frame[role])
            frame[role] = np.array([known.setdefault(name, len(known)) for name in names], np.int64)[local]
        parts.append({role: frame[role].to_numpy() for role in frame})
    if not sum(len(part["user"]) for part in parts):
        raise UserError(f"{path}: holds no interactions")
    whole = {role: np.concatenate([part[role] for part in parts]) for role in parts[0]}
    return InteractionLog(
        whole["user"].astype(np.int64),
        whole["item"].astype(np.int64),
        whole.get("rating"),
        whole.get("time"),
        list(codes["user"]),
        list(codes["item"]),
    )


def distinct_rows(log: InteractionLog) -> np.ndarray:
    """Positions of one interaction per (user, item) pair, in the order in which the pairs first appear.

    The earliest of each pair is kept; without times, the first in the file.
    """
    pair = log.user * len(log.item_ids) + log.item
    _, first = np.unique(pair, return_index=True)
    if log.time is None:
        return np.sort(first)
    order = np.argsort(log.time, kind="stable")
    _, earliest = np.unique(pair[order], return_index=True)
    return order[earliest][np.argsort(first)]


def k_core(user: np.ndarray, item: np.ndarray, k: int) -> np.ndarray:
    """Mask [n] of the k-core: users and items with fewer than k interactions are dropped repeatedly."""
    keep = np.ones(len(user), bool)
    while True:
        user_kept = np.bincount(user[keep], minlength=user.max() + 1) >= k
        item_kept = np.bincount(item[keep], minlength=item.max() + 1) >= k
        smaller = keep & user_kept[user] & item_kept[item]
        if smaller.sum() == keep.sum():
            return keep
        keep = smaller
