"""Ranking metrics at cut-offs K."""

from collections.abc import Sequence

import torch


def ranking_metrics(
    hits: torch.Tensor, n_relevant: torch.Tensor, ks: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Recall, NDCG, precision, MAP and hit rate at every K: {"recall@10": [n] float64, a value a user, ...}.

    hits: [n, K_max] bool, whether the item at each rank is relevant, best rank first; n_relevant: [n] int,
    relevant items of each user, at least 1; ks: cut-offs, each at most K_max.

    With R = n_relevant and rel(r) the hit at rank r, counted from 1: recall = sum rel / R; precision = sum
    rel / K; hitrate = any rel; ndcg = sum rel(r) / log2(r + 1), divided by its value for min(R, K) hits at
    the top (Jarvelin & Kekalainen 2002); map = sum rel(r) precision@r / min(R, K).
    """
    hits = hits.double()
    rank = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64, device=hits.device)
    discount = 1 / torch.log2(rank + 1)
    found = hits.cumsum(1)  # [n, K_max]
    gain = (hits * discount).cumsum(1)
    ideal = discount.cumsum(0)
    precision_sum = (hits * found / rank).cumsum(1)
    metrics = {}
    for k in ks:
        best = n_relevant.clamp(max=k)
        metrics[f"recall@{k}"] = found[:, k - 1] / n_relevant
        metrics[f"ndcg@{k}"] = gain[:, k - 1] / ideal[best - 1]
        metrics[f"precision@{k}"] = found[:, k - 1] / k
        metrics[f"map@{k}"] = precision_sum[:, k - 1] / best
        metrics[f"hitrate@{k}"] = (found[:, k - 1] > 0).double()
    return metrics
