"""Progress bars of the data tools."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """A tqdm bar that is hidden when stderr is not a terminal, so that log files get no carriage returns.

    options: those of tqdm.
    """
    return tqdm(iterable, disable=None, **options)
