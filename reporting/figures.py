"""Figures of a report, drawn with matplotlib."""

import io
import math

import numpy as np

from utils import UserError

# Okabe and Ito's colours, which people with any colour vision tell apart, without the yellow that is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.")


def canvas(panels, height=3.4, columns=2):
    """A matplotlib Figure and one axes a panel, two in a row. Raises UserError without matplotlib."""
    try:
        from matplotlib import figure
    except ImportError:
        raise UserError(
            "figures need matplotlib: pip install -c constraints.txt -e '.[report]', or take --figures 0"
        ) from None
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    image = figure.Figure(figsize=(1 + 4.2 * columns, height * rows), layout="constrained")
    axes = image.subplots(rows, columns, squeeze=False).flat
    for axis in list(axes)[len(panels) :]:
        axis.remove()
    for axis in image.axes:
        axis.spines[["top", "right"]].set_visible(False)
    return image, image.axes


def look(number):
    """Colour, marker and dash of the line of this number."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
    }


def literal(name):
    """A name as matplotlib shows it as it is: no formulas, and no underscore in front, which would hide it from legends."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def draw_lines(panels, xlabel):
    """Lines with bands. panels: {y label: {name: (x or None for a level line, mean, low, high)}}, arrays of one length."""
    image, axes = canvas(panels)
    for axis, (ylabel, lines) in zip(axes, panels.items()):
        for number, (name, (x, mean, low, high)) in enumerate(lines.items()):
            style = {**look(number), "label": literal(name)}
            if x is None:
                axis.axhline(mean[0], **{**style, "marker": "", "linestyle": "--"})
                continue
            axis.plot(x, mean, markersize=4, markevery=max(len(x) // 12, 1), **style)
            axis.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        scale_axis(axis, [value for x, *_ in lines.values() if x is not None for value in x])
        axis.grid(alpha=0.25)
    handles, names = axes[0].get_legend_handles_labels()
    fitting = int(14 * image.get_figwidth()) // (max(map(len, names)) + 8)  # about 14 letters an inch
    image.legend(
        handles, names, loc="outside lower center", ncols=min(max(fitting, 1), 4), frameon=False, fontsize=9
    )
    return image


def scale_axis(axis, x):
    """Ticks at whole numbers for whole numbers; a logarithmic axis for fractions that span more than a factor of 30."""
    if all(isinstance(value, int) for value in x):
        axis.locator_params(axis="x", integer=True)
    elif all(isinstance(value, float) for value in x) and min(x) > 0 and max(x) > 30 * min(x):
        axis.set_xscale("log")


def draw_bars(panels):
    """Horizontal bars with error bars. panels: {metric: [(name, mean, standard deviation or None)]}, best last."""
    rows = max(map(len, panels.values()))
    image, axes = canvas(panels, height=1 + 0.36 * rows)
    for axis, (metric, bars) in zip(axes, panels.items()):
        names, means, deviations = zip(*bars)
        axis.barh(
            [literal(name) for name in names],
            means,
            xerr=[math.nan if deviation is None else deviation for deviation in deviations],
            color=COLOURS[5],
            ecolor="#333333",
            capsize=3,
        )
        axis.set_title(metric, fontsize=11, loc="left")
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", alpha=0.25)
        axis.locator_params(axis="x", nbins=6)
        axis.set_axisbelow(True)
    return image


def ternary(text, image):
    """Weights of text and image (the rest is the ID's) -> x, y in a triangle: ID left, text right, image on top."""
    return np.asarray(text) + np.asarray(image) / 2, np.asarray(image) * math.sqrt(3) / 2


def draw_triangle(panels):
    """Heat maps over fusion weights. panels: {metric: (text weights [n], image weights [n], values [n])}."""
    canvas_image, axes = canvas(panels, height=3.5)
    for axis, (metric, (text, image, values)) in zip(axes, panels.items()):
        draw_frame(axis)
        x, y = ternary(text, image)
        spread = {"vmin": min(values), "vmax": max(values), "cmap": "cividis"}
        if (
            np.linalg.matrix_rank(np.stack([x - x[0], y - y[0]]), tol=1e-6) == 2
        ):  # else the points span no area
            axis.tripcolor(x, y, values, shading="gouraud", alpha=0.85, **spread)
        dots = axis.scatter(x, y, c=values, s=36, edgecolors="white", linewidths=0.8, zorder=3, **spread)
        canvas_image.colorbar(dots, ax=axis, shrink=0.6, format="%.4f")
        axis.set_title(metric, fontsize=11, loc="left")
    return canvas_image


def draw_frame(axis):
    """The triangle with a line at every fifth of a weight and the corners named."""
    for share in np.linspace(0, 0.8, 5):
        for ends in (
            ([share, share], [0, 1 - share]),
            ([0, 1 - share], [share, share]),
            ([share, 0], [0, share]),
        ):
            axis.plot(*ternary(*ends), color="#999999", linewidth=0.6 if share else 1.2, zorder=2)
    axis.plot(*ternary([0, 1], [1, 0]), color="#999999", linewidth=1.2, zorder=2)
    for name, corner, below in (
        ("ID", (0, 0), True),
        ("text (beta)", (1, 0), True),
        ("image (alpha)", (0, 1), False),
    ):
        x, y = ternary(*corner)
        axis.annotate(
            f"{name} = 1",
            (x, y),
            (0, -6 if below else 6),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            va="top" if below else "bottom",
        )
    axis.set(aspect="equal", xlim=(-0.16, 1.16), ylim=(-0.12, 1.0))
    axis.axis("off")


def picture(image, kind):
    """A matplotlib Figure as bytes of a "png" or "pdf"."""
    file = io.BytesIO()
    image.savefig(file, format=kind, dpi=160)
    return file.getvalue()
