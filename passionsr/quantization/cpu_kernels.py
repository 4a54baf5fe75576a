"""Fake quantization on a CPU in one pass over memory: numba loops that do to each value what `primitives` does by a chain of torch operations.

The chain is the definition, and serves every other device and type. Finite values and gradients of x are equal to its
to the bit (tests/test_fused.py); sums for bound gradients are taken in blocks, then in double precision. The loops
run on one core, as the benchmark's jobs do (`threads: 1`). Importing this module imports numba.
"""

from __future__ import annotations

import functools
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import njit, types
from torch import Tensor
from torch.autograd.function import once_differentiable

from passionsr.quantization.functional import MIN_WIDTH, REAL_ZP_SLACK
from passionsr.quantization.spec import Form

# What decides a value's code, its zero point and where it clips, see `primitives.quantize`.
REAL_OFFSET, AWAY, EVEN, REAL_ZP, LSQ = range(5)
KINDS = {
    Form.REAL_OFFSET: REAL_OFFSET,
    Form.INT_ZP: AWAY,
    Form.INT_ZP_STALE: AWAY,
    Form.AFFINE: EVEN,
    Form.REAL_ZP: REAL_ZP,
    Form.LSQ: LSQ,
}
BLOCK = 4096  # values summed in their own precision before the sum goes on in double


@njit(inline="always", error_model="numpy")
def _round_half_away(t, half):
    away = np.floor(abs(t) + half)
    return away if t >= 0 else -away


@njit(inline="always", error_model="numpy")
def _grid(lower, upper, levels, half, min_width, kind):
    """(scale, shift): what x is divided by, and the code offset, or the lower bound in the form REAL_OFFSET."""
    width = upper - lower
    scale = (min_width if width < min_width else width) / levels
    if kind == REAL_OFFSET:
        return scale, lower
    zero = lower / scale
    if kind == REAL_ZP:
        return scale, zero
    return scale, _round_half_away(zero, half) if kind == AWAY else np.rint(zero)


@njit(inline="always", error_model="numpy")
def _code(x, scale, shift, half, kind):
    """The code before clamping; in the form REAL_OFFSET before rounding, too."""
    if kind == REAL_OFFSET:
        return (x - shift) / scale
    t = x / scale
    return (_round_half_away(t, half) if kind == AWAY else np.rint(t)) - shift


@njit(inline="always", error_model="numpy")
def _value(x, lower, scale, shift, levels, zero, half, kind):
    """The fake-quantized value."""
    t = _code(x, scale, shift, half, kind)
    t = zero if t < zero else t
    t = levels if t > levels else t
    if kind == REAL_OFFSET:
        return np.floor(t + half) * scale + lower
    return (t + shift) * scale


@njit(inline="always", error_model="numpy")
def _sides(x, grad, lower, upper, scale, shift, levels, zero, half, slack, kind):
    """The gradient where x is clipped above, and below, else 0."""
    if kind == REAL_OFFSET:
        return (grad if x > upper else zero), (grad if x < lower else zero)
    if kind == LSQ:
        return (grad if x >= upper else zero), (grad if x <= lower else zero)
    t = _code(x, scale, shift, half, kind)
    return (grad if t > levels + slack else zero), (grad if t < -slack else zero)


@njit(inline="always", error_model="numpy")
def _spread(lower, upper, cut, columns, period, levels, half, min_width, kind):
    """(lower, upper, scale, shift, group) of two groups that alternate, for every position of the period."""
    spread = np.empty((5, period), lower.dtype)
    for g in range(2):
        low, high = lower[0, g], upper[0, g]
        scale, shift = _grid(low, high, levels, half, min_width, kind)
        first, end = (0, cut) if g == 0 else (cut, columns)
        for start in range(0, period, columns):
            spread[0, start + first : start + end] = low
            spread[1, start + first : start + end] = high
            spread[2, start + first : start + end] = scale
            spread[3, start + first : start + end] = shift
            spread[4, start + first : start + end] = g
    return spread[0], spread[1], spread[2], spread[3], spread[4]


_TYPES = {torch.float32: types.float32, torch.float64: types.float64}
# Arrays of the signatures, all contiguous: values, tables of bounds, vectors.
Signature = Callable[[types.Type], tuple[types.Type, ...]]


def _compiled(
    function: Callable[..., Any],
    dtype: torch.dtype,
    arguments: Signature,
    *variant: Any,
    **options: Any,
) -> Callable[..., Any]:
    """Machine code of `function`, from numba's cache on disk where there is one that can be read and written to."""
    # Names the cache's file: numba numbers the variants of one name, and two processes could give one number to two of them.
    function.__qualname__ = "_".join(map(str, (function.__name__, *variant, _TYPES[dtype])))
    options |= {"nogil": True, "error_model": "numpy"}
    signature = arguments(_TYPES[dtype])
    try:
        return njit(signature, cache=True, **options)(function)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
        return njit(signature, **options)(function)


@functools.cache
def _forward_of(dtype: torch.dtype, kind: int) -> Callable[..., None]:
    """Fills `out`. x, out: (outer, rows, columns); lower, upper: (rows, groups), the second group from column `cut` on."""

    def forward(x, out, lower, upper, cut, constants):
        zero, half, levels, min_width = constants[0], constants[1], constants[2], constants[3]
        outer, rows, columns = x.shape
        for r in range(rows):
            for g in range(lower.shape[1]):
                low = lower[r, g]
                scale, shift = _grid(low, upper[r, g], levels, half, min_width, kind)
                first, end = (0, cut) if g == 0 else (cut, columns)
                for o in range(outer):
                    # Slices, whose indices the compiler sees to be in range: it makes vectors of this loop only then.
                    values, made = x[o, r, first:end], out[o, r, first:end]
                    for i in range(len(values)):
                        made[i] = _value(values[i], low, scale, shift, levels, zero, half, kind)

    def arguments(t):
        return t[:, :, ::1], t[:, :, ::1], t[:, ::1], t[:, ::1], types.int64, t[::1]

    return _compiled(forward, dtype, arguments, kind)


@functools.cache
def _interleaved_forward_of(dtype: torch.dtype, kind: int) -> Callable[..., None]:
    """`_forward_of` one row where two ranges alternate along x (many, period), every `columns` values."""

    def forward(x, out, lower, upper, cut, columns, constants):
        zero, half, levels, min_width = constants[0], constants[1], constants[2], constants[3]
        many, period = x.shape
        low, _, scale, shift, _ = _spread(
            lower, upper, cut, columns, period, levels, half, min_width, kind
        )
        for o in range(many):
            for i in range(period):
                out[o, i] = _value(x[o, i], low[i], scale[i], shift[i], levels, zero, half, kind)

    def arguments(t):
        return *[t[:, ::1]] * 4, types.int64, types.int64, t[::1]

    return _compiled(forward, dtype, arguments, kind, "interleaved")


@functools.cache
def _backward_of(dtype: torch.dtype, kind: int, learns: bool) -> Callable[..., None]:
    """Fills `grad_x`; where the bounds learn, adds to sums (3, rows, groups): see `_bound_gradients`."""

    def backward(x, out, grad, grad_x, lower, upper, cut, constants, sums):
        zero, half, levels, min_width, slack = (
            constants[0], constants[1], constants[2], constants[3], constants[4],
        )  # fmt: skip
        outer, rows, columns = x.shape
        for r in range(rows):
            for g in range(lower.shape[1]):
                low, high = lower[r, g], upper[r, g]
                scale, shift = _grid(low, high, levels, half, min_width, kind)
                first, end = (0, cut) if g == 0 else (cut, columns)
                for o in range(outer):
                    if not learns:
                        values, grads = x[o, r, first:end], grad[o, r, first:end]
                        made = grad_x[o, r, first:end]
                        for i in range(len(values)):
                            v, d = values[i], grads[i]
                            a, b = _sides(
                                v, d, low, high, scale, shift, levels, zero, half, slack, kind
                            )
                            made[i] = d - a - b
                        continue
                    for start in range(first, end, BLOCK):
                        inner, above, below = zero, zero, zero
                        for i in range(start, min(start + BLOCK, end)):
                            v, d = x[o, r, i], grad[o, r, i]
                            a, b = _sides(
                                v, d, low, high, scale, shift, levels, zero, half, slack, kind
                            )
                            d = d - a - b
                            grad_x[o, r, i] = d
                            inner += (out[o, r, i] - v) * d
                            above += a
                            below += b
                        sums[0, r, g] += inner
                        sums[1, r, g] += above
                        sums[2, r, g] += below

    def arguments(t):
        table = t[:, ::1]
        return *[t[:, :, ::1]] * 4, table, table, types.int64, t[::1], types.float64[:, :, ::1]

    # Lanes may sum in any order; nothing else here depends on order.
    return _compiled(backward, dtype, arguments, kind, learns, fastmath={"reassoc"})


@functools.cache
def _interleaved_backward_of(dtype: torch.dtype, kind: int, learns: bool) -> Callable[..., None]:
    """`_backward_of` for what `_interleaved_forward_of` takes."""

    def backward(x, out, grad, grad_x, lower, upper, cut, columns, constants, sums):
        zero, half, levels, min_width, slack = (
            constants[0], constants[1], constants[2], constants[3], constants[4],
        )  # fmt: skip
        many, period = x.shape
        low, high, scale, shift, second = _spread(
            lower, upper, cut, columns, period, levels, half, min_width, kind
        )
        for o in range(many):
            inner, above, below = zero, zero, zero
            inner_2, above_2, below_2 = zero, zero, zero
            for i in range(period):
                v, d = x[o, i], grad[o, i]
                a, b = _sides(
                    v, d, low[i], high[i], scale[i], shift[i], levels, zero, half, slack, kind
                )
                d = d - a - b
                grad_x[o, i] = d
                if learns:
                    residual = (out[o, i] - v) * d
                    in_second = second[i] > zero
                    inner += zero if in_second else residual
                    above += zero if in_second else a
                    below += zero if in_second else b
                    inner_2 += residual if in_second else zero
                    above_2 += a if in_second else zero
                    below_2 += b if in_second else zero
            sums[0, 0, 0] += inner
            sums[1, 0, 0] += above
            sums[2, 0, 0] += below
            sums[0, 0, 1] += inner_2
            sums[1, 0, 1] += above_2
            sums[2, 0, 1] += below_2

    def arguments(t):
        return *[t[:, ::1]] * 6, types.int64, types.int64, t[::1], types.float64[:, :, ::1]

    return _compiled(backward, dtype, arguments, kind, learns, "interleaved", fastmath={"reassoc"})


@functools.cache
def _scaled_forward_of(dtype: torch.dtype, kind: int) -> Callable[..., None]:
    """`_forward_of` one range, of x times factors that repeat after `period` values."""

    def forward(x, out, factors, period, lower, upper, constants):
        zero, half, levels, min_width = constants[0], constants[1], constants[2], constants[3]
        low = lower[0, 0]
        scale, shift = _grid(low, upper[0, 0], levels, half, min_width, kind)
        for start in range(0, len(x), BLOCK):
            values, made = x[start : start + BLOCK], out[start : start + BLOCK]
            repeated = factors[start % period :]
            for i in range(len(values)):
                made[i] = _value(
                    values[i] * repeated[i], low, scale, shift, levels, zero, half, kind
                )

    def arguments(t):
        return t[::1], t[::1], t[::1], types.int64, t[:, ::1], t[:, ::1], t[::1]

    return _compiled(forward, dtype, arguments, kind, "scaled")


@functools.cache
def _scaled_backward_of(
    dtype: torch.dtype, kind: int, learns: bool, factors_learn: bool
) -> Callable[..., None]:
    """`_backward_of` for what `_scaled_forward_of` takes; products: what the factors' gradients are the sums of.

    A block of x times the factors is made in the cache, and the loop over it is `_backward_of`'s, so that its sums
    have the same order.
    """

    def backward(x, out, grad, grad_x, products, factors, period, lower, upper, constants, sums):
        zero, half, levels, min_width, slack = (
            constants[0], constants[1], constants[2], constants[3], constants[4],
        )  # fmt: skip
        low, high = lower[0, 0], upper[0, 0]
        scale, shift = _grid(low, high, levels, half, min_width, kind)
        scaled, inside = np.empty(BLOCK, x.dtype), np.empty(BLOCK, x.dtype)
        for start in range(0, len(x), BLOCK):
            end = min(start + BLOCK, len(x))
            values, repeated = x[start:end], factors[start % period :]
            for i in range(len(values)):
                scaled[i] = values[i] * repeated[i]
            if learns:
                inner, above, below = zero, zero, zero
                for i in range(end - start):
                    v, d = scaled[i], grad[start + i]
                    a, b = _sides(v, d, low, high, scale, shift, levels, zero, half, slack, kind)
                    d = d - a - b
                    inside[i] = d
                    inner += (out[start + i] - v) * d
                    above += a
                    below += b
                sums[0, 0, 0] += inner
                sums[1, 0, 0] += above
                sums[2, 0, 0] += below
            else:
                grads = grad[start:end]
                for i in range(len(grads)):
                    v, d = scaled[i], grads[i]
                    a, b = _sides(v, d, low, high, scale, shift, levels, zero, half, slack, kind)
                    inside[i] = d - a - b
            made = grad_x[start:end]
            for i in range(len(made)):
                made[i] = inside[i] * repeated[i]
            if factors_learn:
                made = products[start:end]
                for i in range(len(made)):
                    made[i] = inside[i] * values[i]

    def arguments(t):
        table = t[:, ::1]
        return *[t[::1]] * 6, types.int64, table, table, t[::1], types.float64[:, :, ::1]

    variant = kind, learns, factors_learn, "scaled"
    return _compiled(backward, dtype, arguments, *variant, fastmath={"reassoc"})


@functools.cache
def _bound_gradients_of(dtype: torch.dtype, kind: int) -> Callable[..., None]:
    """Fills the gradients of the bounds; `primitives` explains the formulas.

    sums (3, rows, groups): the rounding residual times the gradient inside, the gradient of what is clipped above, and below.
    """

    def gradients(lower, upper, constants, sums, grad_lower, grad_upper):
        half, levels, min_width = constants[1], constants[2], constants[3]
        for r in range(lower.shape[0]):
            for g in range(lower.shape[1]):
                inner, above, below = sums[0, r, g], sums[1, r, g], sums[2, r, g]
                width = upper[r, g] - lower[r, g]
                inner /= min_width if width < min_width else width
                drift = 0.0
                if kind != REAL_OFFSET:
                    scale, shift = _grid(lower[r, g], upper[r, g], levels, half, min_width, kind)
                    drift = (shift - lower[r, g] / scale) / levels * (above + below)
                grad_lower[r, g] = below - inner - drift
                grad_upper[r, g] = above + inner + drift

    def arguments(t):
        table = t[:, ::1]
        return table, table, t[::1], types.float64[:, :, ::1], table, table

    return _compiled(gradients, dtype, arguments, kind)


@functools.cache
def _constants(dtype: torch.dtype, levels: int, form: Form) -> np.ndarray:
    slack = REAL_ZP_SLACK if form is Form.REAL_ZP else 0.0
    return torch.tensor([0.0, 0.5, levels, MIN_WIDTH, slack], dtype=dtype).numpy()


@dataclass(frozen=True)
class _Layout:
    """How a tensor's values lie under their bounds.

    shape: (outer, rows, columns), a row of bounds for each of `rows`; with two groups the second begins at column `cut`.
    period: not 0 where two groups alternate in runs too short for a loop of their own: the length after which they repeat.
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
    """Gradients of lower and upper, in their shape; see `_bound_gradients_of`."""
    lower, upper = (torch.empty(shape, dtype=made_for[0]) for _ in range(2))
    made = (t.numpy().reshape(low.shape) for t in (lower, upper))
    _bound_gradients_of(*made_for)(low, high, constants, sums, *made)
    return lower, upper


class _FusedFakeQuantize(torch.autograd.Function):
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
            _interleaved_forward_of(*made_for)(*flat, *ends, constants)
        else:
            shaped = values.reshape(layout.shape), made.reshape(layout.shape)
            _forward_of(*made_for)(*shaped, low, high, layout.cut, constants)
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
            _interleaved_backward_of(*made_for, learns)(*flat, *ends, constants, sums)
        else:
            shaped = (t.reshape(layout.shape) for t in tensors)
            _backward_of(*made_for, learns)(*shaped, low, high, layout.cut, constants, sums)
        if not learns:
            return grad_x, None, None, None, None, None
        gradients = _bound_gradients(made_for, lower.shape, low, high, constants, sums)
        return grad_x, *gradients, None, None, None


class _FusedScaledFakeQuantize(torch.autograd.Function):
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
        _scaled_forward_of(*made_for)(*flat, repeated, len(factors), low, high, constants)
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
        run = _scaled_backward_of(*made_for, learns, factors_learn)
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
    """`primitives.fake_quantize` of a CPU tensor times `factors`, (size of x's last axis,), under one range.

    lower, upper: one value each; all of x's type.
    """
    return _FusedScaledFakeQuantize.apply(x, factors, lower, upper, levels, form)


def fake_quantize_rows(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    levels: int,
    form: Form,
    shape: tuple[int, int, int],
    cut: int,
) -> Tensor:
    """`primitives.fake_quantize` of a CPU tensor seen as (outer, rows, columns).

    lower, upper: (rows, groups) or (groups,) for one row, of x's type; two groups meet at column `cut`. One of outer
    and rows is 1, for what lies between them would not be in memory's order.
    """
    if 1 not in shape[:2]:
        raise ValueError(f"a range per row and leading dimensions do not go together: {shape}")
    layout = _layout(shape, cut, lower.shape[-1])
    return _FusedFakeQuantize.apply(x, lower, upper, levels, form, layout)
