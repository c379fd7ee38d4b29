"""The model card of exported vectors: data, settings, protocol, metrics, use and licence, in Markdown."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path

from models.registry import is_external, label
from outgoing import markdown_text
from world import Config

METRICS = ("recall", "ndcg", "precision", "map", "hitrate")
HEADER = """---
license: other
library_name: recgoat
tags:
- recommender-system
- multimodal
- collaborative-filtering
---
"""
USE = """```python
from safetensors.numpy import load_file

arrays = load_file("embeddings.safetensors")
scores = arrays["user"] @ arrays["item"].T  # [U, I]
```
"""
WEIGHTS = """The vectors are **without** the term of item-to-item weights W (the neighbourhood term), which is
a part of this model's scores: what the items of a user's history add to each item. W is in the same file; the
history is that of the training split, which is not in this folder:
```python
import scipy.sparse as sp

parts = (arrays[f"weights_{name}"] for name in ("values", "columns", "rows"))
W = sp.csr_matrix(tuple(parts), (len(arrays["weights_rows"]) - 1, len(arrays["item"])))
history = ...  # sparse [U, I]: 1 where the user has the item in the training split
term = (history @ W).toarray()
"""
SPREAD = """scores /= scores.std(1, ddof=1, keepdims=True)
term /= term.std(1, ddof=1, keepdims=True)
"""
ADD = """scores += arrays["weights_factor"] * term
```
"""
LICENCE = """## Licence
The code that made these vectors, and this card, are under the MIT licence. The vectors and ids are derived
from the data: their terms of use apply.
"""
Shapes = Mapping[str, tuple[int, ...]]


def card(config: Config, result: Mapping[str, typing.Any], shapes: Shapes) -> str:
    """README.md of exported vectors. result: that of the run, {} if unknown; shapes: those of the arrays."""
    dataset = markdown_text(Path(config.dataset).name)
    (n_users, size), n_items = shapes["user"], shapes["item"][0]
    opening = (
        f"Vectors of {n_users} users and {n_items} items in {size} dimensions, trained with "
        f"{markdown_text(label(config.model))} on the dataset {dataset} by RecGOAT "
        "([arXiv 2602.00682](https://arxiv.org/abs/2602.00682)), a program for multimodal recommendation."
    )
    return "\n".join(
        [
            f"{HEADER}\n# {markdown_text(label(config.model))} on {dataset}\n{opening}\n",
            use(shapes, config),
            data_section(config, result),
            settings_section(config),
            metrics_section(config, result),
            LICENCE,
        ]
    )


def use(shapes: Shapes, config: Config) -> str:
    """The files, and how scores are made from them."""
    files = (
        "## Use\n`embeddings.safetensors` holds `user` [U, d] and `item` [I, d] in float32; `user_ids.tsv` "
        "and `item_ids.tsv` name\ntheir rows; `config.json` holds the settings. The inner product of a "
        "pair's vectors is\nits score:\n"
    )
    if "weights_values" not in shapes:
        return files + USE
    spread = SPREAD if config.neighbour_weight and config.neighbour_scale == "spread" else ""
    return files + USE + WEIGHTS + spread + ADD


def data_section(config: Config, result: Mapping[str, typing.Any]) -> str:
    """The dataset and the hashes of its content."""
    data = result.get("data", {})
    rows = [("dataset", Path(config.dataset).name), ("interactions", data.get("interactions", "unknown"))]
    rows += [(f"{name} features", value) for name, value in (data.get("features") or {}).items()]
    return "## Data\nWith the SHA-256 of the content:\n\n" + table(("data", "value"), rows)


def settings_section(config: Config) -> str:
    """The settings that differ from the defaults."""
    model = label(config.model) if is_external(config.model) else config.model
    rows = [("model", model), ("seed", config.seed)]
    rows += [(name, getattr(config, name)) for name in config.non_defaults() if name != "model"]
    return "## Settings\nThose that differ from the defaults; `config.json` has all.\n\n" + table(
        ("setting", "value"), rows
    )


def metrics_section(config: Config, result: Mapping[str, typing.Any]) -> str:
    """Protocol and metrics."""
    if result.get("status") != "finished":
        return "## Metrics\nUnknown: the run of these vectors has not finished.\n"
    # Results of other versions may lack entries.
    masked = markdown_text(" and ".join(result.get("protocol", {}).get("masked_at_test", ["unknown"])))
    epoch = result.get("best_epoch", "unknown")
    protocol = (
        f"Full ranking over all items, {masked} items masked at test. The epoch ({epoch}) was "
        f"selected by {config.selection_metric} on {markdown_text(config.select_on)}"
    )
    leak = ": these figures leak and are not comparable" if config.select_on == "test" else ""
    rows = [
        (split, k, *(shown(result.get(split, {}).get(f"{name}@{k}")) for name in METRICS))
        for split in dict.fromkeys((config.select_on, "test"))
        for k in config.topks
    ]
    versions = result.get("versions", {})
    made = f"torch {versions.get('torch')}, git commit {versions.get('git_commit')}"
    return (
        f"## Metrics\n{protocol}{leak}.\n\n{table(('split', 'K', *METRICS), rows)}\n"
        f"Made with {markdown_text(made)}.\n"
    )


def shown(value: float | None) -> str:
    """A metric in a table; a dash for one that the result lacks."""
    return "–" if value is None else f"{value:.4f}"


def table(header: typing.Iterable[str], rows: typing.Iterable[typing.Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [[*header], ["---"] * len([*header]), *([*map(markdown_text, row)] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
