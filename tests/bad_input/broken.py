"""What the files of broken input share: the command that must refuse, and ways to break a file of small_dataset."""

import os
import struct
from pathlib import Path

import numpy as np

from main import main

ROOT = Path(__file__).resolve().parents[2]


def command(folder, *extra):
    tmp = folder.parents[1]
    return [
        "--dataset",
        "small",
        "--data_root",
        str(folder.parent),
        "--path",
        str(tmp / "runs"),
        "--cuda",
        "0",
        "--epochs",
        "1",
        "--tensorboard",
        "0",
        "--item_knn_k",
        "5",
        "--user_knn_k",
        "5",
        *map(str, extra),
    ]


def assert_refused(code, err, words):
    assert code == 2
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    for word in words:
        assert word in err, (word, err)


def check(folder, capsys, extra, words):
    """main() on the broken dataset: exit code 2, one line with these words, no run folder."""
    code = main(command(folder, *extra))
    assert_refused(code, capsys.readouterr().err, words)
    assert not (folder.parents[1] / "runs").exists()


def no_change(folder):
    """The dataset is fine; the command line is not."""


def edit(name, change):
    """A case that rewrites the lines of a file."""

    def breaking(folder):
        path = folder / name
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")

    return breaking


def append(name, line):
    return edit(name, lambda lines: lines + [line])


def remove(name):
    return lambda folder: (folder / name).unlink()


def empty(name):
    return lambda folder: (folder / name).write_text("")


def text_as(array):
    return lambda folder: np.save(folder / "text_feat.npy", array, allow_pickle=True)


def text_bytes(content):
    return lambda folder: (folder / "text_feat.npy").write_bytes(content)


def with_value(row, value):
    features = np.ones((30, 12), np.float32)
    features[row, 3] = value
    return features


def npy(shape, dtype="'<f4'", body=bytes(64), version=1):
    """Bytes of a .npy whose header says what it is told to."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return (
        b"\x93NUMPY"
        + bytes([version, 0])
        + struct.pack("<H" if version == 1 else "<I", len(header))
        + header
        + body
    )


class Trap:
    """An object whose unpickling makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)
