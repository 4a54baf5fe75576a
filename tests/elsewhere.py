"""A pretended accelerator: tensors with values on the CPU that say they are elsewhere.

What mixes devices raises, as on a GPU: an operation of tensors here and there, a CPU generator for
a tensor there, `.numpy()` of one. The exceptions are a GPU's, too: copies from one to the other,
indices on the CPU, and numbers (0-dim tensors) among the operands of elementwise operations. torch
knows the device as "meta", the one that needs no hardware and that autograd accepts; inside
`pretended()` it holds values. (FakeTensorMode has none, and calibration asks for losses.)
"""

import contextlib
import dataclasses
import functools
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "meta"
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}


class Elsewhere(torch.Tensor):
    """A tensor on the pretended device; `held` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self):
        return f"Elsewhere({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees the calls that make tensors there without having one, such as torch.zeros."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def _placing(make):
    """torch.tensor and its like read numbers below the modes: made here, then moved."""

    def placed(*args, device=None, **kwargs):
        made = make(*args, **kwargs)
        return made if device is None else made.to(device)

    return placed


@contextlib.contextmanager
def pretended():
    """Inside, DEVICE is an accelerator."""
    placing = {name: _placing(getattr(torch, name)) for name in ("tensor", "as_tensor")}
    with mock.patch.multiple(torch, **placing), _Mode():
        yield


def held(value):
    """The CPU tensors below those that are elsewhere; anything else as it is."""
    if isinstance(value, Elsewhere):
        return value.held
    if isinstance(value, (list, tuple)):
        return type(value)(map(held, value))
    return value


def _wrapped(value):
    if isinstance(value, torch.Tensor):
        return Elsewhere(value)
    return type(value)(map(_wrapped, value)) if isinstance(value, (list, tuple)) else value


def _leaves(values):
    """The values, and those in lists of them. (torch's pytree takes most of a test's time.)"""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


@dataclasses.dataclass(frozen=True)
class Operation:
    """Of an aten operation: arguments that it writes to, whether it returns these, elementwise."""

    written: tuple[tuple[int, str], ...]
    returns_written: int
    pointwise: bool

    @classmethod
    @functools.cache
    def of(cls, func):
        """Read from its schema."""
        arguments, returns = func._schema.arguments, func._schema.returns
        written = [
            (i, a.name) for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write
        ]
        returned = sum(bool(r.alias_info and r.alias_info.is_write) for r in returns)
        return cls(tuple(written), returned, torch.Tag.pointwise in func.tags)

    def outputs(self, args, kwargs):
        """The tensors that it writes to."""
        found = [args[i] if i < len(args) else kwargs.get(name) for i, name in self.written]
        return [tensor for tensor in found if tensor is not None]


def _refuse_mixing(func, args, kwargs):
    """Raise unless this mixture of devices is one that a GPU allows."""
    about = Operation.of(func)
    tensors = [t for t in _leaves((*args, *kwargs.values())) if isinstance(t, torch.Tensor)]
    if func in COPIES:
        return
    if func in INDEXED and isinstance(args[0], Elsewhere):  # the indices may be on the CPU
        tensors = [t for t in (args[0], *args[2:]) if isinstance(t, torch.Tensor)]
    if about.pointwise and all(isinstance(t, Elsewhere) for t in about.outputs(args, kwargs)):
        tensors = [t for t in tensors if t.ndim or isinstance(t, Elsewhere)]
    if len({isinstance(t, Elsewhere) for t in tensors}) > 1:
        here = [[*t.shape] for t in tensors if not isinstance(t, Elsewhere)]
        raise RuntimeError(f"{func}: tensors on two devices; shapes on the CPU: {here}")


def run(func, args, kwargs):
    """One operation: refused if it mixes devices, else done on the CPU."""
    there = here = False
    for leaf in _leaves((*args, *kwargs.values())):
        if isinstance(leaf, Elsewhere):
            there = True
        elif isinstance(leaf, torch.Tensor):
            here = True
            assert not leaf.is_meta, f"{func}: a tensor without values"
    if here and there:
        _refuse_mixing(func, args, kwargs)
    if "device" in kwargs and kwargs["device"] is not None:
        there = torch.device(kwargs["device"]).type == DEVICE
        kwargs = {**kwargs, "device": "cpu"}
    if not there:
        return func(*map(held, args), **{name: held(value) for name, value in kwargs.items()})
    if isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"{func}: a generator of the CPU for a tensor elsewhere")
    result = func(*map(held, args), **{name: held(value) for name, value in kwargs.items()})
    about = Operation.of(func)
    if not about.returns_written:
        return _wrapped(result)
    outputs = about.outputs(args, kwargs)
    for tensor in outputs:  # a wrapper's shape is fixed
        assert tensor.shape == held(tensor).shape, f"{func} changes a shape in place"
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def elsewhere(module):
    """Whether each parameter and buffer of a module is on the pretended device, by name."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: isinstance(tensor, Elsewhere) for name, tensor in tensors.items()}
