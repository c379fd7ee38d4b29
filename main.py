"""Train a recommender, select it on validation, score it once on test, leave a run folder.

    python main.py --dataset demo --model lgn
    python main.py --help
"""

import sys

import torch

from dataloader import load_dataset
from model import make_model
from parse import parse_args
from procedure import fit
from utils import UserError
from world import choose_device, make_run_folder, seed_everything


def main(argv=None):
    """Run one training from a command line. Returns the exit code: 0, or 2 on bad input (one line on stderr)."""
    try:
        config, notes = parse_args(argv)
        device = choose_device(config)
        if config.threads:
            torch.set_num_threads(config.threads)
        seed_everything(config.seed)
        dataset = load_dataset(config, device)
        check_cutoffs(config, dataset.interactions)
        folder = make_run_folder(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    data = dataset.interactions
    for line in notes + dataset.notes:
        print(line)
    print(f"{config.model} on {data.source}: {data.n_users} users, {data.n_items} items, {len(data.train)} / {len(data.valid)} / "
          f"{len(data.test)} interactions; {device}; run folder {folder}")
    fit(make_model(config, dataset, device), dataset, config, folder, device)
    return 0


def check_cutoffs(config, interactions):
    """Raise UserError if a K of --topks is larger than the item count."""
    if max(config.topks) > interactions.n_items:
        raise UserError(f"--topks {max(config.topks)}: there are only {interactions.n_items} items; give a smaller K")


if __name__ == "__main__":
    sys.exit(main())
