"""The state of a training run: what a checkpoint saves, and how a run continues from one."""

from __future__ import annotations

import dataclasses
import random
import typing
from pathlib import Path

import numpy as np
import torch

from dataloader import Dataset, Sampler
from layers.agreement import from_first, together
from layers.columns import rank
from layers.device import on_cpu
from models.base import Recommender
from training.adam import Adam
from training.checkpoint import CHECKPOINT_FORMAT, is_storable, newest_checkpoint, read_checkpoint
from training.folder import made_with
from training.parallel import model_state, optimizer_state, own_model_state, own_optimizer_state
from training.records import read_settings
from training.step import Step, make_step
from utils import TrainingError, UserError, atomic_write, remove_leftovers, write_json
from world import Config


@dataclasses.dataclass
class Progress:
    """How far a run has come: numbers, tensors and dicts, so that a checkpoint is read without pickle."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the current epoch
    sums: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)  # loss terms summed over them
    grad_norm: torch.Tensor | None = None  # of the last step
    epoch_seconds: float = 0.0  # of these steps
    seconds: float = 0.0  # of training and evaluation, over all processes of the run
    best: dict[str, typing.Any] | None = None  # {"epoch", "metrics", "seconds"} of the best evaluation
    latest: dict[str, float] | None = None  # metrics of the last evaluation
    waited: int = 0  # evaluations since the best

    def out_of_patience(self, config: Config) -> bool:
        """Whether `patience` evaluations have passed without a better one."""
        return bool(config.patience) and self.waited >= config.patience

    def check(self, config: Config, steps: int) -> None:
        """Raise ValueError if a run of these settings with `steps` steps an epoch cannot be in this state."""
        scores = [self.latest, self.best and self.best["metrics"]]
        if not (
            self.step < steps
            and type(self.waited) is int
            and isinstance(self.seconds, float)
            and isinstance(self.epoch_seconds, float)
            and all(isinstance(total, torch.Tensor) and total.shape == () for total in self.sums.values())
            and all(values is None or isinstance(values[config.selection_metric], float) for values in scores)
            and (
                self.best is None
                or (type(self.best["epoch"]) is int and isinstance(self.best["seconds"], float))
            )
            and (self.best is not None or self.epoch < config.epochs)
        ):
            raise ValueError("its progress is inconsistent")


@dataclasses.dataclass
class Run:
    """A training run. optimizer: None for a model without parameters, which has nothing to train."""

    config: Config
    folder: Path
    device: torch.device
    dataset: Dataset
    model: Recommender
    optimizer: torch.optim.Optimizer | None
    sampler: Sampler
    progress: Progress
    step: Step | None = None  # how a training step is made

    @property
    def epochs(self) -> int:
        """Maximum epochs: one for a model without parameters."""
        return self.config.epochs if self.optimizer else 1

    @property
    def is_complete(self) -> bool:
        """Whether all epochs are trained, or patience has ended."""
        return self.progress.epoch >= self.epochs or self.progress.out_of_patience(self.config)

    def save(self, name: str) -> None:
        """Write a checkpoint to the run folder, atomically. Raises TrainingError if it cannot be written.

        It does not depend on the number of processes: process 0 writes the whole of what they share.
        """
        state = {
            "format": CHECKPOINT_FORMAT,
            "model": model_state(self.model),
            "optimizer": optimizer_state(self.optimizer) if self.optimizer else {},
            "progress": vars(self.progress),
            "random": random_state(self.device),
            "sampler": self.sampler.state(self.progress.step),
            "config": self.config.as_dict(),
            "data": self.dataset.fingerprint,
            "device": self.device.type,
        }
        with together():
            if rank() == 0:
                write_checkpoint(self.folder / name, state)

    def resume(self) -> list[str]:
        """Restore the furthest checkpoint of the run folder, if there is one. Returns lines for the user."""
        if rank() == 0:
            remove_leftovers(self.folder)
        state, notes = newest_checkpoint(self.folder)
        if state:
            self.restore(state)
            if self.progress.best:
                check_best(self.folder / "best.pt")
        notes += from_first(lambda: update_config(self.folder, self.config))
        progress = self.progress
        step = f", step {progress.step}" if progress.step else ""
        return [*notes, f"resumed after epoch {progress.epoch}{step}"]

    def restore(self, state: dict[str, typing.Any]) -> None:
        """Continue from a checkpoint. Raises UserError if its data, device or settings are others."""
        if state["data"] != self.dataset.fingerprint:
            raise UserError(
                f"{self.folder}: the data have changed since this run began; restore the interactions, "
                "features and "
                "graphs that it was started with, or start a new run"
            )
        if state["device"] != self.device.type:
            # The generators of a CPU and a GPU draw different numbers and have different states.
            flag = "--cuda 0" if state["device"] == "cpu" else "--cuda 1 on a machine with a GPU"
            raise UserError(
                f"{self.folder}: was trained on {state['device']}, and this process uses {self.device.type}; "
                f"resume with {flag}"
            )
        try:
            self.load_state(state)
        except Exception as error:  # a state of another shape, type or name raises one of many exceptions
            reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()[:120]
            raise UserError(
                f"{self.folder}: its checkpoint does not fit these settings ({reason}); start a new run"
            ) from None

    def load_state(self, state: dict[str, typing.Any]) -> None:
        """Set model, optimiser, progress and random generators to those of a checkpoint."""
        load_weights(self.model, state)
        if self.optimizer:
            load_optimizer(self.optimizer, own_optimizer_state(self.optimizer, state["optimizer"]))
        self.progress = Progress(**state["progress"])
        self.progress.check(self.config, len(self.sampler))
        self.sampler.generator.set_state(state["sampler"].cpu())
        set_random_state(state["random"], self.device)


def start_run(
    model: Recommender, dataset: Dataset, config: Config, folder: Path, device: torch.device
) -> Run:
    """A run before its first step. Raises UserError for a model whose state a checkpoint cannot hold."""
    for name, tensor in model.state_dict().items():
        if not is_storable(tensor):
            kind = str(tensor.layout if tensor.layout != torch.strided else tensor.dtype).removeprefix(
                "torch."
            )
            raise UserError(
                f"--model {config.model}: checkpoints hold dense tensors of float32 and int64, and {name} is "
                f"{kind}; convert it, or register it with persistent=False"
            )
    data = dataset.interactions
    parameters = [p for p in model.parameters() if p.requires_grad]
    sampler = Sampler(
        data.train,
        data.n_items,
        config.bpr_batch,
        config.seed,
        device,
        bool(config.neg_reject and parameters),  # without training, no user needs a negative
        data.cold_items,
    )
    optimizer = Adam(parameters, lr=config.lr, fused=True) if parameters else None
    step = make_step(model, optimizer, sampler, config) if optimizer else None
    return Run(config, folder, device, dataset, model, optimizer, sampler, Progress(), step)


def update_config(folder: Path, config: Config) -> list[str]:
    """Write the settings of a resumed run to config.json. Returns notes on versions that have changed.

    The provenance of the first process stays. Its entry "resumed" gets that of each later process that
    differs from the one before.
    """
    now, path = made_with(config), folder / "config.json"
    record = read_settings(path).get("provenance") or now
    resumed = record.get("resumed", [])
    before = resumed[-1] if resumed else record
    other = [name for name, value in before.items() if name != "resumed" and value != now.get(name)]
    if other:
        record = {**record, "resumed": [*resumed, now]}
    write_json(path, {**config.as_dict(), "provenance": record})
    notes = []
    if "model_sha256" in other:
        other.remove("model_sha256")
        notes.append(f"note: the file of {config.model} has changed since this run was written")
    if other:
        notes.append(
            f"note: continued with other versions than before ({', '.join(other)}); config.json has both"
        )
    return notes


def write_checkpoint(path: Path, state: dict[str, typing.Any]) -> None:
    """Write a checkpoint, atomically. Raises TrainingError if it cannot be written."""
    try:
        with atomic_write(path) as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:80]
        raise TrainingError(
            f"{path}: cannot be written ({reason}); earlier checkpoints are intact: free space or correct "
            "the folder's permissions"
        ) from None


def load_weights(model: Recommender, state: dict[str, typing.Any]) -> None:
    """Set the weights of a model to those of a checkpoint. Raises RuntimeError if they do not fit."""
    model.load_state_dict(own_model_state(model, state["model"]))


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, typing.Any]) -> None:
    """Load Adam's state. Raises ValueError if it has other settings or moments of another shape."""

    def settings() -> list[dict]:
        return [{**group, "params": None} for group in optimizer.state_dict()["param_groups"]]

    before = settings()
    optimizer.load_state_dict(state)
    if settings() != before:
        raise ValueError("the optimiser has other settings")
    for weight, moments in optimizer.state.items():
        shapes = {"step": torch.Size(), "exp_avg": weight.shape, "exp_avg_sq": weight.shape}
        if {name: moment.shape for name, moment in moments.items()} != shapes:
            raise ValueError("the optimiser's state has another shape")


def check_best(path: Path) -> None:
    """Raise UserError if the best weights of a resumed run are lost: it would end without them."""
    try:
        read_checkpoint(path)
    except UserError as error:
        raise UserError(f"{error} or, to start this run again, remove {path.with_name('last.pt')}") from None


def random_state(device: torch.device) -> dict[str, typing.Any]:
    """State of the random generators of torch, NumPy, Python and the GPU, as tensors and numbers."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": None if on_cpu(device) else torch.cuda.get_rng_state(device),
        "python": [version, list(words), gauss],
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
    }


def set_random_state(state: dict[str, typing.Any], device: torch.device) -> None:
    """Set the random generators to a state that random_state returned."""
    torch.set_rng_state(state["torch"].cpu())
    if not on_cpu(device) and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
