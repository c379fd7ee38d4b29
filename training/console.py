"""The lines about epochs on the console and in train.log: one table, of at most 80 columns.

print(*heading(config), sep="\\n")
print(epoch_line(config, 5, 0.6012, metrics, 1.2, best=True))
"""

from __future__ import annotations

from collections.abc import Mapping

from world import Config

METRICS_WIDTH = 50  # of 80 columns; the others are those of epoch, loss, seconds and "best"


def shown_metrics(config: Config) -> list[str]:
    """Recall and NDCG at each K, as many as fit; the metric that selects the best epoch is always shown."""
    every = [f"{name}@{k}" for k in config.topks for name in ("recall", "ndcg")]
    shown, width = [], len(config.selection_metric) + 2
    for name in every:
        extra = 0 if name == config.selection_metric else len(name) + 2
        if width + extra <= METRICS_WIDTH:
            shown.append(name)
            width += extra
    return shown if config.selection_metric in shown else [config.selection_metric, *shown]


def heading(config: Config) -> list[str]:
    """What the table is about, and the names of its columns."""
    columns = "".join(f"  {name}" for name in shown_metrics(config))
    return [
        f"metrics on {config.select_on}; best: no earlier epoch has a higher {config.selection_metric}",
        f"{'epoch':>6}{'loss':>9}{columns}{'seconds':>9}",
    ]


def epoch_line(
    config: Config, epoch: int, loss: float | None, metrics: Mapping[str, float], seconds: float, best: bool
) -> str:
    """An evaluated epoch. loss: None for a model without training; seconds: since the run began."""
    columns = "".join(f"{metrics[name]:>{len(name) + 2}.4f}" for name in shown_metrics(config))
    shown_loss = "-" if loss is None else f"{loss:.4f}"
    return f"{epoch:>6}{shown_loss:>9}{columns}{seconds:>9.1f}{'  best' if best else ''}"
