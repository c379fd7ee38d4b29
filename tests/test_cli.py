"""How commands end: exit codes and messages."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cli import Parser, run_command, run_tool
from utils import Diverged, TrainingError, UserError

ROOT = Path(__file__).resolve().parents[1]


def raising(error):
    """A command that raises `error`, whatever its arguments."""

    def command(*_):
        raise error

    return command


@pytest.mark.parametrize("result, code", [(None, 0), (0, 0), (1, 1), (143, 143)])
def test_run_command_returns_the_exit_code_of_the_work(capsys, result, code):
    assert run_command(lambda: result) == code
    assert capsys.readouterr() == ("", "")


NO_SPACE = OSError(errno.ENOSPC, "No space left on device", "runs/a/last.pt")
ENDINGS = [
    (UserError("a.txt, line 3: is\nno id"), 2, "a.txt, line 3: is no id"),
    (TrainingError("epoch 3: the disk is full"), 1, "epoch 3: the disk is full"),
    (Diverged("epoch 3, step 2: loss is nan"), 1, "epoch 3, step 2: loss is nan"),
    (NO_SPACE, 1, "runs/a/last.pt: No space left on device"),
    (OSError(errno.EIO, "Input/output error"), 1, "Input/output error"),
    (OSError("the server\nhung up"), 1, "the server hung up"),
    (ConnectionResetError(), 1, "ConnectionResetError"),
    (KeyboardInterrupt(), 130, "interrupted"),
]


@pytest.mark.parametrize("error, code, line", ENDINGS, ids=lambda value: type(value).__name__)
def test_run_command_reports_an_error_in_one_line(capsys, error, code, line):
    assert run_command(raising(error)) == code
    assert capsys.readouterr() == ("", f"error: {line}\n")


def test_run_command_adds_its_hint_to_input_and_output_errors_only(capsys):
    hint = "resume with --resume"
    run_command(raising(NO_SPACE), io_hint=hint)
    run_command(raising(UserError("bad")), io_hint=hint)
    assert capsys.readouterr().err.splitlines() == [
        "error: runs/a/last.pt: No space left on device; resume with --resume",
        "error: bad",
    ]


OUT_OF_MEMORY = [
    MemoryError(),
    np._core._exceptions._ArrayMemoryError((10**9, 10**9), np.dtype(float)),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_is_reported_with_a_remedy(capsys, error):
    assert run_command(raising(error)) == 1
    assert run_command(raising(error), memory_hint="lower --block") == 1
    assert run_tool(raising(error), Parser(), []) == 1
    training, given, tool = capsys.readouterr().err.splitlines()
    hint = "lower --bpr_batch, --recdim or --attn_heads (training) or --eval_chunk (scoring)"
    assert training == f"error: out of memory: {hint}"
    assert given == "error: out of memory: lower --block"
    # The tools do not have the flags of a training.
    assert tool.startswith("error: out of memory: ") and "--" not in tool


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), RuntimeError("a bug"), KeyError("a bug"), SystemExit(3)]
)
def test_run_command_does_not_hide_other_exceptions(error):
    with pytest.raises(type(error)) as caught:
        run_command(raising(error))
    assert caught.value is error


WITHOUT_TORCH = """
import sys
from cli import run_command

def work():
    raise RuntimeError("can't allocate memory")

code = run_command(work)
sys.exit("torch was imported" if "torch" in sys.modules else code)
"""


def test_run_command_works_without_torch():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.startswith("error: out of memory"), done.stderr
    assert done.stderr.count("\n") == 1


def test_run_tool_parses_the_arguments_and_returns_the_exit_code(capsys):
    parser = Parser(prog="python -m data.tool")
    parser.add_argument("--rows", type=int, default=5)
    assert run_tool(lambda args: args.rows, parser, ["--rows", "3"]) == 3
    assert run_tool(lambda args: None, parser, []) == 0
    assert run_tool(raising(UserError("a.txt, line 3: is\nno id")), parser, []) == 2
    assert run_tool(raising(NO_SPACE), parser, []) == 1
    assert run_tool(raising(KeyboardInterrupt()), parser, []) == 130
    assert run_tool(raising(AssertionError("not reached")), parser, ["--rows", "many"]) == 2
    *lines, wrong_flag = capsys.readouterr().err.splitlines()
    assert lines == [
        "error: a.txt, line 3: is no id",
        "error: runs/a/last.pt: No space left on device",
        "error: interrupted",
    ]
    assert wrong_flag.startswith("error: ") and "--rows" in wrong_flag and "many" in wrong_flag
    assert "python -m data.tool --help" in wrong_flag


def test_run_tool_reads_the_command_line_by_default(monkeypatch):
    parser = Parser()
    parser.add_argument("--rows", type=int)
    monkeypatch.setattr(sys, "argv", ["tool", "--rows", "4"])
    assert run_tool(lambda args: args.rows, parser) == 4


# ---------------------------------------------------------------- streams

PRINT = """
import sys
sys.path.insert(0, {root!r})
import cli
sys.exit(cli.run_command(lambda: {work}))
"""


def as_process(work, command='"$0" -c "$1"', **environment):
    """Run a command whose work is an expression, through a shell command line. Returns (stdout, stderr)."""
    script = PRINT.format(root=str(ROOT), work=work)
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, script],
        capture_output=True,
        env={**os.environ, **environment},
        check=False,
        timeout=60,
    )
    return done.stdout, done.stderr.decode()


@pytest.mark.parametrize("count", [1, 20_000])
def test_a_reader_that_leaves_is_an_error_of_one_line(count):
    work = f"__import__('time').sleep(0.3) or [print('x' * 50) for n in range({count})] and None"
    _, err = as_process(work, '("$0" -c "$1"; echo $? >&2) | true')
    assert err == "error: stdout: was closed before everything was printed\n1\n"


def test_a_command_may_run_without_stdout_and_stderr():
    assert as_process("print('a') or sys.stdout.flush()", '"$0" -c "$1" >&-; echo $?') == (b"0\n", "")
    assert as_process("print('a') or 3", '"$0" -c "$1" >&- 2>&-; echo $?') == (b"3\n", "")


def test_a_stream_prints_what_its_encoding_lacks_as_escapes():
    out, err = as_process("print('a \\u00b1 \\ud800')", PYTHONIOENCODING="ascii")
    assert (out, err) == (b"a \\xb1 \\ud800\n", "")
    out, err = as_process("print('a \\u00b1 \\ud800')", PYTHONIOENCODING="utf-8")
    assert (out, err) == ("a ± \\ud800\n".encode(), "")
