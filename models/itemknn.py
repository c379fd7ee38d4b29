"""ItemKNN: item-based collaborative filtering by cosine (Sarwar 2001; Deshpande & Karypis 2004)."""

from __future__ import annotations

import typing

import numpy as np
import scipy.sparse as sp

from dataloader import Dataset, Needs
from models.item_model import ItemModel
from models.neighbours import keep_largest, neighbour_weights, uses_content
from models.settings import ITEMKNN_SETTINGS
from world import Config


class ItemKNN(ItemModel):
    """The score of an item is the sum of its cosines to the user's TRAIN items. Nothing is trained.

    The similarity of items i and j is n_ij / sqrt(n_i n_j), with n_ij the users that have both and n_i those
    that have i; an item is no neighbour of its own.
    """

    needs: typing.ClassVar[Needs] = Needs()
    settings = ITEMKNN_SETTINGS

    def make_weights(self, config: Config, dataset: Dataset) -> sp.csr_matrix:
        """The similarities that are kept."""
        data, own = dataset.interactions, vars(config)
        if own["itemknn_similarity"] == "neighbours":
            similarity = neighbour_weights(config, dataset)
        else:
            similarity = item_cosines(data.train, data.n_users, data.n_items)
        return keep_largest(similarity, own["itemknn_k"]) if own["itemknn_k"] else similarity

    @classmethod
    def data_needs(cls, config: Config) -> Needs:
        """The content graphs, for the weights of the neighbourhood term."""
        content = vars(config)["itemknn_similarity"] == "neighbours" and uses_content(config)
        return Needs(features=True, neighbours=True) if content else Needs()

    @classmethod
    def search_space(cls, config: Config, modalities: typing.Collection[str]) -> tuple[str, ...]:
        """The number of neighbours."""
        return ("itemknn_k=0,10,20,50,100,200",)


def item_cosines(train: np.ndarray, n_users: int, n_items: int) -> sp.csr_matrix:
    """Cosines of the item columns of the 0/1 matrix of pairs [n, 2], with a zero diagonal: [I, I] float32."""
    user, item = train.T
    matrix = sp.csr_matrix((np.ones(len(train)), (user, item)), (n_users, n_items))
    together = (matrix.T @ matrix).tocsr()
    together.setdiag(0)
    together.eliminate_zeros()
    scale = sp.diags(1 / np.sqrt(np.maximum(np.bincount(item, minlength=n_items), 1)))
    return (scale @ together @ scale).astype(np.float32).tocsr()
