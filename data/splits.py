"""Rules that assign each interaction to train, valid or test.

label = split(log, "mmrec", (0.1, 0.1), seed=2025)    # [n] with 0 train, 1 valid, 2 test
"""

from collections.abc import Callable, Sequence

import numpy as np

from data.formats import SPLITS
from data.interaction_log import InteractionLog
from utils import UserError

TRAIN, VALID, TEST = range(3)

# (log, generator, (share of valid, share of test[, share of cold items])) -> labels [n].
Rule = Callable[[InteractionLog, np.random.Generator, Sequence[float]], np.ndarray]


def rank_per_user(user: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each interaction among those of its user, in the given order, and their number.

    user, order, and both results: [n] int64.
    """
    count = np.bincount(user)
    by_user = order[np.argsort(user[order], kind="stable")]
    rank = np.empty(len(user), np.int64)
    rank[by_user] = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    return rank, count[user]


def split_mmrec(log: InteractionLog, rng: np.random.Generator, shares: Sequence[float]) -> np.ndarray:
    """MMRec's rule, for each user with n shuffled interactions.

    n < 3: all train. n < 10: one for valid and one for test. Else floor(n / 5) are held out, floor(half) of
    them for valid and the rest for test.
    """
    rank, n = rank_per_user(log.user, rng.permutation(len(log)))
    held_out = np.where(n < 10, 2, n // 5)
    held_out[n < 3] = 0
    return np.where(rank >= held_out, TRAIN, np.where(rank < held_out // 2, VALID, TEST))


def split_random(log: InteractionLog, rng: np.random.Generator, shares: Sequence[float]) -> np.ndarray:
    """floor(share * n) interactions each for valid and test, drawn over all users."""
    return random_labels(len(log), rng, shares)


def random_labels(n: int, rng: np.random.Generator, shares: Sequence[float]) -> np.ndarray:
    """Labels [n] of the rule `random` for n interactions."""
    n_valid, n_test = (int(share * n) for share in shares)
    label = np.repeat([VALID, TEST, TRAIN], [n_valid, n_test, n - n_valid - n_test])
    return label[rng.permutation(n)]


def split_leave_one_out(log: InteractionLog, rng: np.random.Generator, shares: Sequence[float]) -> np.ndarray:
    """Each user's last interaction is test, the one before it valid; users with fewer than 3 are all train.

    Equal times are in the order of the file; without times the order is random.
    """
    order = rng.permutation(len(log)) if log.time is None else np.argsort(log.time, kind="stable")
    rank, n = rank_per_user(log.user, order)
    n_later = np.where(n < 3, n, n - 1 - rank)
    return np.select([n_later == 0, (n_later == 1) & (n >= 3)], [TEST, VALID], TRAIN)


def split_temporal(log: InteractionLog, rng: np.random.Generator, shares: Sequence[float]) -> np.ndarray:
    """Two cuts in time for all users: train before the first, test from the second on.

    Equal times stay together.
    """
    if log.time is None:
        raise UserError("--split temporal: the table has no times; name their column with --time_column")
    times = np.sort(log.time)
    # A share that rounding would take for 0 is one interaction.
    starts = (min(int(len(times) * (1 - share)), len(times) - 1) for share in (sum(shares), shares[1]))
    valid_start, test_start = times[list(starts)]
    return (log.time >= valid_start).astype(np.int64) + (log.time >= test_start)


def split_cold(log: InteractionLog, rng: np.random.Generator, shares: Sequence[float]) -> np.ndarray:
    """A share of the items is held out entirely, half of them (floor) for valid and the others for test.

    The interactions with the other items are split at random, as by split_random.
    """
    n_items = len(log.item_ids)
    n_cold = int(shares[2] * n_items)
    order = rng.permutation(n_items)
    label = np.full(n_items, -1)
    label[order[:n_cold]] = TEST
    label[order[: n_cold // 2]] = VALID
    label = label[log.item]
    warm = np.flatnonzero(label < 0)
    label[warm] = random_labels(len(warm), rng, shares[:2])
    return label


RULES: dict[str, Rule] = {
    "mmrec": split_mmrec,
    "random": split_random,
    "leave_one_out": split_leave_one_out,
    "temporal": split_temporal,
    "cold": split_cold,
}


def split(log: InteractionLog, rule: str, shares: Sequence[float], seed: int) -> np.ndarray:
    """Labels [n] int64: 0 train, 1 valid, 2 test.

    shares: of valid and test, for the rules random, temporal and cold, then of cold items, for the last.
    Raises UserError if a split is left empty.
    """
    label = RULES[rule](log, np.random.default_rng(seed), shares)
    for name, count in zip(SPLITS, np.bincount(label, minlength=3)):
        if not count:
            n_times = "no" if log.time is None else len(np.unique(log.time))
            remedy = "some users need 3 interactions"
            if rule in ("random", "temporal", "cold"):
                remedy = "change --valid_share or --test_share"
            raise UserError(
                f"--split {rule}: leaves the {name} split empty ({len(log)} interactions of "
                f"{len(log.user_ids)} users, {n_times} different times); {remedy}"
            )
    return label
