"""Why an item is in a list: the parts of its score, and the items of the user that speak most for it.

    explainer = make_explainer(model, dataset)
    why = explainer.explain(user, items)
    why.parts["text"]     # [k] what the text of each item adds to its score; the parts sum to the scores
    why.because[0]        # [(item of the user, what it adds to the score of items[0]), ...], largest first

    score(u, i) = sum over parts p of user[u] . item_p[i]  +  factor * sum over j in train(u) of W[j, i]

The first terms are exact because a model's item vector is the sum of its parts (Recommender.item_parts); the
last is the evidence (Recommender.item_weights). With --neighbour_scale spread, both are divided by their
standard deviations over all items, as in the score.

What item j of the user adds to the score of i is factor * W[j, i], and the part of the user's vector that
comes from j, times the vector of i (Recommender.history_part). The second is exact for LightGCN and models on
it whose user vectors are a sum over the user's items and a rest. For other models it is an estimate: the
score of i for a user with item j alone, divided by the number of the user's items.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import torch

from dataloader import Dataset
from layers.sparse import to_scipy
from models.base import Recommender
from recommending.requests import items_of_splits

BECAUSE = 3  # items of the user that are named for each item, at most

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why a user is shown k items.

    The scores are those of the ranking, which computes in float32, in float64.
    """

    scores: Array  # [k]
    parts: dict[str, Array]  # name -> [k]: they sum to the scores
    because: list[list[tuple[int, float]]]  # for each item the user's items that add most, and how much


@dataclasses.dataclass(frozen=True)
class Explainer:
    """The vectors and weights behind a model's scores, in float64."""

    user: Array  # [U, d]
    item: Array  # [I, d]
    parts: dict[str, Array]  # name -> [I, d]: they sum to the item vectors
    history: sp.csr_matrix  # [U, I]: for TRAIN items the share of `reach` that a user's vector has of them
    reach: Array  # [I, d]
    weights: sp.csr_matrix | None  # W [I, I]
    factor: float
    spread: bool

    @property
    def names(self) -> list[str]:
        """Names of the parts of a score."""
        return [*self.parts, *(["evidence"] if self.weights is not None else [])]

    def explain(self, user: int, items: Sequence[int]) -> Explanation:
        """Why these items are shown to a user; all are given by their numbers."""
        chosen, entries = np.asarray(items, dtype=np.int64), slice(*self.history.indptr[user : user + 2])
        own, share = self.history.indices[entries], self.history.data[entries]
        scale, factor = self.scales(user, own)
        vector, item = scale * self.user[user], self.item[chosen]
        scores, adds = item @ vector, scale * share[:, None] * (self.reach[own] @ item.T)
        parts = {name: vectors[chosen] @ vector for name, vectors in self.parts.items()}
        if self.weights is not None:
            evidence = factor * entries_at(self.weights, own, chosen)
            parts["evidence"] = evidence.sum(0)
            scores, adds = scores + parts["evidence"], adds + evidence
        return Explanation(scores, parts, [largest(own, column) for column in adds.T])

    def scales(self, user: int, own: Array) -> tuple[float, float]:
        """Factors of the vectors' part and of the evidence in the score of a user with these TRAIN items."""
        if self.weights is None or not self.spread:
            return 1.0, self.factor
        terms = self.item @ self.user[user], np.asarray(self.weights[own].sum(0)).ravel()
        vectors, evidence = (max(float(np.std(term, ddof=1)), 1e-12) for term in terms)
        return 1.0 / vectors, self.factor / evidence


def entries_at(matrix: sp.csr_matrix, rows: Array, columns: Array) -> Array:
    """The entries of a sparse matrix in these rows and columns, dense: [rows, columns]."""
    shape = len(rows), len(columns)
    if not len(rows):  # scipy's answer to no entry has another shape
        return np.zeros(shape)
    return np.asarray(matrix[np.repeat(rows, shape[1]), np.tile(columns, shape[0])]).reshape(shape)


def largest(own: Array, adds: Array) -> list[tuple[int, float]]:
    """The items of a user [n] that add most [n], if anything, and how much: BECAUSE pairs at most."""
    order = np.argsort(-adds, kind="stable")[:BECAUSE]
    return [(int(own[i]), float(adds[i])) for i in order if adds[i] > 0]


@torch.inference_mode()
def make_explainer(model: Recommender, dataset: Dataset) -> Explainer:
    """The explainer of a model in eval mode, for the users of its dataset."""
    data = dataset.interactions
    user, item = model.final_vectors()
    history = items_of_splits(data, ("train",), (len(user), len(item)))
    part = model.history_part() if describes_vectors(model, "history_part") else None
    if part is None:
        single = sp.identity(len(item), np.float32, format="csr")
        reach, _ = model.new_user_vectors(single, item)
        share = sp.diags(1 / np.maximum(history.sum(1).A1, 1)) @ history
    else:
        reach, share = part.vectors, history.multiply(part.weights)
    weights = model.item_weights()
    parts = {
        name: as_array(vectors) for name, vectors in final_parts(model, item).items() if vectors.shape[1]
    }
    return Explainer(
        as_array(user),
        as_array(item),
        parts,
        history=same_pattern(history, share.tocsr()),
        reach=as_array(reach),
        weights=None if weights is None else to_scipy(weights.matrix).astype(np.float64),
        factor=1.0 if weights is None else weights.factor,
        spread=weights is not None and weights.spread,
    )


def final_parts(model: Recommender, item: torch.Tensor) -> dict[str, torch.Tensor]:
    """The parts of the final item vectors [I, d]; what is made of features for held-out items is "cold"."""
    parts, cold = model.item_parts(), model.cold_items
    own = model.embeddings()[1]
    if not torch.allclose(sum(parts.values(), torch.zeros_like(own)), own, rtol=1e-3, atol=1e-4):
        parts = {"vectors": own}  # a subclass has other vectors than the class whose parts these are
    if len(cold):
        parts = {name: vectors.index_fill(0, cold, 0) for name, vectors in parts.items()}
        parts["cold"] = torch.zeros_like(item).index_copy_(0, cold, item[cold])
    return parts


def describes_vectors(model: Recommender, method: str) -> bool:
    """Whether a method is defined by the class that defines the vectors, or below it.

    A class of the user's own may inherit the method and replace `embeddings`.
    """
    classes = type(model).__mro__
    first, vectors = (
        next(n for n, cls in enumerate(classes) if name in vars(cls)) for name in (method, "embeddings")
    )
    return first <= vectors


def same_pattern(pattern: sp.csr_matrix, values: sp.csr_matrix) -> sp.csr_matrix:
    """The values at the entries of a pattern of the same shape, zeros included."""
    rows = np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr))
    data = np.asarray(values[rows, pattern.indices], dtype=np.float64).ravel()
    return sp.csr_matrix((data, pattern.indices, pattern.indptr), pattern.shape)


def as_array(tensor: torch.Tensor) -> Array:
    """A tensor as an array of float64."""
    return tensor.double().cpu().numpy()
