"""Adam without torch.compile.

torch.optim wraps the methods of its classes for torch.compile, which nothing here uses. The first call of a
wrapper imports the compiler, which takes longer than a short run on a small dataset.
"""

import inspect

import torch


class Adam(torch.optim.Adam):
    """torch.optim.Adam without the wrappers, with the same arithmetic, arguments and state dict."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
