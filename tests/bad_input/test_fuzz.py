"""Readers return a valid result or raise a one-line UserError, whatever bytes they are given.

500 examples for each of the fast readers, 300 for archives and checkpoints; about half are damaged copies
of a valid file. They are the same in every run. The time of each and the memory of all are bounded.
"""

import io
import json
import resource
import zipfile
from datetime import timedelta

import numpy as np
import pytest
import torch
from broken import npy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.feature_files import load_features, open_features
from data.formats import read_inter, read_txt
from data.graphs import is_neighbour_table, read_cached, read_neighbours
from parse import restorable
from training.checkpoint import ENTRIES, read_checkpoint
from training.records import read_settings
from utils import UserError, content_hash
from world import Config

N, K = 30, 6
MANY = settings(
    max_examples=500,
    derandomize=True,
    deadline=timedelta(seconds=5),
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
SOME = settings(MANY, max_examples=300)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """Assert that the peak memory of this process grows by less than 1 GB over the module."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kB


def damaged(valid):
    """Strategy: copies of valid bytes with parts overwritten, inserted, repeated, deleted or cut off."""

    def apply(changes):
        data = bytearray(valid)
        for kind, start, width, junk in changes:
            if kind == "overwrite":
                data[start : start + len(junk)] = junk
            elif kind == "insert":
                data[start:start] = junk
            elif kind == "repeat":
                data[start:start] = data[start : start + width]
            elif kind == "delete":
                del data[start : start + width]
            else:
                del data[start:]
        return bytes(data)

    change = st.tuples(
        st.sampled_from(["overwrite", "overwrite", "insert", "repeat", "delete", "cut"]),
        st.integers(0, len(valid)),
        st.integers(1, 64),
        st.binary(min_size=1, max_size=8),
    )
    return st.lists(change, min_size=1, max_size=4).map(apply)


def bytes_like(*valid):
    """Strategy: arbitrary bytes, or damaged copies of one of these files."""
    return st.one_of(st.binary(max_size=400), *(damaged(data) for data in valid))


def read(reader, path, data, *arguments):
    """Return the result of a reader for a file of these bytes, or None if it refuses them in one line."""
    path.write_bytes(data)
    try:
        return reader(path, *arguments)
    except UserError as error:
        message = str(error)
        assert message and "\n" not in " ".join(message.split()) and len(message) < 1000
        return None


def saved(save, *arguments, **named):
    """Return the bytes that numpy.save or numpy.savez writes."""
    buffer = io.BytesIO()
    save(buffer, *arguments, **named)
    return buffer.getvalue()


TXT = b"0 1 2 3\n1 4\n2 0 5\n3\n\n4 29 28\r\n"
INTER = (
    b"userID\titemID\trating\ttimestamp\tx_label\n"
    b"0\t1\t5\t17\t0\n1\t2\t3.5\t18\t1\n2\t3\t1\t19\t2\n0\t2\t4\t20\t0\n"
)
FEATURES = np.random.default_rng(0).standard_normal((N, 3))
NEIGHBOURS = (np.arange(N)[:, None] + np.arange(1, K + 1)) % N


@MANY
@given(data=st.one_of(bytes_like(TXT), st.text("0123456789 \n\t-x\u0663", max_size=200).map(str.encode)))
def test_read_txt(data, tmp_path):
    table = read(read_txt, tmp_path / "train.txt", data)
    if table is not None:
        rows = [[int(word) for word in line.split()] for line in data.split(b"\n")]
        expected = [(row[0], item, i) for i, row in enumerate(rows, 1) for item in row[1:]]
        columns = table[["user", "item", "line"]]
        assert [tuple(row) for row in columns.to_numpy().tolist()] == expected
        assert all(0 <= value < 10**10 for row in expected for value in row)


@MANY
@given(
    data=st.one_of(
        bytes_like(INTER), st.text("0123\t\n.\"'-", max_size=200).map(lambda text: INTER + text.encode())
    )
)
def test_read_inter(data, tmp_path):
    tables = read(read_inter, tmp_path / "a.inter", data)
    if tables is not None:
        assert list(tables) == ["train", "valid", "test"]
        lines = data.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
        header = lines[0].removeprefix("\ufeff").split("\t")
        for label, table in enumerate(tables.values()):
            for row in table.itertuples():
                cells = dict(zip(header, lines[row.line - 1].split("\t"), strict=False))
                written = int(cells["userID"]), int(cells["itemID"]), cells["x_label"]
                assert written == (row.user, row.item, str(label))
                assert row.user >= 0 and row.item >= 0
                assert np.isnan(row.rating) or 0 < row.rating < np.inf


# .npy files of any shape and type, both valid and not.
DTYPES = ["'<f4'", "'<f8'", "'|O'", "'<i4'", "'|V8'", "'<M8[s]'", "[('a', '<f4')]", "'<U9'", "None"]
SHAPES = st.lists(st.integers(-5, 2**70), max_size=5).map(lambda shape: str(tuple(shape)))
HEADERS = st.builds(npy, SHAPES, st.just("'<f4'") | st.sampled_from(DTYPES))
FEATURE_FILES = [
    *(saved(np.save, FEATURES.astype(kind)) for kind in (np.float16, np.float32, np.float64)),
    saved(np.savez, a=FEATURES),
]


def read_features(path):
    array = open_features(path)
    return load_features(array, path, len(array))


@MANY
@given(data=st.one_of(bytes_like(*FEATURE_FILES), HEADERS))
def test_features(data, tmp_path):
    matrix = read(read_features, tmp_path / "f.npy", data)
    if matrix is not None:
        assert matrix.dtype == np.float32 and matrix.ndim == 2 and matrix.shape[1]
        assert np.isfinite(matrix).all()
        # At least two bytes of the file for each number: nothing comes from a header alone.
        assert matrix.size * 2 <= len(data)


@SOME
@given(
    data=bytes_like(
        saved(np.savez, nbr=NEIGHBOURS), saved(np.savez_compressed, nbr=NEIGHBOURS.astype(np.int32))
    )
)
def test_read_neighbours(data, tmp_path):
    found = read(read_neighbours, tmp_path / "knn.npz", data, N, K)
    if found is not None:
        neighbours, notes = found
        assert neighbours.dtype == np.int64 and len(neighbours) == N and neighbours.shape[1] <= K
        assert ((neighbours >= 0) & (neighbours < N)).all()
        assert all(note.startswith("note: ") for note in notes)


CACHED = NEIGHBOURS.astype(np.int32)


@SOME
@given(data=bytes_like(saved(np.savez, nbr=CACHED, sha256=content_hash(CACHED))))
def test_read_cached(data, tmp_path):
    neighbours = read(read_cached, tmp_path / "knn.npz", data)
    if neighbours is not None:
        # A changed table would not match its checksum.
        assert is_neighbour_table(neighbours, N, K) and np.array_equal(neighbours, NEIGHBOURS)


CONFIG = json.dumps({**Config().as_dict(), "provenance": {"torch": "2"}}).encode()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*Config().as_dict()]), inner, max_size=4)
    ),
    max_leaves=8,
)


@MANY
@given(
    data=st.one_of(
        bytes_like(CONFIG),
        JSON.map(lambda value: json.dumps(value).encode()),
        st.integers(1, 10**6).map(lambda n: b"[" * n),
    )
)
def test_read_settings(data, tmp_path):
    stored = read(lambda path: restorable(read_settings(path), path), tmp_path / "config.json", data)
    if stored is not None:
        assert stored.keys() <= Config().as_dict().keys()
        with open(tmp_path / "config.json", "rb") as file:
            json.load(file)


@pytest.fixture(scope="module")
def checkpoint(trained):
    return (trained[1] / "last.pt").read_bytes()


@SOME
@given(data=st.data())
def test_read_checkpoint(data, checkpoint, tmp_path):
    state = read(read_checkpoint, tmp_path / "last.pt", data.draw(bytes_like(checkpoint)))
    if state is not None:
        assert ENTRIES.keys() <= state.keys() and state["progress"]["epoch"] >= 0
        weights = state["model"].values()
        assert all(isinstance(weight, torch.Tensor) and weight.isfinite().all() for weight in weights)


@SOME
@given(data=st.data())
def test_read_checkpoint_with_a_damaged_pickle(data, checkpoint, tmp_path):
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    members[name] = data.draw(damaged(members[name]))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    state = read(read_checkpoint, tmp_path / "last.pt", buffer.getvalue())
    assert state is None or ENTRIES.keys() <= state.keys()
