"""Figures of a report: bars, learning curves, metrics against a setting, metrics over the fusion weights."""

import collections
from collections.abc import Sequence

import numpy as np

from reporting.blocks import Figure, mean_with_sd
from reporting.drawing import Line, draw_bars, draw_lines, draw_triangle
from reporting.groups import Group, Section, in_words, setting_order
from reporting.tables import SPLIT_NAMES


def bars(section: Section) -> Figure:
    """Bar chart of the main table."""
    panels = {}
    for metric in section.metrics:
        numbers = [mean_with_sd(group.values(metric)) for group in section.groups]
        panels[metric] = [
            (group.name, number.mean, number.sd) for group, number in zip(section.groups, numbers)
        ]
    return Figure(
        draw_bars(panels),
        f"{section.slug}_bars",
        f"{section.dataset}: test metrics, mean and standard deviation over seeds.",
    )


def learning_curve(group: Group, metric: str) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """Selection metric at the epochs that all seeds evaluated: (epochs, mean, minimum, maximum)."""
    split = group.first.config.select_on
    by_epoch = [
        {entry["epoch"]: entry[split][metric] for entry in run.evaluations if metric in entry.get(split, {})}
        for run in group.runs
    ]
    epochs = sorted(set.intersection(*map(set, by_epoch)))
    values = np.array([[scores[epoch] for epoch in epochs] for scores in by_epoch])
    return epochs, values.mean(0), values.min(0), values.max(0)


def learning_curves(section: Section) -> Figure | None:
    """Selection metric against the epoch, one line per group; None if no run has evaluations."""
    config = section.first.config
    metric, split = config.selection_metric, SPLIT_NAMES[config.select_on]
    lines = {group.name: learning_curve(group, metric) for group in section.groups}
    lines = {name: line for name, line in lines.items() if line[0]}
    if not lines:
        return None
    return Figure(
        draw_lines({f"{metric}, {split}": lines}, "epoch"),
        f"{section.slug}_learning",
        f"{section.dataset}: {metric} on {split} against the epoch. Line: mean over seeds; band: minimum to "
        "maximum. A line ends at the last epoch that all of its seeds reached.",
    )


# ---------------------------------------------------------------- against settings


def by_series(section: Section, settings: Sequence[str]) -> dict[str, list[Group]]:
    """Groups that differ only in these settings, by the name without them."""
    series = collections.defaultdict(list)
    for group in section.groups:
        series[group.name_without(settings)].append(group)
    return series


def setting_curve(section: Section, setting: str) -> Figure | None:
    """Test metrics against a setting; None if no row varies it.

    Rows that do not vary it become horizontal lines.
    """
    series = by_series(section, [setting])
    if all(len(groups) == 1 for groups in series.values()):
        return None
    # matplotlib does not mix numbers and text on one axis.
    values = [group.first.setting(setting) for group in section.groups if setting in group.varied]
    numeric = all(isinstance(value, (int, float)) for value in values)
    panels: dict[str, dict[str, Line]] = collections.defaultdict(dict)
    for name, groups in series.items():
        groups = sorted(groups, key=lambda group: setting_order(group.first.setting(setting)))
        found = [group.first.setting(setting) for group in groups]
        x = found if numeric else [in_words(value) for value in found]
        for metric in section.metrics:
            mean = np.array([group.mean(metric) for group in groups])
            sd = np.array([mean_with_sd(group.values(metric)).sd or 0.0 for group in groups])
            panels[metric][name] = (x if len(groups) > 1 else None, mean, mean - sd, mean + sd)
    return Figure(
        draw_lines(panels, setting),
        f"{section.slug}_by_{setting}",
        f"{section.dataset}: test metrics against {setting}. Line: mean over seeds; band: one standard "
        "deviation on either side. Horizontal dashed lines: rows with a single value of it.",
    )


def triangles(section: Section) -> list[Figure]:
    """Test metrics over the fusion weights, one figure per name that was trained with several weights."""
    figures: list[Figure] = []
    for name, groups in by_series(section, ["alpha", "beta"]).items():
        if len(groups) < 2:
            continue
        weights = np.array([[group.first.setting("beta"), group.first.setting("alpha")] for group in groups])
        inside = weights.sum(1) <= 1 + 1e-9
        if inside.sum() < 2:
            continue
        text, image = weights[inside].T
        shown = [group for group, is_inside in zip(groups, inside) if is_inside]
        hidden = len(groups) - len(shown)
        number = f"_{len(figures) + 1}" if figures else ""
        figures.append(
            Figure(
                draw_triangle(
                    {
                        metric: (text, image, [group.mean(metric) for group in shown])
                        for metric in section.metrics
                    }
                ),
                f"{section.slug}_triangle{number}",
                f"{section.dataset}, {name}: test metrics over the fusion weights of text (beta), image "
                "(alpha) and ID (the rest). Dots: trained weights; colours between them are interpolated."
                + (f" Not shown: {hidden} with weights that sum to more than 1." if hidden else ""),
            )
        )
    return figures
