"""A run from its settings to its result: device, data, model, training. The commands share these steps.

config, notes = parse_args(["--dataset", "demo", "--model", "lgn"])
exit_code = train(config, notes)
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.distributed.distributed_c10d import Store

from dataloader import Dataset, Needs, load_dataset
from layers.agreement import from_all, from_first, together
from layers.columns import rank
from layers.device import on_cpu
from models.base import Recommender
from models.registry import checked, find_model, label
from procedure import fit
from training.evaluation import Result
from training.final import score_checkpoint
from training.folder import make_run_folder
from training.memory import keep_freed_memory
from training.parallel import check, own_gpu, remember_folder, restarted
from training.run import start_run
from training.step import usable_graph
from training.stop import Stop
from utils import UserError, lock_file
from world import Config, choose_device, seed_everything, usable_precision


class Prepared(typing.NamedTuple):
    """A run before its folder exists."""

    config: Config
    device: torch.device
    dataset: Dataset
    model: Recommender
    said: list[str]  # lines for the user


def train(config: Config, notes: list[str], store: Store | None = None) -> int:
    """Train, resume or score what a config says. Returns the exit code.

    store: that of torchrun, for its restarts.
    """
    stop = Stop(config.max_minutes)  # its time includes reading the data
    task = prepare(config, notes, store)
    if task.config.evaluate_only:
        print(score_checkpoint(task.model, task.dataset, task.config, task.device))
        return 0
    with stop:
        _, result = train_prepared(task, stop, store)
    return stop.exit_code if result["status"] == "interrupted" else 0


def prepare(config: Config, notes: list[str], store: Store | None = None, echo: bool = True) -> Prepared:
    """Device, data and model of a config.

    notes: lines for the user, which are printed unless echo is false.
    """
    check(config)
    config, device = restarted(config, store), set_up(checked(config))
    config, more = usable_precision(config, device)
    # Measured on each machine: a run has one.
    config = dataclasses.replace(config, precision=from_all(config.precision)[0])
    config, off = usable_graph(config, device)
    seed_everything(config.seed)
    with together():
        dataset, found = load(config, find_model(config.model).data_needs(config), device)
    said = [*notes, *more, *off, *found]
    say(said, echo)
    return Prepared(config, device, dataset, make_model(config, dataset, device), said)


def train_prepared(
    task: Prepared, stop: Stop, store: Store | None = None, echo: bool = True
) -> tuple[Path, Result]:
    """Train or resume until the end, or until stop() is true. Returns run folder and result."""
    config, device, dataset, model, said = task
    folder = Path(config.resume) if config.resume else from_first(lambda: make_run_folder(config))
    said = [*said, f"run folder {folder}"]
    say(said[-1:], echo)
    remember_folder(folder, store)
    with lock_folder(folder):
        run = start_run(model, dataset, config, folder, device)
        if config.resume:
            resumed = run.resume()
            say(resumed, echo)
            said += resumed
        return folder, fit(run, stop, said=said, echo=echo)


def say(lines: list[str], echo: bool) -> None:
    """Print lines for the user, at once, unless echo is false."""
    if echo:
        print(*lines, sep="\n", flush=True)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other runs out of a run folder; of several processes, process 0 holds the lock."""
    with contextlib.ExitStack() as locks:
        with together():
            if rank() == 0:
                locks.enter_context(lock_file(folder / ".lock"))
        yield


def set_up(config: Config) -> torch.device:
    """Prepare the process for a run: device, memory allocation and CPU threads."""
    device = choose_device(own_gpu(config))
    if torch.cuda.is_available() and not on_cpu(device):
        torch.cuda.set_device(device)  # where streams and CUDA graphs are made
        # Sums of bf16 products stay in fp32.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    return device


def load(config: Config, needs: Needs, device: torch.device) -> tuple[Dataset, list[str]]:
    """The dataset of a config with what the model needs, and lines about it for the user."""
    dataset = load_dataset(config, needs, device)
    data = dataset.interactions
    if max(config.topks) > data.n_items:
        raise UserError(f"--topks {max(config.topks)}: there are only {data.n_items} items; give a smaller K")
    sizes = " / ".join(str(len(split)) for split in (data.train, data.valid, data.test))
    summary = f"{data.n_users} users, {data.n_items} items, {sizes} interactions (train / valid / test)"
    return dataset, [*dataset.notes, f"{label(config.model)} on {data.source}, {device}", summary]


def make_model(config: Config, dataset: Dataset, device: torch.device) -> Recommender:
    """The model that a config names, on the device."""
    return find_model(config.model)(config, dataset).to(device)
