"""How many broken inputs there are, by kind."""

import importlib

KINDS = ("interactions", "features", "neighbour_files", "checkpoints", "command_lines")


def test_count(capsys):
    counts = {kind.replace("_", " "): len(importlib.import_module(f"test_{kind}").CASES) for kind in KINDS}
    with capsys.disabled():
        print(
            f"\nbroken inputs: {sum(counts.values())} ({', '.join(f'{kind} {count}' for kind, count in counts.items())})"
        )
    assert sum(counts.values()) >= 60 and min(counts.values()) >= 10
