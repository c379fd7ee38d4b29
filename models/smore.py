"""SMORE: spectrum-based modality representation fusion (Ong & Khong 2025, arXiv 2412.14978)."""

from __future__ import annotations

import functools
import operator

import scipy.sparse as sp
import torch
from torch import nn

from dataloader import Dataset
from layers.losses import total
from models.mgcn import MGCN
from models.settings import SMORE_SETTINGS

FUSED = "fused"


class SMORE(MGCN):
    """MGCN on features that are filtered in the frequency domain, with a view of their fusion.

    F is the unitary discrete Fourier transform over the d dimensions, and w are learnt complex filters. With
    the features x^m = W1_m f^m + b1_m and the purifier, the item-item and the user-item views of MGCN:

    - uni-modal denoising: z^m = F^-1(w_m * F(x^m))
    - fusion: z^f = F^-1(w_f * product over m of F(x^m))
    - views: E^m and E^f from z^m and z^f, over the item graphs S^m and S^f = elementwise maximum of all S^m
    - importance: a_m = softmax over the d dimensions of Q_m tanh(W4_m E^f + b4_m)
    - preference: P_v = sigmoid(W3_v E_id + b3_v) for each modality and for the fusion
    - fused: E_mul = mean of all P_m * a_m * E^m and of P_f * E^f
    - vectors, loss: as in MGCN, with smore_contrast

    The paper's preference is without dropout here.
    """

    settings = SMORE_SETTINGS
    prefix = "smore"

    def make_fuser(self) -> None:
        """The filters, and the layers that weigh the modalities."""
        d = self.config.recdim
        # Complex numbers as pairs of real ones, which change their precision with the model.
        self.filters = nn.ParameterDict(
            {view: nn.Parameter(torch.randn(d // 2 + 1, 2)) for view in (*self.project, FUSED)}
        )
        self.queries = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, d, bias=False)) for m in self.project}
        )

    def item_graphs(self, dataset: Dataset) -> dict[str, sp.csr_matrix]:
        """{view: item graph [I, I]}: of each modality, and their elementwise maximum."""
        graphs = super().item_graphs(dataset)
        return {**graphs, FUSED: functools.reduce(lambda a, b: a.maximum(b), graphs.values())}

    def features(self) -> dict[str, torch.Tensor]:
        """{view: features z [I, d] before the purifier}."""
        spectra = {m: torch.fft.rfft(x, norm="ortho") for m, x in super().features().items()}
        spectra[FUSED] = functools.reduce(operator.mul, spectra.values())
        return {
            view: torch.fft.irfft(
                torch.view_as_complex(self.filters[view]) * x, n=self.config.recdim, norm="ortho"
            )
            for view, x in spectra.items()
        }

    def fuse(self, identity: torch.Tensor, views: dict[str, torch.Tensor]) -> torch.Tensor:
        """E_mul [n, d] of rows E_id [n, d] and E^v [n, d] of each view."""
        weighed = {m: query(views[FUSED]).softmax(1) * views[m] for m, query in self.queries.items()}
        weighed[FUSED] = views[FUSED]
        return total(self.prefer[view](identity).sigmoid() * x for view, x in weighed.items()) / len(weighed)
