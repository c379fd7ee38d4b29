"""Faults of runs on two processes: each has to end, and to be continued to the result of an undisturbed run.

    python -m benchmarks.parallel_faults                       # all cases ten times, about half an hour
    python -m benchmarks.parallel_faults --runs 2 --only kill disk

Real processes of a real torchrun are disturbed at a random moment after the first checkpoint. Unless torchrun
has started them again itself, the run is then continued with --resume, and its result is compared bit by bit
(benchmarks/processes.py). A process that does not answer is given up after 20 seconds instead of the 10
minutes of training/parallel.py. Two nodes are two torchruns; for the case "cut" they are in network
namespaces, whose link is taken down (needs root). There torchrun waits until TCP gives up, which takes about
a minute instead of a quarter of an hour (--tcp_retries). Exits with 1 if anything differs or does not end.
"""

import argparse
import contextlib
import dataclasses
import datetime
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from benchmarks.faults import DATASET, SETTINGS, fill, small_disk
from benchmarks.processes import (
    ROOT,
    SERVER,
    differences,
    errors,
    finish,
    leftovers,
    outcome,
    run_folders,
    run_main,
)
from data.synthetic import make_dataset, write_dataset

GIVEN_UP = 20  # seconds after which a process that does not answer is given up
LIMIT = 240.0  # seconds after which a torchrun counts as hung
EPOCHS = 8
Agents = list[subprocess.Popen]  # torchruns of one run

# ---------------------------------------------------------------- torchrun


def launch(argv: Sequence[str], log: Path, flags: Sequence[str], node: int = -1) -> subprocess.Popen:
    """Start torchrun with main(argv); output in <log>.out and <log>.err. node: its namespace (-1: none)."""
    words = [sys.executable, "-m", "torch.distributed.run", *flags, str(Path(__file__).resolve()), *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if node >= 0:
        words = ["ip", "netns", "exec", namespace(node), *words]
        environment["GLOO_SOCKET_IFNAME"] = namespace(node)
    with open(f"{log}.out", "a") as out, open(f"{log}.err", "a") as err:
        return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=out, stderr=err)


def one_node(restarts: int = 0) -> list[list[str]]:
    """Flags of one torchrun with two processes."""
    return [["--standalone", "--nproc_per_node", "2", "--max_restarts", str(restarts)]]


def two_nodes(restarts: int = 0, addresses: Sequence[str] = ("127.0.0.1", "127.0.0.1")) -> list[list[str]]:
    """Flags of two torchruns with one process each, which meet at the first address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--nnodes", "2", "--nproc_per_node", "1", "--max_restarts", str(restarts)]
    flags += ["--rdzv_backend", "c10d", "--rdzv_id", "faults", "--rdzv_endpoint", f"{addresses[0]}:{port}"]
    return [
        [*flags, "--rdzv_conf", f"is_host={int(node == 0)}", "--local_addr", address]
        for node, address in enumerate(addresses)
    ]


def workers(agent: subprocess.Popen) -> list[int]:
    """The processes that a torchrun has started and that have not ended."""
    try:
        found = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    except OSError:  # it has ended
        return []
    return [int(word) for word in found if alive(int(word))]


def alive(process: int) -> bool:
    """Whether a process runs, or is stopped."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], typing.Any], limit: float = LIMIT) -> bool:
    """Wait until a condition holds. Returns whether it did within `limit` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def end(agents: Agents, processes: Sequence[int], limit: float = LIMIT) -> list[int] | None:
    """Exit codes of torchruns once they and their processes have ended; None if some hang, and are killed."""
    ended = wait_until(
        lambda: not any(agent.poll() is None for agent in agents) and not any(map(alive, processes)), limit
    )
    for process in filter(alive, processes):
        os.kill(process, signal.SIGKILL)
    for agent in agents:
        agent.kill()
        agent.wait()
    return [agent.returncode for agent in agents] if ended else None


def complete(argv: Sequence[str], log: Path) -> list[str]:
    """Run two processes of main(argv) to their end, faster than torchrun does. Returns the problems."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [SERVER.Process(target=run_rank, args=(rank, store.port, argv, str(log))) for rank in (0, 1)]
    for process in processes:
        process.start()
    codes = [finish(process) for process in processes]
    return [] if codes == [0, 0] else [f"exit {codes}", *errors(log)]


def run_rank(rank: int, port: int, argv: Sequence[str], log: str) -> None:
    """Main function of a process from `complete`; port: of the store that they meet at."""
    names = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    names |= {"TORCHELASTIC_RUN_ID": "faults", "TORCHELASTIC_RESTART_COUNT": 0}
    names |= {"TORCHELASTIC_USE_AGENT_STORE": True}
    os.environ.update({name: str(value) for name, value in names.items()})
    run_main(argv, log, 0)


# ---------------------------------------------------------------- two network namespaces


def namespace(node: int) -> str:
    """Name of the network namespace of a node, and of its end of the link."""
    return f"rgfault{node}"


ADDRESSES = ("10.213.7.1", "10.213.7.2")


@contextlib.contextmanager
def linked_namespaces(tcp_retries: int) -> Iterator[None]:
    """Two network namespaces with a link between them. Raises CalledProcessError if that is not allowed.

    tcp_retries: how often TCP sends what is not acknowledged before it gives up.
    """

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    names = [namespace(node) for node in (0, 1)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip(
            "-n",
            names[0],
            "link",
            "add",
            names[0],
            "type",
            "veth",
            "peer",
            "name",
            names[1],
            "netns",
            names[1],
        )
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            for device in ("lo", name):
                ip("-n", name, "link", "set", device, "up")
            ip("netns", "exec", name, "sysctl", "-w", f"net.ipv4.tcp_retries2={tcp_retries}")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def cut_link() -> None:
    """Take the link down: nothing arrives any more, and nobody is told."""
    subprocess.run(["ip", "-n", namespace(1), "link", "set", namespace(1), "down"], check=True)


# ---------------------------------------------------------------- cases


@dataclasses.dataclass
class Case:
    """A fault: what is started, how it is disturbed, and whether torchrun has to continue the run itself."""

    title: str
    flags: Callable[[], list[list[str]]]
    disturb: Callable[[Agents, list[int], random.Random, Path], None]
    restarts: bool = False
    disk: bool = False  # the run folder is on a small disk of its own
    linked: bool = False  # the torchruns are in namespaces of their own
    limit: float = LIMIT  # seconds after the fault after which it counts as hung


def send(number: signal.Signals) -> Callable[[Agents, list[int], random.Random, Path], None]:
    """Send a signal to one of the processes."""
    return lambda agents, processes, rng, runs: os.kill(rng.choice(processes), number)


def fill_disk(agents: Agents, processes: list[int], rng: random.Random, runs: Path) -> None:
    """Leave no space on the disk of the run folder."""
    fill(runs.parent / "ballast", 0)


CASES = {
    "kill": Case("a process is killed", one_node, send(signal.SIGKILL)),
    "stop": Case("a process no longer answers (SIGSTOP)", one_node, send(signal.SIGSTOP)),
    "cut": Case(
        "the network between two nodes is cut",
        lambda: two_nodes(0, ADDRESSES),
        lambda *_: cut_link(),
        linked=True,
        limit=1200,
    ),
    "term": Case("SIGTERM to torchrun", one_node, lambda agents, *_: agents[0].terminate()),
    "disk": Case("the disk of process 0 is full", one_node, fill_disk, disk=True),
    "restart": Case(
        "killed, with --max_restarts 1", lambda: one_node(1), send(signal.SIGKILL), restarts=True
    ),
    "nodes": Case(
        "killed on one of two nodes, with --max_restarts 1",
        lambda: two_nodes(1),
        send(signal.SIGKILL),
        restarts=True,
    ),
}


@dataclasses.dataclass
class Outcome:
    """A disturbed run. problems: [] if it ended in time and was continued to the right result."""

    problems: list[str]
    seconds: float = 0.0  # from the fault to the end of all processes
    lines: int = 0  # that begin with "error:"
    aborted: bool = False  # a process ended by SIGABRT or with an uncaught exception


class ParallelFaults:
    """A dataset, the result of an undisturbed run on it, and the cases."""

    def __init__(self, work: Path, seed: int, tcp_retries: int):
        self.work, self.rng, self.tcp_retries = work, random.Random(seed), tcp_retries
        write_dataset(work / "data" / "faults", make_dataset(**DATASET), DATASET)
        settings = {**SETTINGS, "epochs": EPOCHS, "bpr_batch": 512, "data_root": work / "data"}
        self.command = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        started = time.perf_counter()
        problems = complete([*self.command, "--path", str(work / "reference")], work / "reference_log")
        assert not problems, problems
        self.duration = time.perf_counter() - started
        self.reference = outcome(run_folders(work / "reference")[0])

    def run(self, case: Case, folder: Path) -> Outcome:
        """Disturb a run in an empty folder, continue it and compare its result."""
        disk = folder / "disk"
        disk.mkdir()
        with contextlib.ExitStack() as stack:
            if case.linked:
                stack.enter_context(linked_namespaces(self.tcp_retries))
            if case.disk:
                stack.enter_context(small_disk(disk, 2**21))
            return self.disturbed(case, disk / "runs", folder / "log")

    def disturbed(self, case: Case, runs: Path, log: Path) -> Outcome:
        """`run` once its surroundings are there."""
        argv = [*self.command, "--path", str(runs)]
        agents = [
            launch(argv, log, flags, node if case.linked else -1) for node, flags in enumerate(case.flags())
        ]
        if not wait_until(lambda: list(runs.glob("*/last.pt"))):
            end(agents, [])
            return Outcome(["no checkpoint", *errors(log)])
        time.sleep(self.rng.uniform(0, 1))
        processes = [process for agent in agents for process in workers(agent)]
        began = time.monotonic()
        case.disturb(agents, processes, self.rng, runs)
        codes = end(agents, processes, case.limit)
        result = Outcome([], time.monotonic() - began)
        (runs.parent / "ballast").unlink(missing_ok=True)
        text = Path(f"{log}.err").read_text(errors="replace")
        result.lines = sum(line.startswith("error:") for line in errors(log))
        result.aborted = "terminate called" in text or "SIGABRT" in text or "Signal 6" in text
        if codes is None:
            return dataclasses.replace(result, problems=["hung"])
        if case.restarts != (not any(codes)):
            result.problems.append(f"exit {codes}")
        if any(codes):
            argv = ["--resume", str(run_folders(runs)[0])]
            result.problems += complete(argv, Path(f"{log}_resumed"))
        if not result.problems:
            [folder] = run_folders(runs)
            result.problems = differences(self.reference, outcome(folder)) + leftovers(folder)
        return result


def report(name: str, found: Sequence[Outcome]) -> bool:
    """Print the row of a case. Returns whether all its runs ended and were continued."""
    good = sum(not one.problems for one in found)
    longest = max(one.seconds for one in found)
    lines = sorted({one.lines for one in found})
    print(
        f"{CASES[name].title:<50} {good:>3} of {len(found)}   longest {longest:5.1f} s   "
        f"error lines {', '.join(map(str, lines))}   aborts {sum(one.aborted for one in found)}",
        flush=True,
    )
    return good == len(found)


def main() -> int:
    """Run the chosen cases. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description="Disturb runs on two processes, and continue them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--runs", type=int, default=10, help="runs of each case")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random moments")
    parser.add_argument(
        "--tcp_retries", type=int, default=7, help="net.ipv4.tcp_retries2 of the nodes; Linux has 15"
    )
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="cases to run")
    parser.add_argument("--keep", default="", help="empty folder for the output of runs with problems")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        tests, good = ParallelFaults(Path(work), args.seed, args.tcp_retries), True
        print(f"an undisturbed run takes {tests.duration:.0f} s", flush=True)
        for name in args.only:
            found = []
            for number in range(args.runs):
                folder = Path(work) / f"{name}{number}"
                folder.mkdir()
                found.append(tests.run(CASES[name], folder))
                verdict = ", ".join(found[-1].problems)[:200] or "continued to the same result"
                print(f"  {name}: ended in {found[-1].seconds:.1f} s, {verdict}", flush=True)
                if args.keep and (found[-1].problems or found[-1].aborted):
                    shutil.copytree(folder, Path(args.keep) / folder.name)
                shutil.rmtree(folder)
            good &= report(name, found)
    return int(not good)


def worker() -> int:
    """main.py with a shorter limit: what torchrun starts."""
    import training.parallel
    from main import main as train

    training.parallel.TIMEOUT = datetime.timedelta(seconds=GIVEN_UP)
    return train()


if __name__ == "__main__":
    sys.exit(worker() if "TORCHELASTIC_RUN_ID" in os.environ else main())
