"""Metrics against loops over ranks, the sparse product against a dense one, file writes, locks, hashes."""

import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from layers.dropout import keep_mask
from layers.sparse import csr_product, csr_tensor, mean_of_powers, propagate, propagate_rows
from layers.topk import first_columns, top_columns
from training.metrics import ranking_metrics
from utils import UserError, atomic_write, content_hash, lock_file, write_text
from world import peak_memory_mb


def naive_metrics(hits, n_relevant, k):
    """One user's metrics at k, by the textbook, in plain Python."""
    found, dcg, precisions = 0, 0.0, 0.0
    for rank in range(1, k + 1):
        if hits[rank - 1]:
            found += 1
            dcg += 1 / math.log2(rank + 1)
            precisions += found / rank
    best = min(n_relevant, k)
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, best + 1))
    return {
        f"recall@{k}": found / n_relevant,
        f"ndcg@{k}": dcg / ideal,
        f"precision@{k}": found / k,
        f"map@{k}": precisions / best,
        f"hitrate@{k}": float(found > 0),
    }


def assert_equal_to_naive(hits, n_relevant, ks):
    metrics = ranking_metrics(torch.tensor(hits), torch.tensor(n_relevant), ks)
    assert len(metrics) == 5 * len(ks)
    for user, (row, relevant) in enumerate(zip(hits, n_relevant)):
        for k in ks:
            for name, value in naive_metrics(row, relevant, k).items():
                assert metrics[name].dtype == torch.float64
                assert metrics[name][user].item() == pytest.approx(value, abs=1e-12), (name, user)


def test_metrics_equal_loops_over_random_hits():
    rng = np.random.default_rng(0)
    hits = rng.random((200, 20)) < rng.random((200, 1))
    n_relevant = hits.sum(1) + rng.integers(0, 30, 200)
    assert_equal_to_naive(hits.tolist(), np.maximum(n_relevant, 1).tolist(), (1, 5, 10, 20))


@pytest.mark.parametrize(
    "hits, n_relevant",
    [
        ([True] * 5, 5),
        ([True] * 5, 50),
        ([False] * 5, 1),
        ([False] * 5, 9),
        ([True, False, False, False, False], 1),
        ([False, False, False, False, True], 1),
        ([True, True, False, False, False], 2),
    ],
)
def test_metrics_at_the_edges(hits, n_relevant):
    assert_equal_to_naive([hits], [n_relevant], (1, 3, 5))


def test_perfect_ranking_scores_one_and_more_relevant_than_k_bounds_recall():
    metrics = ranking_metrics(torch.ones(1, 10, dtype=torch.bool), torch.tensor([40]), (10,))
    assert metrics["recall@10"].item() == 0.25
    for name in ("ndcg@10", "precision@10", "map@10", "hitrate@10"):
        assert metrics[name].item() == 1


def random_symmetric(n, dtype):
    rng = np.random.default_rng(0)
    upper = np.triu(rng.standard_normal((n, n)) * (rng.random((n, n)) < 0.3))
    return torch.tensor(upper + np.triu(upper, 1).T, dtype=dtype)


def mean_of_dense_powers(dense, x, layers):
    return sum(torch.linalg.matrix_power(dense, k) @ x for k in range(layers + 1)) / (layers + 1)


def test_csr_product_equals_dense_with_empty_rows():
    dense = torch.tensor([[0, 2.0, 0], [0, 0, 0], [1, 0, 3], [0, 0, 0]], dtype=torch.float64)
    matrix, x = dense.to_sparse_csr(), torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(
        csr_product(matrix.crow_indices(), matrix.col_indices(), matrix.values(), x), dense @ x
    )


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("width", [1, 16, 32, 2**20])
@pytest.mark.parametrize("sizes", [[12], [7, 5], [1, 0, 11]])
def test_propagation_is_the_mean_of_the_powers_forward_and_backward(monkeypatch, layers, width, sizes):
    monkeypatch.setattr(mean_of_powers, "__defaults__", (None, width))
    dense, x = (
        random_symmetric(12, torch.float64),
        torch.randn(12, 35, dtype=torch.float64, requires_grad=True),
    )
    weight = torch.randn(12, 35, dtype=torch.float64)
    parts = propagate(dense.to_sparse_csr(), layers, *x.split(sizes))
    assert [len(part) for part in parts] == sizes
    out, want = torch.cat(parts), mean_of_dense_powers(dense, x, layers)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(*(torch.autograd.grad((value * weight).sum(), x)[0] for value in (out, want)))


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("rows", [([0, 3, 6], [4, 1, 1]), ([5, 5, 5], []), (range(7), range(5))])
def test_some_rows_of_the_propagation_are_those_of_all(layers, rows):
    matrix, x = (
        random_symmetric(12, torch.float64).to_sparse_csr(),
        torch.randn(12, 35, dtype=torch.float64, requires_grad=True),
    )
    rows = [torch.tensor(list(at), dtype=torch.int64) for at in rows]
    weights = [torch.randn(len(at), 35, dtype=torch.float64) for at in rows * 2]

    def whole():
        parts = x.split([7, 5])
        return [part[at] for part, at in zip((*propagate(matrix, layers, *parts), *parts), rows * 2)]

    def some():
        return list(propagate_rows(matrix, layers, rows, *x.split([7, 5])))

    torch.testing.assert_close(some(), whole())
    for used in (4, 1):  # outputs that a loss may leave out
        torch.testing.assert_close(
            *(
                torch.autograd.grad(sum((w * part).sum() for w, part in zip(weights[:used], make())), x)[0]
                for make in (some, whole)
            )
        )


def test_propagation_passes_gradcheck():
    matrix = random_symmetric(7, torch.float64).to_sparse_csr()
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *parts: propagate(matrix, 2, *parts), x.split([4, 3]))


def test_propagation_takes_a_gradient_that_is_not_contiguous():
    dense, x = random_symmetric(6, torch.float32), torch.randn(6, 4, requires_grad=True)
    propagate(dense.to_sparse_csr(), 1, x)[0].T.contiguous().T.sum().backward()
    torch.testing.assert_close(x.grad, mean_of_dense_powers(dense, torch.ones(6, 4), 1))


@pytest.mark.parametrize("n, k", [(704, 1), (704, 5), (1024, 5), (300, 20), (64, 64), (640, 4)])
def test_top_columns_are_those_of_topk_whatever_the_groups(n, k):
    torch.manual_seed(n)
    scores = torch.randn(9, n)
    scores[1, : n - k] = -torch.inf  # just enough candidates
    assert torch.equal(top_columns(scores, k), scores.topk(k, dim=1).indices)
    scores = torch.randint(4, (9, n)).float()  # ties: any of the best will do
    top = top_columns(scores, k)
    assert torch.equal(scores.gather(1, top), scores.topk(k, dim=1).values)
    assert all(len(set(row)) == k for row in top.tolist())


@pytest.mark.parametrize("n, k", [(704, 5), (300, 20), (64, 64), (1024, 1)])
@pytest.mark.parametrize("levels", [1, 4, 10**6])
def test_first_columns_are_those_of_a_stable_sort(n, k, levels):
    torch.manual_seed(n)
    scores = torch.randint(levels, (30, n)).float()
    assert torch.equal(
        first_columns(scores, k), scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    )


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_keep_mask_drops_the_given_share_independently_and_follows_the_seed(p, dtype):
    x = torch.randn(1001, 203, dtype=dtype)
    torch.manual_seed(3)
    kept = keep_mask(x, p)
    assert kept.dtype == dtype and torch.equal(kept, (kept != 0).to(dtype))
    n, share = x.numel(), kept.double().mean().item()
    assert kept.shape == x.shape
    assert abs(share - (1 - p)) <= 5 * math.sqrt(p * (1 - p) / n) + 2**-17
    flat = kept.flatten().double() - share
    for lag in (1, 2, 3, 4, 203):  # four numbers share a draw
        assert abs((flat[lag:] * flat[:-lag]).mean()) <= 5 * max(share * (1 - share), 1e-12) / math.sqrt(n)
    torch.manual_seed(3)
    assert torch.equal(kept, keep_mask(x, p))


def test_csr_tensor_holds_what_it_is_given():
    got = csr_tensor(
        torch.tensor([0, 2, 2, 3]), torch.tensor([0, 2, 1]), torch.tensor([1.0, 2.0, 3.0]), (3, 3)
    )
    assert got.to_dense().tolist() == [[1, 0, 2], [0, 0, 0], [0, 3, 0]]


# ---------------------------------------------------------------- atomic writes


def test_atomic_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_write(path, "w") as file:
        file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_write_keeps_the_old_file_on_an_exception(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def umask():
    """Function that sets the umask; the previous umask is restored after the test."""
    previous = os.umask(0)
    os.umask(previous)
    yield os.umask
    os.umask(previous)


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o027, 0o077])
def test_atomic_write_creates_files_with_the_permissions_of_the_umask(tmp_path, umask, mask):
    umask(mask)
    write_text(tmp_path / "a.txt", "new")
    assert permissions(tmp_path / "a.txt") == 0o666 & ~mask


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o664, 0o755])
def test_atomic_write_keeps_the_permissions_of_an_existing_file(tmp_path, umask, mode):
    umask(0o022)
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(mode)
    with atomic_write(path) as file:
        # Nobody else may read the new content while it is being written either.
        (temporary,) = set(tmp_path.iterdir()) - {path}
        assert permissions(temporary) == mode
        file.write(b"new")
    assert permissions(path) == mode and path.read_text() == "new"


def permissions(path):
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("target_exists", [True, False])
@pytest.mark.parametrize("relative", [True, False])
def test_atomic_write_follows_symbolic_links(tmp_path, target_exists, relative):
    target, middle, link = tmp_path / "disk" / "a.txt", tmp_path / "middle", tmp_path / "link"
    target.parent.mkdir()
    middle.symlink_to("disk/a.txt" if relative else target)
    link.symlink_to("middle" if relative else middle)
    if target_exists:
        target.write_text("old")
    with atomic_write(link, "w") as file:
        file.write("new")
        assert target.exists() == target_exists and (not target_exists or target.read_text() == "old")
    assert target.read_text() == "new" and not target.is_symlink()
    assert link.is_symlink() and middle.is_symlink()
    assert sorted(tmp_path.rglob("*")) == sorted([target.parent, target, middle, link])


def test_atomic_write_refuses_a_loop_of_symbolic_links(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError), atomic_write(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "a").is_symlink() and (tmp_path / "b").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("through_link", [False, True])
def test_atomic_write_writes_into_a_fifo(tmp_path, through_link):
    fifo, path = tmp_path / "fifo", tmp_path / "link" if through_link else tmp_path / "fifo"
    os.mkfifo(fifo)
    if through_link:
        path.symlink_to(fifo)
    # Opened without blocking, so that a writer finds a reader.
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write_text(path, "new")
    assert os.read(reader, 100) == b"new"
    os.close(reader)
    assert fifo.is_fifo() and set(tmp_path.iterdir()) == {fifo, path}


def test_atomic_write_writes_into_a_device(tmp_path):
    (tmp_path / "null").symlink_to(os.devnull)
    with atomic_write(tmp_path / "null", "w") as file:
        file.write("new")
    assert Path(os.devnull).is_char_device() and (tmp_path / "null").is_symlink()
    assert list(tmp_path.iterdir()) == [tmp_path / "null"]


def test_atomic_write_refuses_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError), atomic_write(tmp_path / "a") as file:
        file.write(b"new")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_atomic_write_in_text_mode_is_utf8(tmp_path):
    with atomic_write(tmp_path / "a", "w") as file:
        file.write("\u00e9\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\n"


# ---------------------------------------------------------------- locks


def test_lock_file_refuses_a_second_holder_until_the_block_ends(tmp_path):
    path = tmp_path / ".lock"
    with lock_file(path):
        with pytest.raises(UserError, match="another process is at work in this folder"), lock_file(path):
            raise AssertionError("two holders of one lock")
        assert path.exists()
    with lock_file(path):
        pass


def test_lock_file_waits_for_the_holder_if_asked_to(tmp_path):
    path, events = tmp_path / ".lock", []

    def wait_for_lock():
        with lock_file(path, wait=True):
            events.append("second")

    waiting = threading.Thread(target=wait_for_lock)
    with lock_file(path):
        waiting.start()
        waiting.join(0.1)
        events.append("first")
    waiting.join(10)
    assert events == ["first", "second"]


def test_lock_file_names_a_file_that_cannot_be_opened(tmp_path):
    with (
        pytest.raises(UserError, match="missing/.lock: cannot be written"),
        lock_file(tmp_path / "missing" / ".lock"),
    ):
        raise AssertionError("locked a file that does not exist")


# ---------------------------------------------------------------- hashes


def test_content_hash_depends_on_dtype_shape_values_and_order():
    base = np.arange(6, dtype=np.int32).reshape(2, 3)
    other = base.copy()
    other[1, 2] = 7
    variants = [
        (base,),
        (other,),
        (base.astype(np.int64),),
        (base.reshape(3, 2),),
        (base.T,),
        (base.view(np.float32),),
        (base, 5),
        (base, 6),
        (base, "5"),
        (base, other),
        (other, base),
    ]
    hashes = [content_hash(*parts) for parts in variants]
    assert len(set(hashes)) == len(variants)
    assert hashes == [content_hash(*parts) for parts in variants]
    assert content_hash(np.asfortranarray(base)) == content_hash(base)


# ---------------------------------------------------------------- memory


def test_peak_memory_is_at_least_what_was_touched():
    block = np.ones(8_000_000)  # 64 MB
    assert peak_memory_mb(torch.device("cpu")) > block.nbytes / 1e6
