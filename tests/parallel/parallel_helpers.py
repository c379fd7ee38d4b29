"""Shared by the tests of several processes: work in a process group, main.py as torchrun runs it."""

import datetime
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

# A server that has imported the program once and forks a process in milliseconds.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["main", "session"])
LIMIT = 120  # seconds after which a process counts as hung


def in_processes(p, work, *arguments):
    """[work(*arguments) of process 0, 1, ...] of p processes with a process group."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = [(folder, rank, p, work, arguments) for rank in range(p)]
        processes = [SERVER.Process(target=run_work, args=task) for task in tasks]
        for process in processes:
            process.start()
        assert ends(processes) == [0] * p
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(p)]


def run_work(folder, rank, p, work, arguments):
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), p)
    limit = datetime.timedelta(seconds=LIMIT)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=p, timeout=limit)
    torch.save(work(*arguments), Path(folder) / str(rank))
    dist.barrier()
    dist.destroy_process_group()


def ends(processes):
    """Wait for processes. Returns their exit codes; None for one that hung, which is killed."""
    for process in processes:
        process.join(LIMIT)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def start_main(p, argv, log, change=None, store=None):
    """Start p processes of main(argv) as torchrun does; output in <log>.out and <log>.err.

    change: called with the number of each process before main; store: as returned by an earlier call, whose
    processes have failed. Returns the processes and the store that they meet at, which has to be kept until
    they end.
    """
    store = store or dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    tasks = [(rank, p, store.port, argv, str(log), change) for rank in range(p)]
    processes = [SERVER.Process(target=run_main, args=task) for task in tasks]
    for process in processes:
        process.start()
    return processes, store


def run_main(rank, p, port, argv, log, change):
    for stream, suffix in ((1, "out"), (2, "err")):
        handle = os.open(f"{log}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, stream)
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": p,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    names |= {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_RESTART_COUNT": 0}
    names |= {"TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ.update({name: str(value) for name, value in names.items()})
    if change:
        change(rank)
    from main import main

    sys.exit(main(argv))


def run(p, argv, log, change=None):
    """The exit codes of p processes of main(argv), and the lines of their errors."""
    processes, _store = start_main(p, argv, log, change)
    return ends(processes), errors(log)


def errors(log):
    """The lines of <log>.err, without empty ones."""
    return [line for line in Path(f"{log}.err").read_text().splitlines() if line.strip()]
