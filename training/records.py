"""The JSON files of a run folder as they are read again, each checked against its schema.

settings = read_settings("runs/a/config.json", remedy)     # {"dataset": "baby", ..., "provenance": {...}}
result = read_result("runs/a/result.json")                 # {"status": "finished", "test": {...}, ...}
"""

from pathlib import Path
from typing import Any

from incoming import ANY, COUNT, NUMBER, SHARE, TEXT, check, one_of, optional, parse_json, read_object
from utils import UserError

LEAVE_OUT = "fix it or leave this run out"
SPLIT = one_of("train", "valid", "test")
SETTINGS = {"model": TEXT, "dataset": TEXT, "seed": COUNT, "provenance": {"resumed": [{str: ANY}]}}
RESULT = {
    "status": one_of("finished", "interrupted", "failed", "tuned", "pruned"),
    "reason": TEXT,
    "error": TEXT,
    "epoch": COUNT,
    "epochs": COUNT,
    "best_epoch": COUNT,
    "step": COUNT,
    "valid": {str: SHARE},
    "test": {str: SHARE},
    "beyond_accuracy": {"valid": {str: NUMBER}, "test": {str: NUMBER}},
    "cold_items": {
        "items": COUNT,
        "vectors": one_of("features", "model"),
        "valid": {str: {str: SHARE}},
        "test": {str: {str: SHARE}},
    },
    "protocol": {
        "selected_on": SPLIT,
        "selection_metric": TEXT,
        "eval_dropout": COUNT,
        "masked_at_test": [SPLIT],
    },
    "data": {"interactions": TEXT, "all": TEXT, "features": {str: TEXT}},
    "seconds": NUMBER,
    "seconds_to_best": NUMBER,
    "test_seconds": NUMBER,
    "peak_memory_mb": optional(NUMBER),
    "device": TEXT,
    "versions": {"git_dirty": ANY, str: optional(TEXT)},
}
EVALUATION = {
    "epoch": COUNT,
    "step": COUNT,
    "seconds": NUMBER,
    "epoch_seconds": NUMBER,
    "evaluation_seconds": NUMBER,
    "train": {str: optional(NUMBER)},
    "valid": {str: NUMBER},
    "test": {str: NUMBER},
    "model": {str: optional(NUMBER)},
}


def read_settings(path: str | Path, remedy: str = LEAVE_OUT) -> dict[str, Any]:
    """The entries of a config.json. Raises UserError, which ends in `remedy`, unless it may hold settings.

    Of the settings, only those that identify a run are checked: the rest by the Config class they are for.
    """
    return check(read_object(path, remedy), SETTINGS, path, remedy)


def read_result(path: str | Path, remedy: str = LEAVE_OUT) -> dict[str, Any]:
    """The entries of a result.json; those of a finished run include "test". Raises UserError for others."""
    result = check(read_object(path, remedy), RESULT, path, remedy)
    if result.get("status") == "finished" and not result.get("test"):
        raise UserError(f"{path}: lacks test metrics; {remedy}")
    return result


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, [] without one; a line that a killed process left incomplete is skipped.

    Raises UserError for a line that is JSON but no evaluation.
    """
    evaluations = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "epoch" in entry:
            evaluations.append(check(entry, EVALUATION, f"{path}, line {number}", LEAVE_OUT))
    return evaluations
