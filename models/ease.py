"""EASE: embarrassingly shallow autoencoders for sparse data (Steck 2019)."""

from __future__ import annotations

import typing

import numpy as np
import scipy.sparse as sp
import torch

from dataloader import Dataset
from models.item_model import ItemModel
from models.neighbours import keep_largest
from models.settings import EASE_SETTINGS
from utils import UserError
from world import Config

MAX_ITEMS = 30_000  # the dense matrices of more items take over 10 GB


class EASE(ItemModel):
    """Item weights B that reconstruct the TRAIN matrix X from itself, in closed form: no training.

    B minimises |X - X B|^2 + l2 |B|^2 with a zero diagonal: with P = (X'X + l2)^-1, B_ij = -P_ij / P_jj. Of
    each row the entries of largest magnitude are kept.
    """

    settings = EASE_SETTINGS

    def make_weights(self, config: Config, dataset: Dataset) -> sp.csr_matrix:
        """The weights that are kept. Raises UserError for more items than MAX_ITEMS."""
        data, own = dataset.interactions, vars(config)
        if data.n_items > MAX_ITEMS:
            raise UserError(
                f"--model ease: inverts a matrix of {data.n_items} x {data.n_items}, and {MAX_ITEMS} items "
                "are the limit; take --model itemknn"
            )
        try:
            weights = reconstruction_weights(data.train, data.n_users, data.n_items, own["ease_l2"])
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            raise UserError(
                f"--ease_l2 {own['ease_l2']:g}: too small for these data, the matrix has no inverse in "
                "float32; raise it"
            ) from None
        sparse = sp.csr_matrix(weights)
        return keep_largest(sparse, own["ease_k"]) if own["ease_k"] else sparse

    @classmethod
    def search_space(cls, config: Config, modalities: typing.Collection[str]) -> tuple[str, ...]:
        """The regularisation."""
        return ("ease_l2=1..5000:log",)


def reconstruction_weights(train: np.ndarray, n_users: int, n_items: int, l2: float) -> np.ndarray:
    """B of the (user, item) pairs [n, 2]: dense [I, I] float32 with a zero diagonal."""
    user, item = train.T
    matrix = sp.csr_matrix((np.ones(len(train), np.float32), (user, item)), (n_users, n_items))
    gram = torch.from_numpy((matrix.T @ matrix).toarray())
    gram.diagonal().add_(l2)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    weights = inverse.div_(-inverse.diagonal().clone()).fill_diagonal_(0)
    return weights.numpy()
