"""Numbers that the authors' released code computes; tests/released/README.md says where they come from."""

from pathlib import Path

import numpy as np
import torch
from helpers import write_txt

FILE = Path(__file__).parent / "released" / "oracle.npz"
SAMPLE = 200  # entries of an array that are stored


def digest(array):
    """About SAMPLE entries of an array, evenly spaced, and a weighted sum over all of its rows."""
    x = np.asarray(array, dtype=np.float64)
    rows = x.reshape(len(x), -1) if x.ndim else x.reshape(1, 1)
    return np.concatenate([x.ravel()[:: -(-x.size // SAMPLE)], np.cos(np.arange(len(rows))) @ rows])


def read_oracle():
    """{key: array}; the keys are explained in tests/released/README.md."""
    with np.load(FILE, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def write_tiny(oracle, folder):
    """The dataset folder that the numbers belong to."""
    write_txt(folder, *(oracle[f"tiny/{split}"] for split in ("train", "valid", "test")))
    for m in ("text", "image"):
        np.save(folder / f"{m}_feat.npy", oracle[f"tiny/{m}"])


def parameter_name(key):
    """The name in RecGOAT of a weight of the released code, as the oracle calls it."""
    first, *rest = key.split("/")
    if first in ("user", "item"):
        return f"backbone.{first}"
    if first in ("text", "image"):
        if rest == ["residual"]:
            return f"fusion.transports.{first}.residual"
        part = "project" if rest[0] == "projection" else f"layers.{rest[1]}"
        return f"branches.{first}.{part}.{rest[-1]}"
    return {
        "fusion/weights": "fusion.weights",
        "fusion/layer_norm/weight": "fusion.layer_norm.weight",
        "fusion/layer_norm/bias": "fusion.layer_norm.bias",
        "fusion/projection/weight": "fusion.project.weight",
        "fusion/projection/bias": "fusion.project.bias",
    }[key]


def initial_weights(oracle, case):
    """{name in RecGOAT: weight} before training, of one case of the oracle."""
    parts = {
        key.split("init/")[1]: torch.from_numpy(value)
        for key, value in oracle.items()
        if key.startswith(("init/", f"{case}/init/"))
    }
    return {parameter_name(key): value for key, value in parts.items()}


def digests(oracle, prefix):
    """{name in RecGOAT: digest} of the gradients or weights whose keys start with a prefix."""
    return {
        parameter_name(key.removeprefix(prefix)): value
        for key, value in oracle.items()
        if key.startswith(prefix)
    }
