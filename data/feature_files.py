"""Feature files of a dataset folder: .npy matrices, row r for id r."""

import warnings

import numpy as np

from utils import UserError
from world import CONTENT_MODELS, MODALITIES


def open_features(path, rows_are="items"):
    """A .npy of float16, float32 or float64 [rows, dim], memory-mapped. Raises UserError for anything else."""
    try:
        with (
            np.errstate(over="raise"),
            warnings.catch_warnings(action="ignore"),
        ):  # of absurd shapes and odd headers
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); name a .npy file of {rows_are} x dimensions"
        ) from None
    except (
        Exception
    ) as error:  # a damaged header ends in ValueError, EOFError, SyntaxError, BadZipFile, TokenError, ...
        raise UserError(
            f"{path}: is not a plain .npy array ({str(error).splitlines()[0][:80] if str(error) else type(error).__name__}); "
            "save it with numpy.save"
        ) from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: is an archive; name a .npy file of {rows_are} x dimensions")
    if array.ndim != 2 or not array.shape[1]:
        raise UserError(f"{path}: has shape {array.shape}; features are a matrix of {rows_are} x dimensions")
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise UserError(f"{path}: has type {array.dtype}; features are float16, float32 or float64")
    return array


def load_features(array, path, rows, rows_are="items", block=4096):
    """Memory-mapped features -> float32 [rows, dim], read block by block.

    Raises UserError if there are too few or too many rows, or for the first row with NaN or Inf.
    """
    if len(array) != rows:
        raise UserError(
            f"{path}: has {len(array)} rows for {rows} {rows_are}; row r must hold the features of id r"
        )
    features = np.empty(array.shape, np.float32)
    for start in range(0, rows, block):
        part = features[start : start + block]
        with np.errstate(over="ignore"):
            part[:] = array[start : start + block]
        finite = np.isfinite(part).all(axis=1)
        if not finite.all():
            raise UserError(
                f"{path}, row {start + (~finite).argmax()}: holds NaN, Inf or a number too large for float32; "
                "replace it, say by the mean of its column"
            )
    return features


def feature_paths(config, folder):
    """{modality: path} of the item features that are named or, if none is, lie in the folder; in the order of MODALITIES."""
    if not config.use_multimodal:
        return {}
    named = {m: getattr(config, f"{m}_feat") for m in MODALITIES}
    if not any(named.values()):
        named = {m: path for m in MODALITIES if (path := folder / f"{m}_feat.npy").exists()}
    if not any(named.values()) and config.model in CONTENT_MODELS:
        raise UserError(
            f"{folder}: has no text_feat.npy, image_feat.npy or audio_feat.npy; --model {config.model} needs features: "
            "name them with --text_feat, --image_feat or --audio_feat"
        )
    return {m: str(path) for m, path in named.items() if path}
