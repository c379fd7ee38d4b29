"""A training step, and its replay from a CUDA graph (--cuda_graph), which no GPU has run yet.

    step = make_step(model, optimizer, sampler, config)
    terms = step(batch)                                    # {"loss": ..., term: ...}, and new weights

A CUDA graph repeats the same kernels on the same memory, without the host's time for starting each of them.
So its batches are padded to equal sizes, and begin_step, which may change buffers, stays outside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator

import torch

from dataloader import Batch, Sampler
from layers.columns import ranks
from layers.device import on_cpu
from models.base import Recommender
from models.registry import find_model, is_external
from utils import UserError
from world import Config

Terms = dict[str, torch.Tensor]
WARM_UP = 3  # steps before the capture: libraries and Adam allocate memory in the first ones


class Step:
    """The gradients of the loss of a batch, and a step of the optimiser."""

    def __init__(self, model: Recommender, optimizer: torch.optim.Optimizer):
        self.model, self.optimizer = model, optimizer
        self.notes: list[str] = []  # lines for the user that have not been shown yet

    def __call__(self, batch: Batch) -> Terms:
        """Make the step. Returns the loss and its terms."""
        terms = self.model.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        self.optimizer.step()
        # Detached, so that nothing of this step's graph lives on into the next one, or into a capture.
        return {name: value.detach() for name, value in terms.items()}


class GraphedStep(Step):
    """A step that is captured with its first full batches and then replayed; smaller batches run as before.

    sizes: of the fields of a padded batch; capture: work -> a function that repeats it.
    """

    def __init__(
        self,
        model: Recommender,
        optimizer: torch.optim.Optimizer,
        sizes: Batch,
        capture: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ):
        super().__init__(model, optimizer)
        # One stream for all steps before the capture and the capture itself.
        self.stream = torch.cuda.Stream() if torch.cuda.is_available() else None
        self.sizes, self.capture = sizes, capture or functools.partial(capture_graph, stream=self.stream)
        self.steps, self.failed = 0, False
        self.replay: Callable[[], None] | None = None
        self.batch: Batch | None = None  # what the graph reads
        self.terms: Terms = {}  # what it writes
        self.gradients: list[torch.Tensor | None] = []

    def __call__(self, batch: Batch) -> Terms:
        """Make the step. Returns the loss and its terms, which the next step overwrites."""
        if self.failed or len(batch.users) < self.sizes.users:
            return super().__call__(batch)
        padded = pad_batch(batch, self.sizes)
        if self.steps < WARM_UP:
            self.steps += 1
            with side_stream(self.stream):
                return super().__call__(padded)
        if self.batch is None and not self.begin(padded):
            return super().__call__(padded)
        assert self.batch is not None and self.replay is not None
        for mine, new in zip(self.batch, padded, strict=True):
            mine.copy_(new)
        self.replay()
        for parameter, gradient in zip(self.model.parameters(), self.gradients, strict=True):
            parameter.grad = gradient  # a smaller batch has put its own there
        return self.terms

    def begin(self, padded: Batch) -> bool:
        """Capture the step of a batch, without making it. Returns whether this was possible."""
        self.batch = Batch(*(part.clone() for part in padded))
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with capturable(self.optimizer):
                self.replay = self.capture(self.work)
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:100]
            self.notes.append(f"note: --cuda_graph: off, because the step cannot be captured ({reason})")
            self.failed, self.batch = True, None
        self.gradients = [parameter.grad for parameter in self.model.parameters()]
        return not self.failed

    def work(self) -> None:
        """What is captured."""
        assert self.batch is not None
        self.terms = super().__call__(self.batch)


def make_step(model: Recommender, optimizer: torch.optim.Optimizer, sampler: Sampler, config: Config) -> Step:
    """The training step of a run."""
    if usable_graph(config, sampler.pairs.device)[0].cuda_graph == "0":
        return Step(model, optimizer)
    return GraphedStep(model, optimizer, padded_sizes(sampler))


def usable_graph(config: Config, device: torch.device) -> tuple[Config, list[str]]:
    """The config, with --cuda_graph 0 where a step cannot be replayed, and lines for the user.

    Raises UserError for --cuda_graph 1 on a CPU.
    """
    choice = config.cuda_graph
    if choice == "0" or config.evaluate_only:
        return config, []
    off, reason = dataclasses.replace(config, cuda_graph="0"), ""
    if on_cpu(device):
        if choice == "1":
            raise UserError("--cuda_graph 1: needs a GPU, and this run is on the CPU: take auto or 0")
        return off, []
    if ranks() > 1:
        reason = "several processes share the model"
    elif is_external(config.model):
        reason = "a class of your own may do anything in a step"
    else:
        reason = find_model(config.model).varying(config)
    return (off, [f"note: --cuda_graph: off, because {reason}"]) if reason else (config, [])


# ---------------------------------------------------------------- batches of equal sizes


def padded_sizes(sampler: Sampler) -> Batch:
    """The largest number of distinct users and items that a full batch can have, field by field."""
    size, items = sampler.batch_size, sampler.n_items
    users = min(size, int(sampler.pairs[:, 0].max()) + 1)
    distinct = min(2 * size, items), min(size, items)
    numbers = [size] * 3 + [users, size, distinct[0], size, size, distinct[1], distinct[1]]
    return Batch(*typing.cast(list[torch.Tensor], numbers))


def pad_batch(batch: Batch, sizes: Batch) -> Batch:
    """The batch with its last distinct users, items, positives and negatives repeated to fixed numbers.

    No triple refers to the repeated ones, so they have no part in a loss that treats each row by itself.
    """
    return Batch(*(pad(part, int(size)) for part, size in zip(batch, sizes, strict=True)))


def pad(ids: torch.Tensor, size: int) -> torch.Tensor:
    """ids [n] with the last one repeated: [size]."""
    return torch.cat([ids, ids[-1:].expand(size - len(ids))])


# ---------------------------------------------------------------- CUDA


@contextlib.contextmanager
def side_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """A stream for a block, as steps before a capture need it; nothing on a CPU (None)."""
    if stream is None:
        yield
        return
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def capture_graph(work: Callable[[], None], stream: torch.cuda.Stream | None) -> Callable[[], None]:
    """Record the kernels that work() starts, without running them. Returns the function that runs them."""
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=stream):
            work()
    except RuntimeError:
        torch.cuda.set_stream(before)  # which a capture that fails at its end does not do
        raise
    return graph.replay


@contextlib.contextmanager
def capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let Adam be captured in a block; checkpoints and smaller batches see its usual settings."""
    before = [group.get("capturable", False) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group, value in zip(optimizer.param_groups, before, strict=True):
            group["capturable"] = value
