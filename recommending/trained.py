"""A trained run, ready to recommend from: model, dataset and config of a checkpoint."""

from __future__ import annotations

import dataclasses
import sys
import typing
from pathlib import Path

import torch

from cli import Parser
from dataloader import Dataset, load_dataset
from models.base import Recommender
from models.registry import find_model
from parse import restored_config
from session import make_model
from training.checkpoint import read_checkpoint
from utils import UserError
from world import Config, choose_device

# Settings of the run that may differ here: where things are, and what computes.
FREE = (
    "data_root",
    "text_feat",
    "image_feat",
    "audio_feat",
    "user_text_feat",
    "item_text_graph",
    "item_image_graph",
    "item_audio_graph",
    "user_text_graph",
    "cache_dir",
    "cuda",
    "gpu_id",
    "threads",
    "eval_chunk",
)


def checkpoint_path(run: str) -> Path:
    """The checkpoint of a run folder: best.pt, to which result.json belongs, else last.pt. Or a file."""
    path = Path(run)
    if not path.is_dir():
        return path
    for name in ("best.pt", "last.pt"):
        if (path / name).exists():
            return path / name
    raise UserError(f"{path}: contains neither best.pt nor last.pt; name a run folder or a checkpoint")


def load_run(
    path: Path, given: dict[str, typing.Any], model_name: str = ""
) -> tuple[Recommender, Dataset, Config]:
    """Model in eval mode, dataset and config of a checkpoint.

    given: settings that replace stored ones (see FREE); model_name: --model, which a run of a user's own
    class needs. Raises UserError if the checkpoint, its data or the two together cannot be used.
    """
    state = read_checkpoint(path)
    config = restored_config(state["config"], path, model_name, **given)
    device = choose_device(config)
    if config.threads:
        torch.set_num_threads(config.threads)
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


def add_run_flags(parser: Parser) -> None:
    """Add the flags of FREE, which are those of Config."""
    run = parser.add_argument_group("where things are and what computes, if different from training")
    for field in dataclasses.fields(Config):
        if field.name in FREE:
            kind, choices = type(field.default), field.metadata["choices"]
            run.add_argument(
                f"--{field.name}",
                type=kind,
                choices=choices,
                help=field.metadata["help"].replace("%", "%%"),
                metavar=None if choices else kind.__name__.upper(),
            )
