"""A pretended accelerator: tensors with values on the CPU that say they are elsewhere.

What mixes devices raises, as on a GPU: an operation of tensors here and there, a CPU generator for
a tensor there, `.numpy()` of one. The exceptions are a GPU's, too: copies from one to the other,
indices on the CPU, and numbers (0-dim tensors) among the operands of elementwise operations. torch
knows the device as "meta", the one that needs no hardware and that autograd accepts; inside
`pretended()` it holds values. (FakeTensorMode has none, and calibration asks for losses.)
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

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


@contextlib.contextmanager
def pretended():
    """Inside, DEVICE is an accelerator."""
    with _Mode():
        yield


def held(value):
    """The CPU tensor below one that is elsewhere; anything else as it is."""
    return value.held if isinstance(value, Elsewhere) else value


def _is_number(tensor):
    return tensor.ndim == 0 and not isinstance(tensor, Elsewhere)


def _refuse_mixing(func, args, kwargs, there):
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    if func in COPIES:
        return
    if func in INDEXED:  # indices may be on the CPU, self and values must be in one place
        tensors = [t for t in (args[0], *args[2:]) if isinstance(t, torch.Tensor)]
        if not isinstance(args[0], Elsewhere):
            tensors += [t for t in args[1] if t is not None]
    if torch.Tag.pointwise in func.tags and not _writes_to_the_cpu(func, args):
        tensors = [t for t in tensors if not _is_number(t)]
    places = {isinstance(t, Elsewhere) for t in tensors}
    if len(places) > 1:
        shapes = [f"{'there' if isinstance(t, Elsewhere) else 'cpu'} {list(t.shape)}"
                  for t in tensors]  # fmt: skip
        raise RuntimeError(f"{func}: tensors on two devices: {', '.join(shapes)}")
    if there and any(isinstance(v, torch.Generator) for v in tree_leaves((args, kwargs))):
        raise RuntimeError(f"{func}: a generator of the CPU for a tensor elsewhere")


def _written(func, args, kwargs):
    """The arguments that an operation writes to."""
    names = [a.name for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
    given = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
    return [given[name] for name in names if name in given]


def _writes_to_the_cpu(func, args):
    written = _written(func, args, {})
    return any(isinstance(t, torch.Tensor) and not isinstance(t, Elsewhere) for t in written)


def run(func, args, kwargs):
    """One operation: refused if it mixes devices, else done on the CPU."""
    place = kwargs.get("device")
    if place is None:
        there = any(isinstance(t, Elsewhere) for t in tree_leaves((args, kwargs)))
    else:
        there = torch.device(place).type == DEVICE
        kwargs = {**kwargs, "device": "cpu"}
    _refuse_mixing(func, args, kwargs, there)
    result = func(*tree_map(held, args), **tree_map(held, kwargs))
    if not there:
        return result
    written = _written(func, args, kwargs)
    if written and any(r.alias_info and r.alias_info.is_write for r in func._schema.returns):
        for tensor in written:  # a wrapper's shape is fixed
            assert tensor.shape == held(tensor).shape, f"{func} changes a shape in place"
        return written[0] if len(func._schema.returns) == 1 else tuple(written)
    return tree_map(lambda t: Elsewhere(t) if isinstance(t, torch.Tensor) else t, result)


def elsewhere(module):
    """Whether each parameter and buffer of a module is on the pretended device, by name."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: isinstance(tensor, Elsewhere) for name, tensor in tensors.items()}
