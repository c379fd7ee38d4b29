"""Metrics against loops over ranks, file writes, locks, hashes."""

import contextlib
import errno
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from training.memory import peak_memory_mb
from training.metrics import ranking_metrics
from utils import InUse, UserError, atomic_write, content_hash, lock_file, remove_leftovers, write_text

ROOT = Path(__file__).resolve().parents[1]


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
    with pytest.raises(error), atomic_write(path) as file:  # noqa: PT012
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


def test_atomic_write_names_the_file_that_cannot_be_written(tmp_path):
    path = tmp_path / "missing" / "a"
    with pytest.raises(FileNotFoundError) as error, atomic_write(path) as file:
        file.write(b"x")
    assert error.value.filename == str(path)


def test_atomic_write_names_the_file_when_the_disk_is_full(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(OSError, match="No space") as error, atomic_write(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as write, flush and fsync raise it
    assert error.value.filename == str(path) and not list(tmp_path.iterdir())


def test_atomic_write_refuses_a_loop_of_symbolic_links(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"), atomic_write(tmp_path / "a") as file:
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


@pytest.mark.parametrize("content", [b"", b"before\n"])
def test_atomic_write_appends_to_a_file_that_is_open_already(tmp_path, content):
    """As stdout is in a shell's '>> file': replacing the file would lose what others write to it."""
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with open(path, "ab") as stdout:
        (tmp_path / "stdout").symlink_to(f"/proc/self/fd/{stdout.fileno()}")
        write_text(tmp_path / "stdout", "new\n")
        stdout.write(b"after\n")
    assert path.read_bytes() == content + b"new\nafter\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files to others")
def test_atomic_write_keeps_the_owner_of_an_existing_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    os.chown(path, 1234, 2345)
    path.chmod(0o600)
    write_text(path, "new")
    state = path.stat()
    assert (state.st_uid, state.st_gid, permissions(path)) == (1234, 2345, 0o600)
    assert path.read_text() == "new"


@pytest.mark.parametrize("character", ["a", "é", "語"])
def test_atomic_write_takes_every_name_that_the_file_system_takes(tmp_path, character):
    path = tmp_path / (character * (255 // len(character.encode())))
    write_text(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@contextlib.contextmanager
def another_writer(path):
    """A process that is writing `path` during the block; os.kill(PID, SIGTERM) lets it finish."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    pid = os.fork()
    if not pid:
        with atomic_write(path, "w") as file:
            file.write("theirs")
            signal.sigwait([signal.SIGTERM])
        os._exit(0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    while not list(path.parent.glob(".*.tmp")):
        time.sleep(0.01)
    time.sleep(0.05)
    yield pid
    os.waitpid(pid, 0)


def test_atomic_write_removes_what_killed_processes_left_and_nothing_else(tmp_path):
    """Not the file of a process that is still writing, and not what others call by a similar name."""
    (tmp_path / ".a.0badcafe.tmp").write_text("another program's")
    folder, other = tmp_path / "killed", tmp_path / "alive"
    folder.mkdir(), other.mkdir()
    with another_writer(folder / "a") as pid:
        os.kill(pid, signal.SIGKILL)
    assert len(list(folder.iterdir())) == 1
    write_text(folder / "b", "ours")
    assert [path.name for path in folder.iterdir()] == ["b"]
    with another_writer(other / "a") as pid:
        write_text(other / "a", "ours")
        os.kill(pid, signal.SIGTERM)
    assert [path.name for path in other.iterdir()] == ["a"] and (other / "a").read_text() == "theirs"
    write_text(tmp_path / "b", "ours")
    assert {path.name for path in tmp_path.iterdir()} == {".a.0badcafe.tmp", "b", "killed", "alive"}


def test_leftovers_of_all_folders_are_removed_but_for_what_is_being_written(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / ".b.0badcafe.tmp").write_text("another program's")
    (tmp_path / "inner" / ".b.0badcafe.recgoat.tmp").write_text("half")
    with another_writer(tmp_path / "a") as pid:
        remove_leftovers(tmp_path)
        os.kill(pid, signal.SIGTERM)
    assert [path.name for path in (tmp_path / "inner").iterdir()] == [".b.0badcafe.tmp"]
    assert (tmp_path / "a").read_text() == "theirs"


def test_text_that_utf8_lacks_is_written_as_question_marks(tmp_path):
    write_text(tmp_path / "a", "\ud800é")
    with atomic_write(tmp_path / "b", "w") as file:
        file.write("\ud800é")
    assert (tmp_path / "a").read_text("utf-8") == (tmp_path / "b").read_text("utf-8") == "?é"


# ---------------------------------------------------------------- locks


def test_lock_file_refuses_a_second_holder_until_the_block_ends(tmp_path):
    path = tmp_path / ".lock"
    with lock_file(path):
        with pytest.raises(InUse, match="another process is at work in this folder"), lock_file(path):
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


@pytest.mark.parametrize("wait", [False, True])
def test_lock_file_tells_a_file_system_without_locks_from_another_holder(tmp_path, monkeypatch, wait):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with (
        pytest.raises(UserError, match=r"\.lock: cannot be locked \(No locks available\); choose") as caught,
        lock_file(tmp_path / ".lock", wait),
    ):
        raise AssertionError("locked a file without locks")
    assert not isinstance(caught.value, InUse)


def test_lock_file_names_a_file_that_cannot_be_opened(tmp_path):
    with (
        pytest.raises(UserError, match=r"missing/\.lock: cannot be written"),
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


def test_a_file_that_is_about_to_be_renamed_is_not_taken_for_abandoned(tmp_path, monkeypatch):
    """Another process that begins to write in the same folder removes what killed processes left."""
    rename = os.replace

    def rename_after_another_process(source, target):
        code = "import sys; from utils import write_text; write_text(sys.argv[1], 'other')"
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "other")], check=True, cwd=ROOT)
        rename(source, target)

    monkeypatch.setattr(os, "replace", rename_after_another_process)
    write_text(tmp_path / "own", "own")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "own"]
