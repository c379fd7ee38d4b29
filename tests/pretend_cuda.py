"""CUDA tensors on a machine without a card, for tests of where tensors are.

model, batch = move(model), move(batch)
with pretend_cuda() as cuda:
    model.loss(batch)    # raises where an operation would fail for its devices or out= types
    cuda.waits           # the operations so far for which the host would wait for the device

A CudaTensor says that it is on "cuda" and holds its values on the CPU. Every operation is made twice: on fake
tensors, whose rules for devices and types are torch's own (FakeTensorMode), and on the values, so that
results that depend on data are those of a real run. There is no autograd: a build of torch without CUDA has
none for CUDA tensors. Sparse matrices have rules of their own, because fake tensors do not know them.
"""

import contextlib
import logging
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
# Operations whose result, or its size, the host has to read.
READS = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}


def waiting(func, args, kwargs):
    """Whether the host waits for a GPU in this operation."""
    name = func.overloadpacket.__name__
    if name in READS:
        return True
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None and len(args) < 3
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    if name in ("_to_copy", "copy_"):
        source = args[1] if name == "copy_" else args[0]
        target = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or source.device)
        return source.device.type != target.type
    return False


class Waits(TorchDispatchMode):
    """Records the operations of a block, gradients included, for which the host would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if waiting(func, args, kwargs or {}):
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class CudaTensor(torch.Tensor):
    """A tensor "on" CUDA with its values on the CPU."""

    @staticmethod
    def __new__(cls, value):
        return torch.Tensor._make_wrapper_subclass(
            cls, value.size(), strides=value.stride(), dtype=value.dtype, device=CUDA
        )

    def __init__(self, value):
        self.value_on_cpu = value

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func}: outside of pretend_cuda()")


class CudaCsr(torch.Tensor):
    """A sparse CSR matrix of CudaTensors. Only what Functions, below, knows can be done with it."""

    @staticmethod
    def __new__(cls, crow, col, values, size):
        return torch.Tensor._make_wrapper_subclass(cls, size, dtype=values.dtype, device=CUDA)

    def __init__(self, crow, col, values, size):
        self.parts = crow, col, values

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is aten.detach.default:
            return CudaCsr(*args[0].parts, args[0].shape)
        raise AssertionError(f"{func}: not known for sparse matrices on CUDA")

    def product(self, dense):
        """self @ dense, as cuSPARSE would make it."""
        assert all(part.device == dense.device for part in self.parts), "a sparse product of two devices"
        assert self.dtype == dense.dtype, "a sparse product of two types"
        crow, col, values = (part.value_on_cpu for part in self.parts)
        return CudaTensor(torch.sparse_csr_tensor(crow, col, values, self.shape) @ dense.value_on_cpu)


def move(x):
    """A tensor, a Batch or another tuple, or a module, whose parameters and buffers are replaced, on CUDA."""
    if isinstance(x, tuple):
        return type(x)(*map(move, x)) if hasattr(x, "_fields") else tuple(map(move, x))
    if isinstance(x, torch.nn.Module):
        for module in x.modules():
            for tensors in (module._parameters, module._buffers):
                tensors.update({name: move(tensor) for name, tensor in tensors.items() if tensor is not None})
        return x
    if x.layout == torch.sparse_csr:
        return CudaCsr(*map(move, (x.crow_indices(), x.col_indices(), x.values())), x.shape)
    return CudaTensor(x.detach())


class Generator(torch.Generator):
    """A generator of the CPU in place of one of any device."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls)


class Operations(TorchDispatchMode):
    """Makes every operation on fake tensors, to check it, and on the values."""

    def __init__(self):
        super().__init__()
        self.fake_mode = FakeTensorMode(shape_env=ShapeEnv())
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
        device = kwargs.get("device")
        on_cuda = any(isinstance(tensor, CudaTensor) for tensor in tensors)
        to_cuda = device is not None and torch.device(device).type == "cuda"
        if any(isinstance(tensor, CudaCsr) for tensor in tensors):
            return CudaCsr.__torch_dispatch__(func, types, args, kwargs)
        if not on_cuda and not to_cuda:
            return func(*args, **kwargs)
        if waiting(func, args, kwargs):
            self.waits.append(func.overloadpacket.__name__)
        expected = self.check(func, args, kwargs)
        if device is not None:
            kwargs = {**kwargs, "device": "cpu"}
        values = tree_map_only(CudaTensor, lambda tensor: tensor.value_on_cpu, (args, kwargs))
        result = func(*values[0], **values[1])
        known = {id(t.value_on_cpu): t for t in tensors if isinstance(t, CudaTensor)}

        def wrap(value, fake):
            if not isinstance(value, torch.Tensor) or not is_on_cuda(fake):
                return value
            return known[id(value)] if id(value) in known else CudaTensor(value)

        return tree_map(wrap, result, expected)

    def check(self, func, args, kwargs):
        """The result of an operation on fake tensors."""
        fakes = {}

        def fake(tensor):
            if id(tensor) not in fakes:
                device = tensor.device if isinstance(tensor, CudaTensor) else "cpu"
                fakes[id(tensor)] = torch.empty_strided(
                    tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device
                )
            return fakes[id(tensor)]

        with self.fake_mode, Functions():
            args, kwargs = tree_map_only(torch.Tensor, fake, (args, kwargs))
            if func is aten.equal.default:  # depends on data; the devices that it accepts are those of sub
                func = aten.sub.Tensor
            return func(*args, **kwargs)


def is_on_cuda(fake):
    """Whether a fake tensor is on CUDA."""
    return isinstance(fake, torch.Tensor) and fake.device.type == "cuda"


class Functions(TorchFunctionMode):
    """Replaces functions whose Python binding needs a CUDA build, and those of sparse matrices."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        cuda = any(isinstance(arg, torch.Tensor) and arg.device == CUDA for arg in (*args, *kwargs.values()))
        name = getattr(func, "__name__", "")
        if name == "sparse_csr_tensor" and cuda:
            return CudaCsr(*args[:4])
        if name == "sparse_sampled_addmm" or func is torch.sparse.sampled_addmm:
            return sampled_product(*args, **kwargs)
        if name == "to" and args[0].layout == torch.sparse_csr and args[1] == CUDA:
            return move(args[0])
        if not cuda:
            return func(*args, **kwargs)
        if isinstance(args[0], CudaCsr):
            if name in ("crow_indices", "col_indices", "values"):
                return args[0].parts[("crow_indices", "col_indices", "values").index(name)]
            if name in ("matmul", "__matmul__"):
                return args[0].product(args[1])
            if name == "to":
                crow, col, values = args[0].parts
                return CudaCsr(crow, col, values.to(args[1]), args[0].shape)
        if name in FUNCTIONS:
            return FUNCTIONS[name](*args)
        return func(*args, **kwargs)


def sampled_product(matrix, a, b, beta=1.0, alpha=1.0, out=None):
    """torch.sparse.sampled_addmm."""
    assert out is matrix and beta == 0
    assert matrix.device == a.device == b.device and matrix.dtype == a.dtype == b.dtype
    crow, col, values = (part.value_on_cpu for part in matrix.parts)
    pattern = torch.sparse_csr_tensor(crow, col, values, matrix.shape)
    product = torch.sparse.sampled_addmm(pattern, a.value_on_cpu, b.value_on_cpu, beta=0.0)
    values.copy_(product.values())
    return matrix


def basic_index(x, key):
    """x after the parts of an index that are not tensors, and its list of tensors (None: all)."""
    key, dim, tensors = key if isinstance(key, tuple) else (key,), 0, {}
    for part in key:
        if part is None:
            x, dim = x.unsqueeze(dim), dim + 1
        elif isinstance(part, slice):
            x, dim = aten.slice(x, dim, *map(as_int, (part.start, part.stop, part.step or 1))), dim + 1
        elif isinstance(part, int):
            x = x.select(dim, part)
        else:
            assert isinstance(part, torch.Tensor), f"index of type {type(part)}"
            # The host has to count the true entries of a mask.
            rows = aten.nonzero(part).unbind(1) if part.dtype == torch.bool else [part]
            tensors.update(enumerate(rows, dim))
            dim += len(rows)
    return x, [tensors.get(i) for i in range(max(tensors, default=-1) + 1)]


def as_int(bound):
    """A bound of a slice, which a tensor gives by a read of the host."""
    return bound.item() if isinstance(bound, torch.Tensor) else bound


def get_item(x, key):
    """x[key]"""
    x, tensors = basic_index(x, key)
    return aten.index(x, tensors) if tensors else x


def set_item(x, key, value):
    """x[key] = value"""
    x, tensors = basic_index(x, key)
    if not tensors:
        aten.copy_(x, value) if isinstance(value, torch.Tensor) else aten.fill_(x, value)
        return
    if not isinstance(value, torch.Tensor):
        value = torch.full((), value, dtype=x.dtype, device=x.device)
    aten.index_put_(x, tensors, value)


FUNCTIONS = {
    "__getitem__": get_item,
    "__setitem__": set_item,
    "__invert__": aten.bitwise_not,
    "__float__": lambda x: float(x.item()),
    "__int__": lambda x: int(x.item()),
    "contiguous": aten.contiguous,
    "copy_": aten.copy_,
    "new_tensor": lambda x, data: torch.tensor(data, dtype=x.dtype).to(x.device),
    "nonzero": aten.nonzero,
    "tolist": lambda x: x.cpu().tolist(),
}


@contextlib.contextmanager
def pretend_cuda():
    """Let tensors be "on" CUDA in this block. Yields an object with the list `waits`."""
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    with (
        mock.patch("torch.cuda._lazy_init"),
        mock.patch("torch.Generator", Generator),
        # Tensors of a Python class have no version counter to leave out.
        mock.patch.object(torch.inference_mode, "__enter__"),
        mock.patch.object(torch.inference_mode, "__exit__", return_value=False),
        Functions(),
        Operations() as operations,
        torch.no_grad(),
    ):
        yield operations
