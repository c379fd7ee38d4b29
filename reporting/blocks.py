"""Building blocks of a report, which is a list of them.

blocks = [Heading("Baby"), Table("Test results", "baby_results", ["method", "x"], [["MF", Number(0.5, 0.1)]])]
render.write_report("report", "My runs", blocks)
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

Mark = Literal["", "best", "second"]


@dataclasses.dataclass(frozen=True)
class Number:
    """A table cell with a value and, optionally, its standard deviation.

    format: format specification of both, such as ".4f". A value that is None or NaN is shown as a dash.
    """

    mean: float | None
    sd: float | None = None
    format: str = ".4f"
    mark: Mark = ""

    def __str__(self) -> str:
        if self.mean is None or math.isnan(self.mean):
            return "–"
        deviation = "" if self.sd is None else f" ± {self.sd:{self.format}}"
        return f"{self.mean:{self.format}}{deviation}"


Cell = str | int | Number


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells under a header.

    slug: file name without suffix. note: small print below the table. grouped: consecutive rows with the same
    first cell belong together.
    """

    title: str
    slug: str
    header: list[str]
    rows: list[list[Cell]]
    note: str = ""
    grouped: bool = False

    def numeric_columns(self) -> list[bool]:
        """For every column, whether it holds numbers only; these are right-aligned."""
        if not self.rows:
            return [False] * len(self.header)
        return [not any(isinstance(cell, str) for cell in column) for column in zip(*self.rows)]


@dataclasses.dataclass(frozen=True)
class Heading:
    """Title of a section."""

    text: str


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph. warning: set off from the rest of the page."""

    text: str
    warning: bool = False


@dataclasses.dataclass(frozen=True)
class Figure:
    """A matplotlib figure with a caption. slug: file name without suffix."""

    image: "MatplotlibFigure"
    slug: str
    caption: str


Block = Heading | Text | Table | Figure


def mean_with_sd(values: Sequence[float], format: str = ".4f", mark: Mark = "") -> Number:
    """Mean and sample standard deviation of some values; a single value has no deviation."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Number(float(np.mean(values)), deviation, format, mark)
