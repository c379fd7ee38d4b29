"""Test whether the rows of a feature matrix are in the order of the ids.

    fits = measure_fit(features, usable, history, seed=2025)
    verdict, reason = judge(fits)                              # "pass", "fail" or "unknown"

If features belong to their ids, the nearest neighbours of an item by features share more users with it than
other items do. The statistic is S, the mean over items i and their 10 nearest neighbours j of cos(users of i,
users of j). Its null distribution comes from permuting the users' histories among the items, with the
neighbour graph fixed. Users and their features are tested in the same way. data/check.py describes the
thresholds.
"""

import dataclasses
import math

import numpy as np
import scipy.sparse as sp
import torch

from data.progress import progress_bar

N_NEIGHBOURS = 10
N_PERMUTATIONS = 100
SHIFTS = (-3, -2, -1, 1, 2, 3)
# Ranges of rows that are tested separately, to find a file of which only a part is out of order.
N_RANGES = 5
# With fewer rows the test says nothing.
MIN_ROWS = 100
# A lift that correct features of any use exceed.
MIN_LIFT = 1.5
# Standard deviations of the null distribution that count as evidence.
MIN_Z = 4.0
# Limits of the neighbour search: rows whose neighbours are searched, and multiplications spent on them.
MAX_QUERIES = 4000
MAX_MULTIPLICATIONS = 2.5e11


@dataclasses.dataclass(frozen=True)
class Fit:
    """Result of the permutation test over the rows from `first` to `last`."""

    first: int
    last: int
    # The statistic relative to its mean under the null.
    lift: float
    # Standard deviation of the lift under the null.
    error: float
    # One-sided permutation p-value.
    p: float
    # Shift of the rows under which they fit significantly better; 0 for none.
    shift: int

    @property
    def z(self) -> float:
        """Distance of the lift from 1 in standard deviations of the null."""
        return (self.lift - 1) / self.error


def unit_rows(features: np.ndarray, rows: np.ndarray, block: int = 4096) -> torch.Tensor:
    """The given rows scaled to length 1: float32 [len(rows), dim]."""
    unit = torch.empty(len(rows), features.shape[1])
    for start in range(0, len(rows), block):
        part = np.asarray(features[rows[start : start + block]], dtype=np.float64)
        unit[start : start + block] = torch.from_numpy(part / np.linalg.norm(part, axis=1, keepdims=True))
    return unit


def neighbour_matrix(features: np.ndarray, rows: np.ndarray, queries: np.ndarray) -> sp.csr_matrix:
    """Sparse [len(queries), n] with 1 at the nearest other rows by cosine similarity.

    rows: the candidates; queries: ascending positions in `rows`.
    """
    unit = unit_rows(features, rows)
    k = min(N_NEIGHBOURS, len(rows) - 1)
    nearest = []
    blocks = torch.from_numpy(queries).split(256)
    for block in progress_bar(blocks, desc="neighbours", unit="block", leave=False, delay=2):
        similarity = unit[block] @ unit.T
        # A row must not become its own neighbour.
        similarity[torch.arange(len(block)), block] = -torch.inf
        nearest.append(rows[similarity.topk(k, dim=1).indices.numpy()])
    columns = np.concatenate(nearest)
    values = np.ones(columns.size, np.float32)
    positions = (np.repeat(np.arange(len(columns)), k), columns.ravel())
    return sp.csr_matrix((values, positions), (len(columns), len(features)))


def unit_history(history: sp.csr_matrix) -> sp.csr_matrix:
    """Histories, rows of zeros and ones, scaled to length 1; an empty one stays empty."""
    lengths = np.sqrt(np.maximum(np.diff(history.indptr), 1)).astype(history.dtype)
    return sp.diags_array(1 / lengths) @ history


def shared_history(neighbour_sum: sp.csr_matrix, own: sp.csr_matrix) -> np.ndarray:
    """[q] sums over the neighbours j of each query of cos(history of the query, history of j).

    neighbour_sum: sparse [q, others], summed histories of the neighbours; own: histories of the queries.
    Histories have length 1, so the cosine is their inner product.
    """
    return np.asarray(neighbour_sum.multiply(own).sum(axis=1)).ravel()


def permuted_sums(
    rng: np.random.Generator,
    neighbours: sp.csr_matrix,
    history: sp.csr_matrix,
    rows: np.ndarray,
    queries: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Two samples of the null distribution, each [permutations, q].

    The first permutes all histories; it belongs to the test over all rows. The second keeps the query's own
    history and permutes only those of its neighbours; it belongs to the test over a range of rows, whose
    items may be more or less popular than the others.
    """
    own = history[queries]
    all_permuted, neighbours_permuted = [], []
    for _ in progress_bar(range(N_PERMUTATIONS), desc="permutations", leave=False, delay=2):
        owner = np.arange(history.shape[0])
        owner[rows] = rng.permutation(rows)
        permuted = history[owner]
        neighbour_sum = neighbours @ permuted
        all_permuted.append(shared_history(neighbour_sum, permuted[queries]))
        # Where a neighbour received the query's own history, their cosine is trivially 1.
        n_own = (owner[neighbours.indices].reshape(len(queries), -1) == queries[:, None]).sum(axis=1)
        neighbours_permuted.append(shared_history(neighbour_sum, own) - n_own)
    return np.array(all_permuted), np.array(neighbours_permuted)


def shifted_sums(
    neighbours: sp.csr_matrix, history: sp.csr_matrix, queries: np.ndarray
) -> dict[int, np.ndarray]:
    """{shift: [q] shared histories if row r held the features of id r + shift}."""
    n, sums = history.shape[0], {}
    for shift in SHIFTS:
        shifted = history[(np.arange(n) + shift) % n]
        sums[shift] = shared_history(neighbours @ shifted, shifted[queries])
    return sums


def make_fit(
    queries: np.ndarray, observed: np.ndarray, null: np.ndarray, shifted: dict[int, np.ndarray]
) -> Fit:
    """The Fit over some queries, from sums of shared_history: [q], [permutations, q] and {shift: [q]}."""
    total, null_totals = observed.sum(), null.sum(axis=1)
    mean, error = null_totals.mean(), np.inf
    # Without variance under the null (all items share all users, or none share any) there is no evidence.
    if mean and null_totals.std():
        error = null_totals.std() / mean
    t_values = {}
    for shift, sums in shifted.items():
        gain = sums - observed
        t_values[shift] = gain.mean() / (gain.std() / math.sqrt(len(gain)) or np.inf)
    best = max(t_values, key=lambda shift: t_values[shift])
    return Fit(
        first=int(queries[0]),
        last=int(queries[-1]),
        lift=total / mean if mean else 1.0,
        error=error,
        p=(1 + (null_totals >= total).sum()) / (1 + len(null)),
        # One standard deviation more than usual, because this is the best of several shifts.
        shift=best if t_values[best] > MIN_Z + 1 else 0,
    )


def measure_fit(
    features: np.ndarray, usable: np.ndarray, history: sp.csr_matrix, seed: int
) -> list[Fit] | None:
    """The Fit over all rows, then over each of N_RANGES ranges; None if there are fewer than MIN_ROWS rows.

    features: [n, dim]; usable: [n] bool, rows with features of their own; history: sparse 0/1 [n, others],
    the users of each item (or the items of each user).
    """
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(usable & (np.diff(history.indptr) > 0))
    if len(rows) < MIN_ROWS:
        return None
    max_rows = max(MAX_QUERIES, int(MAX_MULTIPLICATIONS / (MAX_QUERIES * features.shape[1])))
    rows = np.sort(rng.permutation(rows)[:max_rows])
    positions = np.sort(rng.permutation(len(rows))[:MAX_QUERIES])
    queries = rows[positions]
    neighbours = neighbour_matrix(features, rows, positions)
    history = unit_history(history)
    null, range_null = permuted_sums(rng, neighbours, history, rows, queries)
    observed = shared_history(neighbours @ history, history[queries])
    shifted = shifted_sums(neighbours, history, queries)

    def fit(part: np.ndarray, null: np.ndarray) -> Fit:
        shifted_part = {shift: sums[part] for shift, sums in shifted.items()}
        return make_fit(queries[part], observed[part], null[:, part], shifted_part)

    everything = np.arange(len(queries))
    return [fit(everything, null), *(fit(part, range_null) for part in np.array_split(everything, N_RANGES))]


def judge(fits: list[Fit] | None) -> tuple[str, str]:
    """(verdict, reason) of the result of measure_fit; the verdict is 'pass', 'fail' or 'unknown'."""
    if fits is None:
        return "unknown", f"fewer than {MIN_ROWS} rows have features of their own and interactions"
    whole, *ranges = fits
    for fit in fits:
        if fit.shift:
            where = f"rows {fit.first} to {fit.last}"
            return "fail", f"row r seems to hold the features of id r {fit.shift:+d} in {where}"
    if whole.z >= MIN_Z:
        chance_limit = 1 + (max(fit.lift for fit in ranges) - 1) / 3
        bad = [fit for fit in ranges if fit.z < MIN_Z and fit.lift + MIN_Z * fit.error < chance_limit]
        if bad:
            where = " and ".join(f"rows {fit.first} to {fit.last} (lift {fit.lift:.2f})" for fit in bad)
            return "fail", f"{where} are no better than chance, while the others fit"
        return "pass", "neighbours by features share users or items"
    if whole.lift + MIN_Z * whole.error < MIN_LIFT:
        reason = "neighbours by features share no more than chance"
        return "fail", f"{reason}: rows in another order than the ids, or features without information"
    return "unknown", "too little data to decide"
