"""What to say when a loss, gradient or weight is no longer finite: which term, how large, and the remedy."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping

from world import Config

if typing.TYPE_CHECKING:
    import torch

    from dataloader import Dataset

# Settings and features beyond this size overflow float32 in a few products.
LARGE = 1e6


def sizes(terms: Mapping[str, float | torch.Tensor]) -> str:
    """The terms of a loss with their sizes, as 'loss 3.2e+29, bpr 0.69'."""
    return ", ".join(f"{name} {float(value):.3g}" for name, value in terms.items())


def remedy(config: Config, dataset: Dataset, at_first_step: bool) -> str:
    """What to change in a run that diverged: what is far too large, or else the learning rate.

    at_first_step: no step had been made, so that the learning rate cannot be the cause.
    """
    large = [
        f"--{field.name} {getattr(config, field.name):g}"
        for field in dataclasses.fields(config)
        if field.metadata["group"] in ("model", "alignment", "training")
        and isinstance(field.default, float)
        and abs(getattr(config, field.name)) > LARGE
    ]
    inputs: dict[str, torch.Tensor | None] = {**dataset.features, "user text": dataset.user_features}
    for name, matrix in inputs.items():
        if matrix is not None and (largest := float(matrix.abs().max())) > LARGE:
            large.append(f"the {name} features, which reach {largest:.2g}")
    if large:
        return f"lower {' and '.join(large)}, and start a new run"
    if at_first_step:
        return "no step had been made, so --lr is not the cause: lower the weight of the largest term"
    return "start a run with a lower --lr"
