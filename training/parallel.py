"""Training by several processes that torchrun starts: agreement, whole checkpoints, evaluation, failures.

    torchrun --nproc_per_node 2 main.py --dataset demo --model lgn_mm

Each process holds a part of the columns of all vectors (layers/columns.py) and makes the same steps on the
same batches. Process 0 alone prints and writes files. With one process nothing here has an effect but
torchrun --max_restarts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import io
import os
import queue
import sys
import threading
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from cli import launched
from layers.agreement import from_first
from layers.columns import Share, all_parts, collective, own, own_part, rank, ranks, share_of, sum_parts
from models.registry import MODELS
from training.records import read_settings
from utils import UserError
from world import Config

TIMEOUT = datetime.timedelta(minutes=10)  # after which a process that does not answer is given up
FOLDER = "run folder"  # key of the store
State = dict[str, typing.Any]

# ---------------------------------------------------------------- processes


@contextlib.contextmanager
def process_group() -> Iterator[Store | None]:
    """The process group of a run for the length of a block: none for one process.

    Yields the store of torchrun, which outlives processes that fail; None without torchrun. Of several
    processes that fail, the first to do so reports.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield None
        return
    if os.environ["RANK"] != "0":
        be_quiet()
    if os.environ["MASTER_PORT"] == "0":
        raise UserError(
            "--rdzv_endpoint HOST:0, --master_port 0: torchrun does not tell its processes the port that it "
            "takes; take --standalone, or add --rdzv_backend c10d"
        )
    with collective():
        kept, number, count = next(rendezvous("env://", timeout=TIMEOUT))
    if count == 1:
        yield kept
        return
    with collective():
        # The addresses of processes that have failed are still in the store. torchrun's own count of restarts
        # may differ from node to node.
        store = PrefixStore(f"start {kept.add(f'starts of {number}', 1)}", kept)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=TIMEOUT)
    try:
        yield kept
    except BaseException:
        if not first_to_fail(store):
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115, open until the process ends
        raise
    # Processes leave together, and a group with gloo is not destroyed: otherwise some abort at their exit.
    with contextlib.suppress(RuntimeError):  # the work is done: an end of another process no longer matters
        dist.barrier()
    if torch.cuda.is_available():
        dist.destroy_process_group()


def first_to_fail(store: Store, patience: float = 10) -> bool:
    """Whether no other process has failed before, as far as the store says within `patience` seconds.

    A store on a node that no longer answers is waited for until TCP gives up, which takes a quarter of an
    hour: torch has no other limit. Hence a thread, which ends with the process.
    """
    answers: queue.SimpleQueue[int] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(store.add("failures", 1))
        except RuntimeError:  # the store has ended
            answers.put(1)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=patience) == 1
    except queue.Empty:
        return True


class PlainStream(io.TextIOWrapper):
    """A text stream that is no terminal, so that it gets no progress bars."""

    def isatty(self) -> bool:
        """Never."""
        return False


def be_quiet() -> None:
    """Let this process print nothing but errors."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, open until the process ends
    sys.stderr = PlainStream(sys.stderr.buffer, line_buffering=True)


def check(config: Config) -> None:
    """Raise UserError unless the processes can share the columns of the config's model."""
    p, model = ranks(), config.model
    if p == 1:
        return
    able = [name for name, entry in MODELS.items() if entry.parallel]
    if model not in able:
        raise UserError(
            f"--model {model}: is trained by one process: start it with python, or take {', '.join(able)}"
        )
    if config.recdim % p:
        raise UserError(
            f"--recdim {config.recdim}: {p} processes cannot share it equally; take a multiple of {p}"
        )
    if config.eval_dropout and config.eval_dropout_users:
        raise UserError(
            f"--eval_dropout_users {config.eval_dropout_users}: is for one process: start it with python, or "
            "take --eval_dropout_users 0"
        )


def own_gpu(config: Config) -> Config:
    """The config with the GPU of this process in place of --gpu_id."""
    return dataclasses.replace(config, gpu_id=int(os.environ["LOCAL_RANK"])) if launched() else config


# ---------------------------------------------------------------- torchrun --max_restarts


def restarted(config: Config, store: Store | None) -> Config:
    """The config that resumes a run if torchrun --max_restarts has started its processes again."""
    if store is None or config.resume or config.evaluate_only:
        return config

    def folder() -> str:
        return store.get(FOLDER).decode() if store.check([FOLDER]) else ""

    def precision() -> str:  # the first start may have replaced it, see usable_precision
        return str(read_settings(Path(resume) / "config.json").get("precision", config.precision))

    resume = from_first(folder)
    if not resume:
        return config
    return dataclasses.replace(config, resume=resume, precision=from_first(precision))


def remember_folder(folder: Path, store: Store | None) -> None:
    """Keep the run folder for processes that torchrun starts after a failure."""
    if store is not None and rank() == 0:
        store.set(FOLDER, str(folder.resolve()))


# ---------------------------------------------------------------- checkpoints


def model_state(model: nn.Module) -> State:
    """The state dict of a model; of several processes, the whole tensors on process 0."""
    shares = {name: share_of(parameter) for name, parameter in model.named_parameters()}
    return {name: whole(tensor, shares.get(name)) for name, tensor in model.state_dict().items()}


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """The state dict of Adam, likewise."""
    return map_moments(optimizer, optimizer.state_dict(), whole)


def own_model_state(model: nn.Module, state: State) -> State:
    """This process's part of a whole state dict of a model."""
    shares = {name: share_of(parameter) for name, parameter in model.named_parameters()}
    return {name: part(tensor, shares.get(name)) for name, tensor in state.items()}


def own_optimizer_state(optimizer: torch.optim.Optimizer, state: State) -> State:
    """This process's part of a whole state dict of Adam."""
    return map_moments(optimizer, state, part)


def map_moments(
    optimizer: torch.optim.Optimizer,
    state: State,
    change: Callable[[torch.Tensor, Share | None], torch.Tensor],
) -> State:
    """A state dict of Adam with change(moment, how the processes share it) for each moment."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shares = dict(enumerate(map(share_of, parameters)))
    moments = {
        index: {name: change(value, shares[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": moments}


def whole(tensor: torch.Tensor, share: Share | None) -> torch.Tensor:
    """A tensor of a state dict from the parts of all processes, on process 0 and the CPU."""
    if ranks() == 1 or share is None or not tensor.dim():
        return tensor
    return all_parts(tensor.detach().cpu(), share.dim, to=0, size=share.size)


def part(tensor: torch.Tensor, share: Share | None) -> torch.Tensor:
    """This process's part of such a tensor."""
    return (
        tensor if ranks() == 1 or share is None or not tensor.dim() else own_part(tensor, share.dim).clone()
    )


def gradient_norm(parameters: typing.Iterable[nn.Parameter]) -> torch.Tensor:
    """Euclidean norm of the gradients of all columns of all parameters; 0 if there are none."""
    parts: list[torch.Tensor] = []
    copies: list[torch.Tensor] = []
    for p in parameters:
        if p.grad is not None:
            (parts if ranks() > 1 and share_of(p) is not None else copies).append(p.grad)
    norms = [torch.nn.utils.get_total_norm(found) if found else torch.zeros(()) for found in (copies, parts)]
    return norms[0] if ranks() == 1 else (norms[0].square() + sum_parts(norms[1].square())).sqrt()


# ---------------------------------------------------------------- evaluation


def all_columns_of_own_users(user: torch.Tensor) -> tuple[torch.Tensor, slice | None]:
    """Vectors [own users, d] from vectors [U, own columns], and the users that they are of (None: all)."""
    if ranks() == 1:
        return user, None
    for r in range(ranks()):
        vectors = all_parts(user[own(len(user), r)], 1, to=r)
        if r == rank():
            mine = vectors
    return mine, own(len(user))
