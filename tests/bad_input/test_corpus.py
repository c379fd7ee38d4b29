"""The number of bad inputs in the corpus, by kind."""

import importlib

KINDS = (
    "interactions",
    "features",
    "neighbour_files",
    "checkpoints",
    "command_lines",
    "run_folders",
    "studies",
)


def test_the_corpus_has_enough_cases_of_each_kind(capsys):
    counts = {kind.replace("_", " "): len(importlib.import_module(f"test_{kind}").CASES) for kind in KINDS}
    by_kind = ", ".join(f"{kind} {count}" for kind, count in counts.items())
    with capsys.disabled():
        print(f"\nbad inputs: {sum(counts.values())} ({by_kind})")
    assert sum(counts.values()) >= 60 and min(counts.values()) >= 10
