"""What is asked for, on original ids: users and items that a flag names, histories of new users."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from data.formats import Interactions, read_lines
from utils import UserError


def indices_of(asked: str | Sequence[str], index: dict[str, int], flag: str) -> list[int]:
    """Indices of the ids in a list or that a flag names: ID,ID,... or a file with one a line.

    Raises UserError for an unknown id, or if there is none.
    """
    if isinstance(asked, str):
        ids = read_lines(asked) if os.path.isfile(asked) else asked.split(",")
    else:
        ids = list(asked)
    ids = list(dict.fromkeys(filter(None, ids)))
    if not ids:
        raise UserError(f"{flag} {str(asked)[:60]}: names no id; give ID,ID,... or a file with one a line")
    unknown = [name for name in ids if name not in index]
    if unknown:
        raise UserError(
            f"{flag}: {len(unknown)} of {len(ids)} ids are not in the data, the first is "
            f"'{unknown[0][:40]}'; give "
            "original ids"
        )
    return [index[name] for name in ids]


def read_histories(path: str, index: dict[str, int]) -> tuple[list[str], sp.csr_matrix]:
    """User names and their items [n, I] sparse 0/1 from lines 'user item item ...' of original ids.

    Words are separated by tabs or, in a line without tabs, by spaces. Raises UserError for an unknown item, a
    user without items, or a repeated user.
    """
    histories: dict[str, list[int]] = {}
    for number, line in enumerate(read_lines(path), 1):
        name, *items = list(filter(None, line.split("\t") if "\t" in line else line.split())) or [""]
        unknown = next((item for item in items if item not in index), None)
        reason = ""
        if unknown is not None:
            reason = f"item '{unknown[:40]}' is not in the data"
        elif name in histories or (name and not items):
            reason = f"user '{name[:40]}' occurs twice or has no item"
        if reason:
            raise UserError(
                f"{path}, line {number}: {reason}; write 'user item item ...' with original ids, a user a "
                "line"
            )
        if name:
            histories[name] = sorted({index[item] for item in items})
    if not histories:
        raise UserError(f"{path}: has no user; write 'user item item ...' with original ids, a user a line")
    ends = np.cumsum([0, *map(len, histories.values())])
    columns = np.concatenate(list(histories.values()))
    values = np.ones(len(columns), np.float32)
    return list(histories), sp.csr_matrix((values, columns, ends), (len(histories), len(index)))


def items_of_splits(data: Interactions, splits: Sequence[str], shape: tuple[int, int]) -> sp.csr_matrix:
    """The interactions of some splits as a sparse 0/1 matrix; shape: at least [U, I]."""
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *(getattr(data, split) for split in splits)])
    return sp.csr_matrix((np.ones(len(pairs), np.float32), (pairs[:, 0], pairs[:, 1])), shape)
