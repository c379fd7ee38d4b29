"""Train a recommender, select its best epoch on validation, score it once on test, and write a run folder.

    python main.py --dataset demo --model lgn
    python main.py --resume runs/demo_lgn_20260131-120000_2025
    python main.py --help

Exit codes: 0 done, 1 the run failed, 2 bad input, 130 and 143 stopped by SIGINT and SIGTERM (and saved).
"""

from __future__ import annotations

import os
import sys
import typing
from collections.abc import Sequence

from cli import RESUME_HINT, run_command
from data.feature_files import feature_paths, open_features
from data.folders import check_first_line, dataset_folder, inter_path
from parse import parse_args
from world import Config

if typing.TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit code; a failure that a user can cause is one line on stderr."""
    return run_command(lambda: start(argv), io_hint=RESUME_HINT)


def start(argv: Sequence[str] | None) -> int:
    """Run a command line, as one of the processes of torchrun or alone. Returns the exit code."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return check_and_train(argv)
    from training.parallel import process_group

    with process_group() as store:
        return check_and_train(argv, store)


def check_and_train(argv: Sequence[str] | None, store: Store | None = None) -> int:
    """Check a command line and the files that it names, then run it. store: that of torchrun."""
    config, notes = parse_args(argv)
    check_files(config)
    # Importing torch takes seconds: what is wrong with a command line has been said by now.
    from session import train

    return train(config, notes, store)


def check_files(config: Config) -> None:
    """Raise UserError if the dataset folder or a feature file is missing, or is in a foreign format."""
    folder, _ = dataset_folder(config)
    if config.data_format == "inter" or not (folder / "train.txt").exists():
        check_first_line(inter_path(folder))
    for path in feature_paths(config, folder).values():
        open_features(path)


if __name__ == "__main__":
    sys.exit(main())
