"""Any bytes, and valid files with damage, for every reader: a correct object or UserError with one line; nothing else.

Examples: 500 for each of the cheap readers, 300 for archives and checkpoints, half of them damaged valid files. They
are the same in every run. No example may take long, and all of them together no more than 1 GB of memory.
"""

import io
import json
import resource
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
from training.checkpoint import CHECKPOINT_KEYS, read_checkpoint
from utils import UserError, content_hash
from world import Config, read_settings

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
def memory():
    """The growth of this process's peak memory over the module is bounded."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kB


def mutated(valid):
    """Valid bytes with some of them overwritten, cut out, put in twice or cut off."""
    spot = st.integers(0, len(valid))

    def apply(changes):
        data = bytearray(valid)
        for kind, at, width, junk in changes:
            if kind == "overwrite":
                data[at : at + len(junk)] = junk
            elif kind == "insert":
                data[at:at] = junk
            elif kind == "repeat":
                data[at:at] = data[at : at + width]
            elif kind == "delete":
                del data[at : at + width]
            else:
                del data[at:]
        return bytes(data)

    change = st.tuples(
        st.sampled_from(["overwrite", "overwrite", "insert", "repeat", "delete", "cut"]),
        spot,
        st.integers(1, 64),
        st.binary(min_size=1, max_size=8),
    )
    return st.lists(change, min_size=1, max_size=4).map(apply)


def bytes_like(*valid):
    """Arbitrary bytes, or damaged copies of one of these files."""
    return st.one_of(st.binary(max_size=400), *(mutated(data) for data in valid))


def read(reader, path, data, *arguments):
    """What a reader makes of a file of these bytes; None if it refuses them in one line."""
    path.write_bytes(data)
    try:
        return reader(path, *arguments)
    except UserError as error:
        message = str(error)
        assert message and "\n" not in " ".join(message.split()) and len(message) < 1000
        return None


def packed(save, *arguments, **named):
    buffer = io.BytesIO()
    save(buffer, *arguments, **named)
    return buffer.getvalue()


TXT = b"0 1 2 3\n1 4\n2 0 5\n3\n\n4 29 28\r\n"
INTER = b"userID\titemID\trating\ttimestamp\tx_label\n0\t1\t5\t17\t0\n1\t2\t3.5\t18\t1\n2\t3\t1\t19\t2\n0\t2\t4\t20\t0\n"
FEATURES = np.random.default_rng(0).standard_normal((N, 3))
NEIGHBOURS = (np.arange(N)[:, None] + np.arange(1, K + 1)) % N


@MANY
@given(data=st.one_of(bytes_like(TXT), st.text("0123456789 \n\t-x\u0663", max_size=200).map(str.encode)))
def test_read_txt(data, tmp_path):
    table = read(read_txt, tmp_path / "train.txt", data)
    if table is not None:
        assert (table[["user", "item"]].to_numpy() >= 0).all() and (
            table[["user", "item"]].to_numpy() < 10**10
        ).all()
        rows = [line.split() for line in data.split(b"\n")]
        assert len(table) == sum(max(len(row) - 1, 0) for row in rows)
        assert [int(word) for row in rows for word in row[1:]] == table["item"].tolist()


@MANY
@given(
    data=st.one_of(
        bytes_like(INTER), st.text("0123\t\n.\"'-", max_size=200).map(lambda text: INTER + text.encode())
    )
)
def test_read_inter(data, tmp_path):
    tables = read(read_inter, tmp_path / "a.inter", data)
    if tables is not None:
        assert set(tables) == {"train", "valid", "test"}
        lines = data.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for label, table in enumerate(tables.values()):
            for row in table.itertuples():
                header, cells = (lines[at].removeprefix("\ufeff").split("\t") for at in (0, row.line - 1))
                named = dict(zip(header, cells))
                assert (int(named["userID"]), int(named["itemID"]), named["x_label"]) == (
                    row.user,
                    row.item,
                    str(label),
                )
                assert row.user >= 0 and row.item >= 0 and (np.isnan(row.rating) or 0 < row.rating < np.inf)


SHAPES = st.lists(st.integers(-5, 2**70), max_size=5).map(
    lambda shape: npy("(" + "".join(f"{n}," for n in shape) + ")")
)
HEADERS = st.tuples(
    SHAPES,
    st.sampled_from(
        ["'<f4'", "'<f8'", "'|O'", "'<i4'", "'|V8'", "'<M8[s]'", "[('a', '<f4')]", "'<U9'", "None"]
    ),
).map(lambda pair: pair[0].replace(b"'<f4'", pair[1].encode()))


def features(path):
    array = open_features(path)
    return load_features(array, path, len(array))


@MANY
@given(
    data=st.one_of(
        bytes_like(
            *(packed(np.save, FEATURES.astype(kind)) for kind in (np.float16, np.float32, np.float64)),
            packed(np.savez, a=FEATURES),
        ),
        SHAPES,
        HEADERS,
    )
)
def test_features(data, tmp_path):
    matrix = read(features, tmp_path / "f.npy", data)
    if matrix is not None:
        assert (
            matrix.dtype == np.float32 and matrix.ndim == 2 and matrix.shape[1] and np.isfinite(matrix).all()
        )
        assert matrix.size * 2 <= len(data)


@SOME
@given(
    data=bytes_like(
        packed(np.savez, nbr=NEIGHBOURS), packed(np.savez_compressed, nbr=NEIGHBOURS.astype(np.int32))
    )
)
def test_read_neighbours(data, tmp_path):
    found = read(read_neighbours, tmp_path / "knn.npz", data, N, K)
    if found is not None:
        neighbours, notes = found
        assert neighbours.dtype == np.int64 and len(neighbours) == N and neighbours.shape[1] <= K
        assert ((neighbours >= 0) & (neighbours < N)).all() and all(
            note.startswith("note: ") for note in notes
        )


@SOME
@given(
    data=bytes_like(
        packed(np.savez, nbr=NEIGHBOURS.astype(np.int32), sha256=content_hash(NEIGHBOURS.astype(np.int32)))
    )
)
def test_read_cached(data, tmp_path):
    neighbours = read(read_cached, tmp_path / "knn.npz", data)
    if neighbours is not None:
        assert is_neighbour_table(neighbours, N, K) and np.array_equal(
            neighbours, NEIGHBOURS
        )  # a changed one would not match its hash


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
    stored = read(read_settings, tmp_path / "config.json", data)
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
        assert CHECKPOINT_KEYS <= state.keys() and state["progress"]["epoch"] >= 0
        assert all(
            isinstance(weight, torch.Tensor) and weight.isfinite().all() for weight in state["model"].values()
        )


@SOME
@given(data=st.data())
def test_read_checkpoint_with_a_damaged_pickle(data, checkpoint, tmp_path):
    import zipfile

    with zipfile.ZipFile(io.BytesIO(checkpoint)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    members[name] = data.draw(mutated(members[name]))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    state = read(read_checkpoint, tmp_path / "last.pt", buffer.getvalue())
    assert state is None or CHECKPOINT_KEYS <= state.keys()
