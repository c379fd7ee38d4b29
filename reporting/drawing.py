"""Draw lines, bars and triangles of fusion weights with matplotlib, which is imported only here."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from outgoing import printable
from utils import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of Okabe and Ito, distinguishable with any colour vision. Their yellow is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")

# x values (None: a horizontal line), means, lower and upper ends of the band.
Line = tuple[Sequence | None, ArrayLike, ArrayLike, ArrayLike]
# Label, mean, standard deviation.
Bar = tuple[str, float | None, float | None]


# ---------------------------------------------------------------- common parts


def make_axes(n_panels: int, panel_height: float = 3.4) -> tuple["Figure", Sequence["Axes"]]:
    """A matplotlib figure with panels in two columns. Raises UserError if matplotlib is not installed."""
    try:
        from matplotlib import figure, layout_engine
    except ImportError:
        raise UserError(
            "figures need matplotlib: pip install -c constraints.txt -e '.[report]', or add --figures 0"
        ) from None
    columns = min(2, n_panels)
    rows = math.ceil(n_panels / columns)
    # With the default padding, the title of a panel touches the tick labels of the panel above.
    layout = layout_engine.ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.06)
    image = figure.Figure(figsize=(1 + 4.2 * columns, panel_height * rows), layout=layout)
    axes = image.subplots(rows, columns, squeeze=False).flat
    for axis in list(axes)[n_panels:]:
        axis.remove()
    for axis in image.axes:
        axis.spines[["top", "right"]].set_visible(False)
    return image, image.axes


def line_style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the line with this index."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(COLOURS) % len(DASHES)],
    }


def literal(name: str) -> str:
    """Escape a name for matplotlib, which typesets $...$ and leaves names starting with _ out of legends."""
    return (" " if name.startswith("_") else "") + printable(name).replace("$", r"\$")


def encode(image: "Figure", format: str) -> bytes:
    """A matplotlib figure as the contents of a "png" or "pdf" file."""
    file = io.BytesIO()
    image.savefig(file, format=format, dpi=160)
    return file.getvalue()


# ---------------------------------------------------------------- lines and bars


def draw_lines(panels: Mapping[str, Mapping[str, Line]], xlabel: str) -> "Figure":
    """Lines with bands. panels: {y label: {line label: line}}."""
    image, axes = make_axes(len(panels))
    for axis, (ylabel, lines) in zip(axes, panels.items()):
        for index, (name, (x, mean, low, high)) in enumerate(lines.items()):
            style = {**line_style(index), "label": literal(name)}
            if x is None:
                axis.axhline(np.asarray(mean)[0], **{**style, "marker": "", "linestyle": "--"})
                continue
            axis.plot(x, mean, markersize=4, markevery=max(len(x) // 12, 1), **style)
            axis.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        scale_axis(axis, [value for x, *_ in lines.values() if x is not None for value in x])
        axis.grid(alpha=0.25)
    add_legend(image)
    return image


def scale_axis(axis: "Axes", x: Sequence) -> None:
    """Ticks at integers for integers; a logarithmic axis for fractions that span more than a factor of 30."""
    if all(isinstance(value, int) for value in x):
        axis.locator_params(axis="x", integer=True)
    elif all(isinstance(value, float) for value in x) and min(x) > 0 and max(x) > 30 * min(x):
        axis.set_xscale("log")


def add_legend(image: "Figure") -> None:
    """One legend for all panels, below them, with as many columns as fit."""
    handles, names = image.axes[0].get_legend_handles_labels()
    # About 14 characters fit in an inch; a line sample and the gap to the next entry take another 8.
    columns = int(14 * image.get_figwidth()) // (max(map(len, names)) + 8)
    image.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=min(max(columns, 1), 4),
        frameon=False,
        fontsize=9,
    )


def draw_bars(panels: Mapping[str, Sequence[Bar]]) -> "Figure":
    """Horizontal bars with error bars. panels: {title: bars}, the first bar at the bottom."""
    image, axes = make_axes(len(panels), panel_height=1 + 0.36 * max(map(len, panels.values())))
    for axis, (title, bars) in zip(axes, panels.items()):
        names, means, deviations = zip(*bars)
        axis.barh(
            [literal(name) for name in names],
            means,
            xerr=[math.nan if deviation is None else deviation for deviation in deviations],
            color=[line_style(index)["color"] for index in range(len(bars))],
            height=0.7,
            ecolor="#333333",
            capsize=3,
        )
        axis.set_title(title, fontsize=11, loc="left")
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", alpha=0.25)
        axis.locator_params(axis="x", nbins=6)
        axis.set_axisbelow(True)
    return image


# ---------------------------------------------------------------- triangle of fusion weights


def to_triangle(text: ArrayLike, image: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Map weights of text and image to x, y in an equilateral triangle: ID left, text right, image on top."""
    return np.asarray(text) + np.asarray(image) / 2, np.asarray(image) * math.sqrt(3) / 2


def draw_triangle(panels: Mapping[str, tuple[ArrayLike, ArrayLike, Sequence[float]]]) -> "Figure":
    """Heat maps over fusion weights. panels: {title: (text weights [n], image weights [n], values [n])}."""
    figure, axes = make_axes(len(panels), panel_height=3.5)
    for axis, (title, (text, image, values)) in zip(axes, panels.items()):
        draw_frame(axis)
        x, y = to_triangle(text, image)
        scale: dict[str, Any] = {"vmin": min(values), "vmax": max(values), "cmap": "cividis"}
        # Points on one line span no area to interpolate over.
        if np.linalg.matrix_rank(np.stack([x - x[0], y - y[0]]), tol=1e-6) == 2:
            axis.tripcolor(x, y, values, shading="gouraud", alpha=0.85, **scale)
        dots = axis.scatter(x, y, c=values, s=36, edgecolors="white", linewidths=0.8, zorder=3, **scale)
        figure.colorbar(dots, ax=axis, shrink=0.6, format="%.4f")
        axis.set_title(title, fontsize=11, loc="left")
    return figure


def draw_frame(axis: "Axes") -> None:
    """Outline of the triangle, grid lines at every fifth of a weight, and labels at the corners."""
    for weight in np.linspace(0, 0.8, 5):
        # Lines of constant text, image and ID weight, as (text weights, image weights) of their two ends.
        for ends in (
            ([weight, weight], [0, 1 - weight]),
            ([0, 1 - weight], [weight, weight]),
            ([weight, 0], [0, weight]),
        ):
            axis.plot(*to_triangle(*ends), color="#999999", linewidth=0.6 if weight else 1.2, zorder=2)
    axis.plot(*to_triangle([0, 1], [1, 0]), color="#999999", linewidth=1.2, zorder=2)
    corners = (("ID", (0, 0), "top"), ("text (beta)", (1, 0), "top"), ("image (alpha)", (0, 1), "bottom"))
    for name, weights, alignment in corners:
        axis.annotate(
            f"{name} = 1",
            to_triangle(*weights),
            (0, -6 if alignment == "top" else 6),
            textcoords="offset points",
            ha="center",
            va=alignment,
            fontsize=9,
        )
    axis.set(aspect="equal", xlim=(-0.16, 1.16), ylim=(-0.12, 1.0))
    axis.axis("off")
