"""A training run."""

import dataclasses
import random

import numpy as np
import torch

from dataloader import Sampler
from training.checkpoint import CHECKPOINT_FORMAT
from utils import TrainingError, UserError, atomic_write


@dataclasses.dataclass
class Progress:
    """How far a run has come. Numbers, tensors and dicts only, so that reading a checkpoint never needs pickle."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch under way
    sums: dict = dataclasses.field(default_factory=dict)  # loss terms summed over those steps
    grad_norm: torch.Tensor | None = None  # of the last step
    seconds: float = 0.0  # of training and evaluation, over all processes of the run
    best: dict | None = None  # {"epoch", "metrics", "seconds"} of the best evaluation
    latest: dict | None = None  # metrics of the last evaluation
    waited: int = 0  # evaluations since the best

    def stopped_early(self, config):
        """Whether patience is used up."""
        return bool(config.patience) and self.waited >= config.patience

    def check(self, config, steps):
        """Raise ValueError if a run of these settings with so many steps an epoch cannot have come to this."""
        scores = [self.latest, self.best and self.best["metrics"]]
        if not (
            self.step < steps
            and type(self.waited) is int
            and isinstance(self.seconds, float)
            and all(isinstance(total, torch.Tensor) and total.shape == () for total in self.sums.values())
            and all(values is None or isinstance(values[config.selection_metric], float) for values in scores)
            and (
                self.best is None
                or type(self.best["epoch"]) is int
                and isinstance(self.best["seconds"], float)
            )
            and (self.best is not None or self.epoch < config.epochs)
        ):
            raise ValueError("its progress makes no sense")


@dataclasses.dataclass
class Run:
    """A training run: what a checkpoint saves, and where it goes."""

    config: object
    folder: object
    device: torch.device
    dataset: object
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    sampler: Sampler
    progress: Progress

    def save(self, name):
        """Write a checkpoint into the run folder, atomically. Raises TrainingError if it cannot be written."""
        state = {
            "format": CHECKPOINT_FORMAT,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
            "random": random_state(self.device),
            "sampler": self.sampler.state(self.progress.step),
            "config": self.config.as_dict(),
            "data": self.dataset.fingerprint,
        }
        try:
            with atomic_write(self.folder / name) as file:
                torch.save(state, file)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            raise TrainingError(
                f"{self.folder / name}: cannot be written ({getattr(error, 'strerror', None) or str(error).splitlines()[0][:80]}); "
                "earlier checkpoints are whole: free space or mend the folder"
            ) from None

    def restore(self, state):
        """Continue from a checkpoint of the same data and settings. Raises UserError if it is of others."""
        if state["data"] != self.dataset.fingerprint:
            raise UserError(
                f"{self.folder}: the data have changed since this run began; restore the interactions, features and "
                "graphs it was started with, or start a new run"
            )
        try:
            self._load(state)
        except Exception as error:  # state of another shape, type or name raises one of many
            reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()[:120]
            raise UserError(
                f"{self.folder}: its checkpoint does not fit these settings ({reason}); start a new run"
            ) from None

    def _load(self, state):
        fixed = [{**group, "params": None} for group in self.optimizer.state_dict()["param_groups"]]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if [{**group, "params": None} for group in self.optimizer.state_dict()["param_groups"]] != fixed:
            raise ValueError("the optimiser has other settings")
        for weight, moments in self.optimizer.state.items():
            if moments.keys() != {"step", "exp_avg", "exp_avg_sq"} or any(
                moments[name].shape != shape
                for name, shape in (("step", ()), ("exp_avg", weight.shape), ("exp_avg_sq", weight.shape))
            ):
                raise ValueError("the optimiser's state is of another shape")
        self.progress = Progress(**state["progress"])
        self.progress.check(self.config, len(self.sampler))
        self.sampler.generator.set_state(state["sampler"].cpu())
        set_random_state(state["random"], self.device)


def start_run(model, dataset, config, folder, device):
    """A Run at its very beginning."""
    train = dataset.interactions.train
    sampler = Sampler(
        train, dataset.interactions.n_items, config.bpr_batch, config.seed, device, bool(config.neg_reject)
    )
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=config.lr, fused=True)
    return Run(config, folder, device, dataset, model, optimizer, sampler, Progress())


def random_state(device):
    """State of the random generators of torch, NumPy, Python and the GPU, as tensors and numbers."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": [version, list(words), gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
    }


def set_random_state(state, device):
    """Undo random_state."""
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
