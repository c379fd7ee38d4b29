"""Shared by the tests of column parallelism: work done by P processes with gloo, each with its own result."""

import datetime
import multiprocessing
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

# A server that has imported torch once and forks a process in milliseconds.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["main"])
LIMIT = 120  # seconds


def in_processes(p, work, *arguments):
    """[work(*arguments) of process 0, 1, ...] of p processes with a process group; one works right here."""
    if p == 1:
        return [work(*arguments)]
    with tempfile.TemporaryDirectory() as folder:
        processes = [SERVER.Process(target=run_rank, args=(folder, r, p, work, arguments)) for r in range(p)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(LIMIT)
        for process in processes:
            process.kill()
        assert [process.exitcode for process in processes] == [0] * p
        return [torch.load(Path(folder) / str(r), weights_only=False) for r in range(p)]


def run_rank(folder, rank, p, work, arguments):
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), p)
    timeout = datetime.timedelta(seconds=LIMIT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=p, timeout=timeout)
    torch.save(work(*arguments), Path(folder) / str(rank))
    dist.barrier()
    dist.destroy_process_group()
