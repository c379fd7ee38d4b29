"""Train a recommender, select it on validation, score it once on test, leave a run folder.

    python main.py --dataset demo --model lgn
    python main.py --resume runs/demo_lgn_20260131-120000_2025
    python main.py --help

Exit codes: 0 done, 1 the run failed, 2 bad input, 130 and 143 stopped by SIGINT and SIGTERM (and saved).
"""

import sys
from pathlib import Path

import torch

from dataloader import load_dataset
from model import make_model
from parse import parse_args
from procedure import fit, score_checkpoint
from training.checkpoint import newest_checkpoint, read_checkpoint
from training.run import start_run
from training.stop import Stop
from utils import TrainingError, UserError, lock_file
from world import choose_device, keep_freed_memory, make_run_folder, seed_everything, write_config


def main(argv=None):
    """Run one command line. Returns the exit code; whatever goes wrong ends in one line on stderr."""
    return guarded(lambda: command(*parse_args(argv)))


def guarded(work):
    """Call work() for its exit code; what goes wrong is one line on stderr and an exit code."""
    try:
        return work()
    except UserError as error:
        return fail(error, 2)
    except TrainingError as error:
        return fail(error, 1)
    except OSError as error:
        return fail(
            f"{error.filename or 'input or output'}: {error.strerror or error}; the run can be resumed from its last checkpoint",
            1,
        )
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return fail(
            "out of memory: lower --bpr_batch, --recdim or --attn_heads (training) or --eval_chunk (scoring)",
            1,
        )
    except KeyboardInterrupt:
        return 130


def command(config, notes):
    """What a parsed command line asks for. Returns the exit code."""
    device = set_up(config)
    seed_everything(config.seed)
    dataset = load(config, device, notes)
    model = make_model(config, dataset, device)
    if config.evaluate_only:
        print(score_checkpoint(model, dataset, config, device))
        return 0
    folder = Path(config.resume) if config.resume else make_run_folder(config)
    print(f"run folder {folder}", flush=True)
    with lock_file(folder / ".lock"), Stop(config.max_minutes) as stop:
        run = start_run(model, dataset, config, folder, device)
        if config.resume:
            resume(run)
        result = fit(run, stop)
    return stop.exit_code if result["status"] == "interrupted" else 0


def set_up(config):
    """Set the process up for a run. Returns the device."""
    device = choose_device(config)
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    return device


def load(config, device, notes):
    """The Dataset, with the notes and a line about it printed."""
    dataset = load_dataset(config, device)
    data = dataset.interactions
    if max(config.topks) > data.n_items:
        raise UserError(f"--topks {max(config.topks)}: there are only {data.n_items} items; give a smaller K")
    print(*notes, *dataset.notes, sep="\n", end="\n" if notes or dataset.notes else "")
    print(
        f"{config.model} on {data.source}: {data.n_users} users, {data.n_items} items, {len(data.train)} / {len(data.valid)} / "
        f"{len(data.test)} interactions; {device}"
    )
    return dataset


def resume(run):
    """Restore the furthest checkpoint of the run's folder; without any, the run starts again."""
    for leftover in run.folder.glob(".*.tmp"):  # half-written by a process that was killed
        leftover.unlink(missing_ok=True)
    state, notes = newest_checkpoint(run.folder)
    if state:
        run.restore(state)
        if run.progress.best:
            check_best(run.folder / "best.pt")
    at = run.progress
    print(*notes, f"resumed after epoch {at.epoch}" + (f", step {at.step}" if at.step else ""), sep="\n")
    write_config(run.folder, run.config)


def check_best(path):
    """Raise UserError if the best weights of a resumed run are lost: training on would end without them."""
    try:
        read_checkpoint(path)
    except UserError as error:
        raise UserError(f"{error} or, to start this run again, remove {path.with_name('last.pt')}") from None


def out_of_memory(error):
    """Whether this is torch's or Python's way of saying that memory ran out."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def fail(error, code):
    """Print one line on stderr and return the exit code."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
