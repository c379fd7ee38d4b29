"""Flags that say which trained run to use and how. Without torch, so that a mistake is answered at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cli import Parser
from data.folders import SPLITS
from utils import UserError
from world import Config

TOPK = 20  # length of a list
SIMILAR_BY = ("vectors", "weights")  # similarities of items
HUB_FILES = ("embeddings.safetensors", "user_ids.tsv", "item_ids.tsv", "config.json", "README.md")
FORMATS = ("tsv", "jsonl", "parquet")  # of lists, see recommending.writers
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


def parse_splits(text: str, config: Config) -> tuple[str, ...]:
    """The splits that --exclude names; by default those that were masked when the run was tested."""
    if not text:
        return SPLITS[:2] if config.mask_valid_at_test else SPLITS[:1]
    splits = () if text == "none" else tuple(text.split(","))
    if not set(splits) <= set(SPLITS):
        raise UserError(
            f"--exclude {text[:60]}: give some of {', '.join(SPLITS)}, separated by commas, or none"
        )
    return splits


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
