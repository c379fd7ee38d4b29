"""What is left of a finished run: its protocol, its table and its ranked lists; --evaluate_only."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from dataloader import Dataset, HeldOut
from models.base import Recommender
from training.beyond import BEYOND
from training.checkpoint import read_checkpoint
from training.evaluation import Metrics, Result, beyond, cold_results, make_splits, ranked_lists, score
from training.quality import neighbour_lifts
from training.run import load_weights, set_random_state
from utils import UserError, atomic_write
from world import Config

ACCURACY = ("recall", "ndcg", "precision", "map", "hitrate")


def score_checkpoint(model: Recommender, dataset: Dataset, config: Config, device: torch.device) -> str:
    """Score --checkpoint on the selection and the test split. Returns the final table."""
    state, data = read_checkpoint(config.checkpoint), dataset.interactions
    try:
        load_weights(model, state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()[:120]
        raise UserError(
            f"{config.checkpoint}: does not fit this dataset or these settings ({reason}); use those it was "
            "trained with"
        ) from None
    if config.eval_dropout and state["device"] == device.type:
        set_random_state(state["random"], device)  # the dropout masks with which the run was scored
    selection, test = make_splits(data, config, device)
    splits = {config.select_on: selection, "test": test}
    scores = score(model, data, [*splits.values()], config)
    lists = {name: ranked_lists(model, data, split, config) for name, split in splits.items()}
    result = {
        "best_epoch": state["progress"]["epoch"],
        **dict(zip(splits, scores, strict=True)),
        "beyond_accuracy": {name: beyond(top, data, config) for name, top in lists.items()},
        **cold_results(model, data, splits, config),
        "protocol": protocol(config),
    }
    best = state["progress"].get("best")
    is_selected = not isinstance(best, dict) or best.get("epoch") == state["progress"]["epoch"]
    table = final_table(result, config, is_selected)
    if state["data"] == dataset.fingerprint:
        return table
    return (
        f"note: {data.source}, its features or its graphs differ from those of {config.checkpoint}\n{table}"
    )


def write_ranking(path: Path, top: torch.Tensor, split: HeldOut, dataset: Dataset) -> None:
    """Write the test lists, for other metrics or parts of the users, as a .npz of int32 arrays.

    users [n]; items [n, K], best first; relevant_crow [n + 1] and relevant_items (CSR); history [n], train
    interactions of the user; popularity [I], train interactions of the item; lift_text [I] and others,
    float32, quality of the item's features (training/quality.py). top: the items.
    """
    data = dataset.interactions
    users, (crow, relevant) = split.users.cpu().numpy(), split.relevant
    history = np.bincount(data.train[:, 0], minlength=data.n_users)
    arrays = {
        "users": users,
        "items": top.cpu(),
        "relevant_crow": crow.cpu(),
        "relevant_items": relevant.cpu(),
        "history": history[users],
        "popularity": np.bincount(data.train[:, 1], minlength=data.n_items),
    }
    with atomic_write(path) as file:
        arrays = {name: np.asarray(array, np.int32) for name, array in arrays.items()}
        arrays |= {f"lift_{m}": lift for m, lift in neighbour_lifts(dataset).items()}
        np.savez_compressed(file, allow_pickle=False, **arrays)


def protocol(config: Config) -> dict[str, typing.Any]:
    """How a run is selected and scored, for result.json."""
    return {
        "selected_on": config.select_on,
        "selection_metric": config.selection_metric,
        "eval_dropout": config.eval_dropout,
        "masked_at_test": ["train", "valid"] if config.mask_valid_at_test else ["train"],
    }


def final_table(result: Result, config: Config, is_selected: bool = True) -> str:
    """Metrics of the selection and the test split as tables, with the protocol below.

    is_selected: whether these are the metrics of the epoch that was selected.
    """
    splits = list(dict.fromkeys((config.select_on, "test")))
    epoch, selection = result["best_epoch"], f"selected by {config.selection_metric} on {config.select_on}"
    lines = [
        f"best epoch {epoch}, {selection}" if is_selected else f"epoch {epoch}, not the one {selection}",
        *metric_lines({split: result[split] for split in splits}, ACCURACY, config.topks, 4),
        *cold_lines(result.get("cold_items"), splits, config),
        *metric_lines(result.get("beyond_accuracy", {}), BEYOND, config.topks, 3),
    ]
    masked = " and ".join(result["protocol"]["masked_at_test"])
    candidates = "" if config.mask_valid_at_test else ", validation items are candidates"
    lines.append(f"full ranking; {masked} items masked at test{candidates}")
    if config.select_on == "test" and is_selected:
        lines.append(
            "WARNING: the best epoch was selected on TEST; these figures leak and are not comparable"
        )
    return "\n".join(lines)


def cold_lines(entry: Result | None, splits: Sequence[str], config: Config) -> Iterator[str]:
    """Tables of metrics on warm and cold items; nothing for data without cold items."""
    if entry:
        source = "their features" if entry["vectors"] == "features" else "the model's own vectors"
        yield f"{entry['items']} items are held out entirely (cold) and ranked by {source}"
        for split in splits:
            rows = {f"{split} {kind}": metrics for kind, metrics in entry[split].items()}
            yield from metric_lines(rows, ACCURACY, config.topks, 4)


def metric_lines(
    rows: Mapping[str, Metrics], names: Sequence[str], ks: Sequence[int], digits: int
) -> Iterator[str]:
    """A table of metrics, a line for each row and K; without rows nothing."""
    width = max(map(len, ["split  ", *rows])) + 1
    if rows:
        yield "".join([f"{'split':<{width}}{'K':>5}", *(f"{name:>11}" for name in names)])
    for row, metrics in rows.items():
        for k in ks:
            yield f"{row:<{width}}{k:>5}" + "".join(
                f"{metrics[f'{name}@{k}']:>11.{digits}f}" for name in names
            )
