"""Reference implementations of ranking and metrics: loops over users and ranks in Python floats."""

import math

from small_runs import METRICS


def items_of(pairs, user):
    """The items of a user in (user, item) pairs."""
    return {int(i) for u, i in pairs if u == user}


def naive_top(scores, masked, k):
    """The k best items that are not masked; of equal scores, the lower item first."""
    candidates = (item for item in range(len(scores)) if item not in masked)
    return sorted(candidates, key=lambda item: -scores[item])[:k]


def naive_metrics(user, item, relevant, masked, ks):
    """{"recall@3": mean over the users with relevant items, ...}. relevant, masked: (user, item) pairs."""
    user, item, sums = user.double().tolist(), item.double().tolist(), {}
    users = sorted({int(u) for u, _ in relevant})
    for u in users:
        wanted, hidden = items_of(relevant, u), items_of(masked, u)
        scores = [sum(x * y for x, y in zip(user[u], row)) for row in item]
        for k in ks:
            hits = [int(i in wanted) for i in naive_top(scores, hidden, k)]
            best = min(len(wanted), k)
            gain = sum(hit / math.log2(rank + 2) for rank, hit in enumerate(hits))
            ideal = sum(1 / math.log2(rank + 2) for rank in range(best))
            precisions = [sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit]
            values = (
                sum(hits) / len(wanted),
                gain / ideal,
                sum(hits) / k,
                sum(precisions) / best,
                float(any(hits)),
            )
            for name, value in zip(METRICS, values):
                sums[f"{name}@{k}"] = sums.get(f"{name}@{k}", 0) + value / len(users)
    return sums


def naive_ranks(scores, row, column, k):
    """Rank, at most k, of each entry in its row; of equal scores, the lower column comes first."""
    ranks = []
    for r, c in zip(row.tolist(), column.tolist()):
        own = scores[r][c]
        before = sum(score > own or (score == own and j < c) for j, score in enumerate(scores[r]))
        ranks.append(min(before, k))
    return ranks
