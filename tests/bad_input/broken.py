"""Shared by the tests of bad input: the command that must refuse it, and functions that break a dataset.

Most cases are pairs (break_dataset, words): break_dataset(folder) damages the dataset in a folder, and the
error message must contain all words.
"""

import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from main import main

ROOT = Path(__file__).resolve().parents[2]
Break = Callable[[Path], Any]


# ---------------------------------------------------------------- what must be refused, and how


def command_line(folder: Path, *extra: Any) -> list[str]:
    """Return the arguments of a short training on the dataset in `folder`, followed by `extra`."""
    settings = {
        "dataset": "small",
        "data_root": folder.parent,
        "path": runs_folder(folder),
        "cuda": 0,
        "epochs": 1,
        "tensorboard": 0,
        "item_knn_k": 5,
        "user_knn_k": 5,
    }
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)] + [
        str(word) for word in extra
    ]


def runs_folder(folder: Path) -> Path:
    """Return the folder of the runs that train on the dataset in `folder`."""
    return folder.parents[1] / "runs"


def assert_refused(code: int, err: str, words: Iterable[str]) -> None:
    """Assert exit code 2 and one line on stderr that contains all words."""
    assert code == 2
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    for word in words:
        assert word in err, (word, err)


def assert_training_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], extra: Iterable[Any], words: Iterable[str]
) -> None:
    """Assert that a training on the dataset in `folder` is refused before it creates a run folder."""
    code = main(command_line(folder, *extra))
    assert_refused(code, capsys.readouterr().err, words)
    assert not runs_folder(folder).exists()


# ---------------------------------------------------------------- text files


def no_change(folder: Path) -> None:
    """Leave the dataset as it is, for a bad command line."""


def edit_lines(name: str, change: Callable[[list[str]], list[str]]) -> Break:
    """Return a function that rewrites the lines of a file."""

    def break_dataset(folder: Path) -> None:
        path = folder / name
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")

    return break_dataset


def append_line(name: str, line: str) -> Break:
    return edit_lines(name, lambda lines: [*lines, line])


def remove_file(name: str) -> Break:
    return lambda folder: (folder / name).unlink()


def empty_file(name: str) -> Break:
    return lambda folder: (folder / name).write_text("")


def replace_by_folder(name: str) -> Break:
    """Return a function that puts a folder in the place of a file."""

    def break_dataset(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return break_dataset


# ---------------------------------------------------------------- arrays


def text_array(array: np.ndarray) -> Break:
    """Return a function that saves an array as the text features."""
    return lambda folder: np.save(folder / "text_feat.npy", array, allow_pickle=True)


def text_bytes(content: bytes) -> Break:
    """Return a function that writes bytes as the file of text features."""
    return lambda folder: (folder / "text_feat.npy").write_bytes(content)


def ones_but(row: int, value: float) -> np.ndarray:
    """Return features of ones [30, 12] float32 with another value in one row."""
    features = np.ones((30, 12), np.float32)
    features[row, 3] = value
    return features


def npy(shape: str, dtype: str = "'<f4'", body: bytes = bytes(64), version: int = 1) -> bytes:
    """Return a .npy file with this header, whether or not it matches the body."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + body


class Trap:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.marker,)
