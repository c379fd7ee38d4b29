"""A trained run, ready to recommend from: model, dataset and config of a checkpoint."""

from __future__ import annotations

import sys
import typing
from pathlib import Path

from dataloader import Dataset, load_dataset
from models.base import Recommender
from models.registry import find_model
from parse import restored_config
from session import make_model, set_up
from training.checkpoint import read_checkpoint
from utils import UserError
from world import Config


def load_run(
    path: Path, given: dict[str, typing.Any], model_name: str = ""
) -> tuple[Recommender, Dataset, Config]:
    """Model in eval mode, dataset and config of a checkpoint.

    given: settings that replace stored ones (those of FREE in recommending/flags.py); model_name: --model,
    which a run of a user's own class needs. Raises UserError if the checkpoint, its data or the two together
    cannot be used.
    """
    state = read_checkpoint(path)
    config = restored_config(state["config"], path, model_name, **given)
    device = set_up(config)
    dataset = load_dataset(config, find_model(config.model).data_needs(config), device)
    model, source = make_model(config, dataset, device), dataset.interactions.source
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()[:120]
        raise UserError(
            f"{path}: does not fit {source} ({reason}); name the data it was trained on with --data_root"
        ) from None
    for note in dataset.notes:
        tell(note)
    if state["data"] != dataset.fingerprint:
        tell(f"note: {source}, its features or its graphs differ from those this run was trained on")
    if config.eval_dropout:
        tell(
            "note: this run was evaluated with dropout, and lists are made without: they differ from "
            "result.json"
        )
    return model.eval(), dataset, config


def tell(line: str) -> None:
    """Print a line on stderr, beside the output, which may be stdout."""
    print(line, file=sys.stderr)
