"""Numba loops that fake-quantize on a CPU in one pass over memory; `cpu_functions` calls them.

They do to each value what `functional` does by a chain of torch operations. The chain is the
definition, and serves every other device and type. Finite values and gradients of x are equal to
the chain's to the bit (tests/quantization/test_cpu_kernels.py); sums for bound gradients are taken
in blocks, then in double precision. The loops run on one core, as the benchmark's jobs do
(`threads: 1`). Importing this module imports numba.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit, types

from passionsr.quantization.spec import Form

# What decides a value's code, its zero point and where it clips, see `functional.quantize`.
REAL_OFFSET, AWAY, EVEN, REAL_ZP, LSQ = range(5)
KINDS = {
    Form.REAL_OFFSET: REAL_OFFSET,
    Form.INT_ZP: AWAY,
    Form.AFFINE: EVEN,
    Form.REAL_ZP: REAL_ZP,
    Form.LSQ: LSQ,
}
BLOCK = 4096  # values summed in their own precision before the sum goes on in double
# Of a cache that cannot be used: no folder to write to, or what pickle says of a damaged file.
CACHE_ERRORS = (
    RuntimeError, OSError, EOFError, pickle.UnpicklingError,
    AttributeError, ImportError, IndexError,
)  # fmt: skip


@njit(inline="always", error_model="numpy")
def _round_half_away(t, half):
    away = np.floor(abs(t) + half)
    return away if t >= 0 else -away


@njit(inline="always", error_model="numpy")
def _grid(lower, upper, levels, half, min_width, kind):
    """(scale, shift): what x is divided by, and the code offset (REAL_OFFSET: the lower bound)."""
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
    """(lower, upper, scale, shift, group) of alternating groups, at each position of a period."""
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


_TYPES: dict[torch.dtype, types.Type] = {torch.float32: types.float32, torch.float64: types.float64}
# Arrays of the signatures, all contiguous: values, tables of bounds, vectors.
Signature = Callable[[types.Type], tuple[types.Type, ...]]


def _compiled(
    function: Callable[..., Any],
    dtype: torch.dtype,
    arguments: Signature,
    *variant: Any,
    **options: Any,
) -> Callable[..., Any]:
    """Machine code of `function`, from numba's cache on disk where that can be used."""
    # Names the cache's file: numba numbers the variants of one name, and two processes could give
    # one number to two of them.
    function.__qualname__ = "_".join(map(str, (function.__name__, *variant, _TYPES[dtype])))
    options |= {"nogil": True, "error_model": "numpy"}
    signature = arguments(_TYPES[dtype])
    try:
        return njit(signature, cache=True, **options)(function)
    except CACHE_ERRORS:
        return njit(signature, **options)(function)


@functools.cache
def forward_of(dtype: torch.dtype, kind: int) -> Callable[..., None]:
    """A loop that fills `out`.

    x, out: (outer, rows, columns). lower, upper: (rows, groups); the second group begins at column
        `cut`.
    """

    def forward(x, out, lower, upper, cut, constants):
        zero, half, levels, min_width = constants[0], constants[1], constants[2], constants[3]
        outer, rows, columns = x.shape
        for r in range(rows):
            for g in range(lower.shape[1]):
                low = lower[r, g]
                scale, shift = _grid(low, upper[r, g], levels, half, min_width, kind)
                first, end = (0, cut) if g == 0 else (cut, columns)
                for o in range(outer):
                    # Slices, whose indices the compiler sees to be in range: it makes vectors of
                    # this loop only then.
                    values, made = x[o, r, first:end], out[o, r, first:end]
                    for i in range(len(values)):
                        made[i] = _value(values[i], low, scale, shift, levels, zero, half, kind)

    def arguments(t):
        return t[:, :, ::1], t[:, :, ::1], t[:, ::1], t[:, ::1], types.int64, t[::1]

    return _compiled(forward, dtype, arguments, kind)


@functools.cache
def interleaved_forward_of(dtype: torch.dtype, kind: int) -> Callable[..., None]:
    """`forward_of` where two ranges alternate along x (many, period), every `columns` values.

    lower, upper: (1, 2).
    """

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
def backward_of(dtype: torch.dtype, kind: int, learns: bool) -> Callable[..., None]:
    """A loop that fills `grad_x` and, where the bounds learn, adds to sums (3, rows, groups).

    The sums are those of `bound_gradients_of`.
    """

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
def interleaved_backward_of(dtype: torch.dtype, kind: int, learns: bool) -> Callable[..., None]:
    """`backward_of` for what `interleaved_forward_of` takes."""

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
def scaled_forward_of(dtype: torch.dtype, kind: int) -> Callable[..., None]:
    """`forward_of` one range, of x times factors that repeat after `period` values."""

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
def scaled_backward_of(
    dtype: torch.dtype, kind: int, learns: bool, factors_learn: bool
) -> Callable[..., None]:
    """`backward_of` for what `scaled_forward_of` takes.

    products: filled with the terms of the factors' gradients, where they learn. A block of x times
    the factors is made in the cache, and the loop over it is `backward_of`'s, so that its sums have
    the same order.
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
def bound_gradients_of(dtype: torch.dtype, kind: int) -> Callable[..., None]:
    """Fills the gradients of the bounds; `functional` has the formulas.

    sums (3, rows, groups): the rounding residual times the gradient inside, the gradient of what is
    clipped above, and below.
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
