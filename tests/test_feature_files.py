"""Feature files: .npy matrices whose row r belongs to id r."""

import os

import numpy as np
import pytest
from helpers import random_features

from data.feature_files import feature_paths, load_features, open_features
from utils import UserError
from world import Config


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("block", [1, 7, 4096])
def test_features_are_read_in_blocks_as_float32(tmp_path, dtype, block):
    written = random_features(23, 5).astype(dtype)
    np.save(tmp_path / "f.npy", written)
    array = open_features(tmp_path / "f.npy")
    assert isinstance(array, np.memmap) and not array.flags.writeable
    features = load_features(array, "f.npy", 23, block=block)
    assert features.dtype == np.float32 and features.flags.c_contiguous
    np.testing.assert_array_equal(features, written.astype(np.float32))


def test_features_may_be_in_fortran_order(tmp_path):
    written = random_features(9, 4)
    np.save(tmp_path / "f.npy", np.asfortranarray(written))
    np.testing.assert_array_equal(load_features(open_features(tmp_path / "f.npy"), "f.npy", 9), written)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("row", [0, 6, 7, 22])
def test_the_first_row_that_is_not_finite_is_named(bad, row):
    features = random_features(23, 5).astype(np.float64)
    features[row, 3] = bad
    features[22, 0] = np.nan
    with pytest.raises(UserError, match=rf"f\.npy, row {row}: "):
        load_features(features, "f.npy", 23, block=7)


def test_feature_paths_are_the_flags_or_else_the_files_of_the_folder(tmp_path):
    for modality in ("audio", "text"):
        (tmp_path / f"{modality}_feat.npy").touch()
    found = {modality: str(tmp_path / f"{modality}_feat.npy") for modality in ("text", "audio")}
    assert list(feature_paths(Config(model="lgn_mm"), tmp_path).items()) == list(found.items())
    assert feature_paths(Config(model="lgn_mm", image_feat="x.npy"), tmp_path) == {"image": "x.npy"}
    assert feature_paths(Config(model="lgn", use_multimodal=0), tmp_path) == {}
    (tmp_path / "empty").mkdir()
    assert feature_paths(Config(model="lgn"), tmp_path / "empty") == {}


def test_a_file_that_is_cut_off_while_it_is_mapped(tmp_path):
    """A mapped page beyond the end of its file would end the process, as SIGBUS."""
    np.save(tmp_path / "f.npy", random_features(20_000, 8))
    array = open_features(tmp_path / "f.npy")
    os.truncate(tmp_path / "f.npy", 4096)
    with pytest.raises(UserError, match=r"f\.npy: was changed while it was read"):
        load_features(array, tmp_path / "f.npy", 20_000)


def test_a_file_that_is_written_while_it_is_read(tmp_path, monkeypatch):
    np.save(tmp_path / "f.npy", random_features(100, 8))
    array = open_features(tmp_path / "f.npy")
    original = np.fromfile

    def fromfile(file, dtype, count):
        with open(tmp_path / "f.npy", "r+b") as other:
            other.seek(-4, os.SEEK_END)
            other.write(b"\0\0\0\0")
        os.utime(tmp_path / "f.npy", ns=(1, 1))
        return original(file, dtype, count)

    monkeypatch.setattr(np, "fromfile", fromfile)
    with pytest.raises(UserError, match=r"f\.npy: was changed while it was read"):
        load_features(array, tmp_path / "f.npy", 100, block=10)
