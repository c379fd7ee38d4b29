"""What the processes of a run tell each other: values, and whether all have succeeded.

With one process every function returns what it is given.
"""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist

from layers.columns import collective, rank, ranks
from utils import LostProcess, TrainingError, UserError

Value = typing.TypeVar("Value")


def largest(value: int) -> int:
    """The largest of the numbers that the processes give."""
    if ranks() == 1:
        return value
    numbers = torch.tensor([value])
    with collective():
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return int(numbers)


def from_all(value: Value) -> list[Value]:
    """The value of each process."""
    values = [value] * ranks()
    if len(values) > 1:
        with collective():
            dist.all_gather_object(values, value)
    return values


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that all processes complete or none: an error that the user can mend is raised by all.

    In such a block, another one stands around all that may fail before the processes communicate.
    """
    failure: Exception | None = None
    try:
        yield
    except LostProcess:
        raise
    except (UserError, TrainingError, OSError) as error:
        if ranks() == 1 or hasattr(error, "known_to_all"):
            raise
        failure = error
    failures = list(filter(None, from_all(failure)))
    if failures:
        failures[0].known_to_all = True  # type: ignore[attr-defined]
        raise failures[0]


def from_first(make: Callable[[], Value]) -> Value:
    """make() of process 0, for all processes."""
    with together():
        value = make() if rank() == 0 else None
    return typing.cast(Value, from_all(value)[0])
