"""Parsing of command lines, and exit codes and error messages shared by all commands.

def main(argv=None):
    return run_tool(command, make_parser(), argv)  # calls command(arguments)

Exit codes: 0 success, 1 failure, 2 bad input, 130 interrupted.
"""

import argparse
import io
import os
import re
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from utils import TrainingError, UserError, did_you_mean

RESUME_HINT = "the run can be resumed from its last checkpoint"
TRAINING_MEMORY_HINT = "lower --bpr_batch, --recdim or --attn_heads (training) or --eval_chunk (scoring)"
TOOL_MEMORY_HINT = "free some memory or run this on a machine with more"


class Parser(argparse.ArgumentParser):
    """ArgumentParser that raises UserError for a bad command line instead of printing usage and exiting."""

    # Flags that exist elsewhere: {"itemknn_k": "--model itemknn"}.
    elsewhere: Mapping[str, str] = {}

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the message, and the flag or value that was probably meant."""
        raise UserError(f"{message}{self.hint(message)} ({self.prog} --help lists the flags)")

    def hint(self, message: str) -> str:
        """What was probably meant by the unknown flags or the invalid choice in a message of argparse."""
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            return did_you_mean(choice[1], re.findall(r"[^', ]+", choice[2]))
        typed = re.findall(r"(?<!\S)-+([a-zA-Z][\w-]*)", message) if "unrecognized" in message else []
        flags = {flag.removeprefix("--") for flag in self._option_string_actions if flag.startswith("--")}
        hints = (
            f"; --{word} belongs to {self.elsewhere[word]}"
            if word in self.elsewhere
            else did_you_mean(word, flags, "--")
            for word in typed
        )
        return next(filter(None, hints), "")


def run_command(
    work: Callable[[], int | None],
    io_hint: str = "",
    memory_hint: str = TRAINING_MEMORY_HINT,
) -> int:
    """Call `work` and return an exit code: its result (None is 0), or the code of the exception it raises.

    UserError is 2; TrainingError, OSError and running out of memory are 1; KeyboardInterrupt is 130. Each of
    these prints one line, "error: ...", to stderr. Any other exception is a bug and propagates.

    io_hint: remedy to add to the message of an OSError. memory_hint: remedy for running out of memory.
    """
    make_streams_tolerant()
    try:
        return work_and_flush(work)
    except UserError as error:
        return fail(error, 2)
    except TrainingError as error:
        return fail(error, 1)
    except OSError as error:
        # Exceptions of network libraries are OSErrors too, but have neither filename nor strerror.
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error) or type(error).__name__
        if isinstance(error, BrokenPipeError) and drop_stdout():
            where, reason = "stdout: ", "was closed before everything was printed"
        return fail(f"{where}{reason}" + (f"; {io_hint}" if io_hint else ""), 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return fail(f"out of memory: {memory_hint}", 1)
    except KeyboardInterrupt:
        return fail("interrupted", 130)


def run_tool(
    command: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse `argv` (default: sys.argv), call `command` and return an exit code as run_command does."""
    return run_command(lambda: command(parser.parse_args(argv)), memory_hint=TOOL_MEMORY_HINT)


def launched() -> bool:
    """Whether torchrun has started this process and others for the same run."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def one_process(command: str) -> None:
    """Raise UserError if torchrun has started a command that works in one process."""
    if launched():
        if os.environ["RANK"] != "0":
            sys.exit(2)  # process 0 says why
        raise UserError(f"{command} works in one process: start it with python, not with torchrun")


def work_and_flush(work: Callable[[], int | None]) -> int:
    """Call `work` and print what is buffered, so that a pipe that was closed is an error as any other."""
    try:
        code = work() or 0
    except SystemExit:  # --help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


def make_streams_tolerant() -> None:
    """Escape what a stream cannot encode, and open the null device in place of a closed one."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, open for the rest of the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_stdout() -> bool:
    """Whether the reader of stdout has gone; if so, what is still buffered goes to the null device."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def is_out_of_memory(error: Exception) -> bool:
    """Return whether Python, NumPy or PyTorch raised `error` because memory is exhausted."""
    # Importing torch takes seconds. If nobody has imported it, it cannot have raised the error.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    # PyTorch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def fail(message: str | Exception, code: int) -> int:
    """Print `message` as one line on stderr and return `code`."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    return code
