"""Fake quantization of CPU tensors as autograd functions around the loops of `cpu_kernels`.

Importing this module imports numba.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from passionsr.quantization.cpu_kernels import (
    BLOCK,
    KINDS,
    backward_of,
    bound_gradients_of,
    forward_of,
    interleaved_backward_of,
    interleaved_forward_of,
    scaled_backward_of,
    scaled_forward_of,
)
from passionsr.quantization.functional import MIN_WIDTH, REAL_ZP_SLACK
from passionsr.quantization.spec import Form


@functools.cache
def _constants(dtype: torch.dtype, levels: int, form: Form) -> np.ndarray:
    slack = REAL_ZP_SLACK if form is Form.REAL_ZP else 0.0
    return torch.tensor([0.0, 0.5, levels, MIN_WIDTH, slack], dtype=dtype).numpy()


@dataclass(frozen=True)
class _Layout:
    """How a tensor's values lie under their bounds.

    shape: (outer, rows, columns), a row of bounds for each of `rows`; with two groups the second
        begins at column `cut`.
    period: not 0 where two groups alternate in runs too short for a loop of their own: the length
        after which they repeat.
    """

    shape: tuple[int, int, int]
    cut: int
    groups: int

    @functools.cached_property
    def period(self) -> int:
        outer, rows, columns = self.shape
        if self.groups == 1 or rows > 1 or columns >= BLOCK:
            return 0
        return columns * math.gcd(outer, BLOCK // columns)


_layout = functools.lru_cache(maxsize=4096)(_Layout)


def _bound_gradients(
    made_for: tuple[torch.dtype, int],
    shape: torch.Size,
    low: np.ndarray,
    high: np.ndarray,
    constants: np.ndarray,
    sums: np.ndarray,
) -> tuple[Tensor, Tensor]:
    """Gradients of lower and upper, in their shape; see `bound_gradients_of`."""
    lower, upper = (torch.empty(shape, dtype=made_for[0]) for _ in range(2))
    made = (t.numpy().reshape(low.shape) for t in (lower, upper))
    bound_gradients_of(*made_for)(low, high, constants, sums, *made)
    return lower, upper


class _RowFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, lower: Tensor, upper: Tensor, levels: int, form: Form, layout: _Layout
    ) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        made_for = x.dtype, KINDS[form]
        constants = _constants(x.dtype, levels, form)
        table = layout.shape[1], layout.groups
        low, high = (t.detach().numpy().reshape(table) for t in (lower, upper))
        values, made = x.detach().numpy(), out.numpy()
        period = layout.period
        if period:
            flat = values.reshape(-1, period), made.reshape(-1, period)
            ends = low, high, layout.cut, layout.shape[2]
            interleaved_forward_of(*made_for)(*flat, *ends, constants)
        else:
            shaped = values.reshape(layout.shape), made.reshape(layout.shape)
            forward_of(*made_for)(*shaped, low, high, layout.cut, constants)
        ctx.save_for_backward(x, out, lower, upper)
        ctx.rest = made_for, constants, layout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, out, lower, upper = ctx.saved_tensors
        made_for, constants, layout = ctx.rest
        learns = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        grad = grad.contiguous()
        grad_x = torch.empty_like(grad)
        table = layout.shape[1], layout.groups
        low, high = (t.detach().numpy().reshape(table) for t in (lower, upper))
        tensors = [t.detach().numpy() for t in (x, out, grad, grad_x)]
        sums = np.zeros((3, *table))
        period = layout.period
        if period:
            flat = (t.reshape(-1, period) for t in tensors)
            ends = low, high, layout.cut, layout.shape[2]
            interleaved_backward_of(*made_for, learns)(*flat, *ends, constants, sums)
        else:
            shaped = (t.reshape(layout.shape) for t in tensors)
            backward_of(*made_for, learns)(*shaped, low, high, layout.cut, constants, sums)
        if not learns:
            return grad_x, None, None, None, None, None
        gradients = _bound_gradients(made_for, lower.shape, low, high, constants, sums)
        return grad_x, *gradients, None, None, None


class _ScaledFakeQuantize(torch.autograd.Function):
    """One range of x times factors along its last axis; x is kept and the product is not."""

    @staticmethod
    def forward(
        ctx, x: Tensor, factors: Tensor, lower: Tensor, upper: Tensor, levels: int, form: Form
    ) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        made_for = x.dtype, KINDS[form]
        constants = _constants(x.dtype, levels, form)
        low, high = (t.detach().numpy().reshape(1, 1) for t in (lower, upper))
        flat = (t.detach().numpy().reshape(-1) for t in (x, out))
        repeated = _repeated(factors)
        scaled_forward_of(*made_for)(*flat, repeated, len(factors), low, high, constants)
        ctx.save_for_backward(x, out, factors, lower, upper)
        ctx.rest = made_for, constants
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, out, factors, lower, upper = ctx.saved_tensors
        made_for, constants = ctx.rest
        factors_learn = ctx.needs_input_grad[1]
        learns = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        grad = grad.contiguous()
        grad_x = torch.empty_like(grad)
        products = torch.empty_like(grad if factors_learn else grad[:0])
        low, high = (t.detach().numpy().reshape(1, 1) for t in (lower, upper))
        flat = (t.detach().numpy().reshape(-1) for t in (x, out, grad, grad_x, products))
        sums = np.zeros((3, 1, 1))
        run = scaled_backward_of(*made_for, learns, factors_learn)
        run(*flat, _repeated(factors), len(factors), low, high, constants, sums)
        grad_factors = products.sum_to_size(factors.shape) if factors_learn else None
        if not learns:
            return grad_x, grad_factors, None, None, None, None
        gradients = _bound_gradients(made_for, lower.shape, low, high, constants, sums)
        return grad_x, grad_factors, *gradients, None, None


def _repeated(factors: Tensor) -> np.ndarray:
    """Factors for a block that begins anywhere in their period."""
    once = factors.detach().numpy()
    return np.resize(once, len(once) + BLOCK)


def fake_quantize_scaled(
    x: Tensor, factors: Tensor, lower: Tensor, upper: Tensor, levels: int, form: Form
) -> Tensor:
    """`fake_quantize` of a CPU tensor times `factors`, (size of x's last axis,), under one range.

    lower, upper: one value each; all of x's type.
    """
    return _ScaledFakeQuantize.apply(x, factors, lower, upper, levels, form)


def fake_quantize_rows(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    levels: int,
    form: Form,
    shape: tuple[int, int, int],
    cut: int,
) -> Tensor:
    """`fake_quantize` of a CPU tensor seen as (outer, rows, columns).

    lower, upper: (rows, groups) or (groups,) for one row, of x's type; two groups meet at column
    `cut`. One of outer and rows is 1, for what lies between them would not be in memory's order.
    """
    if 1 not in shape[:2]:
        raise ValueError(f"a range per row and leading dimensions do not go together: {shape}")
    layout = _layout(shape, cut, lower.shape[-1])
    return _RowFakeQuantize.apply(x, lower, upper, levels, form, layout)
