"""The number of bad inputs in the corpus, by kind, is the one that SECURITY.md names."""

import importlib
from pathlib import Path

KINDS = (
    "interactions",
    "features",
    "neighbour_files",
    "checkpoints",
    "command_lines",
    "run_folders",
    "studies",
)


def test_the_corpus_has_the_cases_that_security_md_names():
    counts = {kind.replace("_", " "): len(importlib.import_module(f"test_{kind}").CASES) for kind in KINDS}
    by_kind = ", ".join(f"{kind} {count}" for kind, count in counts.items())
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    assert f"command lines: {by_kind} |" in text and f"| {sum(counts.values())}, each" in text
