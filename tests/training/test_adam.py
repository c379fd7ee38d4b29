"""Adam: bit for bit torch's, without the import of torch.compile."""

import copy
import subprocess
import sys
from pathlib import Path

import torch
from small_runs import command_line

from training.adam import Adam

ROOT = Path(__file__).parents[2]


def steps(kind, number, state=None):
    """(weights, state dict) after some steps of an optimiser on a fixed loss."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(4))]
    optimizer = kind(weights, lr=0.05, fused=True)
    if state:
        optimizer.load_state_dict(state)
    for step in range(number):
        optimizer.zero_grad()
        (weights[0].square().sum() + (weights[1] - step).square().sum()).backward()
        optimizer.step()
    return [w.detach() for w in weights], copy.deepcopy(optimizer.state_dict())


def test_steps_and_state_are_those_of_torch():
    (weights, state), (expected, other) = (steps(kind, 7) for kind in (Adam, torch.optim.Adam))
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    assert state["param_groups"] == other["param_groups"]
    torch.testing.assert_close(state["state"], other["state"], rtol=0, atol=0)


def test_a_state_is_read_by_either():
    (_, state), (_, other) = (steps(kind, 3) for kind in (Adam, torch.optim.Adam))
    crossed = steps(Adam, 4, other)[0], steps(torch.optim.Adam, 4, state)[0]
    torch.testing.assert_close(*crossed, rtol=0, atol=0)


def test_a_run_does_not_import_the_compiler(small_dataset, tmp_path):
    words = command_line(small_dataset, tmp_path / "runs", model="lgn_mm", epochs=1)
    code = "import sys, main; print(main.main(), 'torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    command = [sys.executable, "-c", code, *words]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert output.splitlines()[-1] == "0 True False"
