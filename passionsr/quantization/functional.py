"""Pure functions: bounds + tensor -> codes, codes -> tensor, and the fake-quantize autograd function."""

from __future__ import annotations

import torch
from torch import Tensor

from passionsr.quantization.spec import Form

MIN_WIDTH = 1e-6
# A real zero point comes back from the bounds with float noise: codes 0 and n are inside.
REAL_ZP_SLACK = 1e-4


def round_half_away(x: Tensor) -> Tensor:
    """Round half away from zero, PassionSR's convention (methods.md 0).

    >>> round_half_away(torch.tensor([-2.5, 0.5, 1.5]))
    tensor([-3.,  1.,  2.])
    """
    return torch.sign(x) * torch.floor(torch.abs(x) + 0.5)


def _round(x: Tensor, form: Form) -> Tensor:
    away = form in (Form.INT_ZP, Form.INT_ZP_STALE)
    return round_half_away(x) if away else torch.round(x)


def zero_of(lower: Tensor, scale: Tensor, form: Form) -> Tensor:
    """The code offset lower / scale, rounded unless the form keeps it real: minus the zero point."""
    zero = lower / scale
    return zero if form is Form.REAL_ZP else _round(zero, form)


def scale_of(lower: Tensor, upper: Tensor, levels: int) -> Tensor:
    """(upper - lower) / levels, the width floored at 1e-6 so that a constant tensor has a scale."""
    return (upper - lower).clamp_min(MIN_WIDTH) / levels


def quantize(x: Tensor, lower: Tensor, upper: Tensor, levels: int, form: Form) -> Tensor:
    """Integer codes in [0, levels], as a float tensor of x's shape; bounds broadcast against x."""
    scale = scale_of(lower, upper, levels)
    if form is Form.REAL_OFFSET:
        # t >= 0 after the clamp, so half away from zero is floor(t + 0.5)
        return (x - lower).div_(scale).clamp_(0, levels).add_(0.5).floor_()
    return (_round(x / scale, form) - zero_of(lower, scale, form)).clamp_(0, levels)


def dequantize(codes: Tensor, lower: Tensor, upper: Tensor, levels: int, form: Form) -> Tensor:
    """Codes -> values, by exactly the arithmetic of `fake_quantize`."""
    scale = scale_of(lower, upper, levels)
    if form is Form.REAL_OFFSET:
        return (codes * scale).add_(lower)
    return (codes + zero_of(lower, scale, form)).mul_(scale)


def _positive(x: Tensor) -> Tensor:
    """1.0 where x > 0, else 0.0, in place."""
    return x.clamp_(min=0).sign_()


def _clipped(
    x: Tensor, lower: Tensor, upper: Tensor, levels: int, form: Form
) -> tuple[Tensor, Tensor]:
    """(above, below): 1.0 where quantization clips; bounds themselves are inside, except in LSQ."""
    if form is Form.REAL_OFFSET:
        return _positive(x - upper), _positive(lower - x)
    if form is Form.LSQ:
        return 1 - _positive(upper - x), 1 - _positive(x - lower)
    scale = scale_of(lower, upper, levels)
    codes = _round(x / scale, form) - zero_of(lower, scale, form)
    slack = REAL_ZP_SLACK if form is Form.REAL_ZP else 0.0
    return _positive(codes - (levels + slack)), _positive(-slack - codes)


PIECE = 1 << 18  # elements: what stays in a core's cache through a chain of operations
DEVICE_PIECE = 1 << 26  # elsewhere: what bounds memory and still fills the device


def piece_size(like: Tensor) -> int:
    """Elements to work on at a time where a large tensor is made and used up in pieces."""
    return PIECE if like.device.type == "cpu" else DEVICE_PIECE


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization with exact bound gradients (methods.md 8.2), inclusive at the bounds.

    torch.clamp is avoided on purpose: since torch 2.14 its gradient is 0 at the bound, where codes 0
    and n sit after rounding (methods.md 13.1). Only x, its quantized copy (which the next operation keeps
    anyway) and the bounds are saved.
    """

    @staticmethod
    def forward(ctx, x: Tensor, lower: Tensor, upper: Tensor, levels: int, form: Form) -> Tensor:
        out = dequantize(quantize(x, lower, upper, levels, form), lower, upper, levels, form)
        ctx.save_for_backward(x, out, lower, upper)
        ctx.levels, ctx.form = levels, form
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, out, lower, upper = ctx.saved_tensors
        levels, form = ctx.levels, ctx.form
        above, below = (side.mul_(grad) for side in _clipped(x, lower, upper, levels, form))
        grad_x = (grad - above).sub_(below)
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return grad_x, None, None, None, None
        inner, above, below = (
            term.sum_to_size(lower.shape) for term in ((out - x).mul_(grad_x), above, below)
        )
        # Inside, x_hat - x is the rounding residual in units of x; its share of the range is d x_hat / d upper.
        inner = inner / (upper - lower).clamp_min(MIN_WIDTH)
        grad_lower, grad_upper = below - inner, above + inner
        if form is not Form.REAL_OFFSET:
            # The grid of a rounded zero point is shifted against the bounds by (zero - lower / scale) steps.
            scale = scale_of(lower, upper, levels)
            drift = (zero_of(lower, scale, form) - lower / scale) / levels * (above + below)
            grad_lower, grad_upper = grad_lower - drift, grad_upper + drift
        return grad_x, grad_lower, grad_upper, None, None


def fake_quantize(x: Tensor, lower: Tensor, upper: Tensor, levels: int, form: Form) -> Tensor:
    """Quantize and dequantize `x`; gradients flow to x (straight-through) and to both bounds.

    Args:    x: any shape. lower, upper: equal shapes, broadcastable to x. levels: 2^bits - 1.
    Returns: x's shape, at most levels + 1 distinct values per range.
    """
    return _FakeQuantize.apply(x, lower, upper, levels, form)


def _straight_through(x: Tensor) -> Tensor:
    """The value that x + (round(x) - x).detach() has: not always the integer itself."""
    return (round_half_away(x) - x).add_(x)


class _FakeQuantizeStale(torch.autograd.Function):
    """The released chain of operations and the gradients that autograd gives it, to the bit, without keeping the chain."""

    @staticmethod
    def forward(
        ctx, x: Tensor, lower: Tensor, upper: Tensor, levels: int, previous: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, lower, upper, previous)
        ctx.levels = levels
        scale, zero = _stale_grid(lower, upper, levels, previous)
        codes = _straight_through(x / scale).sub_(zero)
        return codes.clamp_(0, levels).add_(zero).mul_(scale)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, lower, upper, previous = ctx.saved_tensors
        levels = ctx.levels
        scale, zero = _stale_grid(lower, upper, levels, previous)

        def total(t: Tensor) -> Tensor:
            # Of equal shapes the sum is t itself, which is written to below.
            return t.sum_to_size(lower.shape).clone()

        codes = _straight_through(x / scale).sub_(zero)
        below, above = codes < 0, codes > levels
        learns = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        if learns:
            grad_scale = total(_product(grad, codes.clamp_(0, levels).add_(zero)))
        del codes
        inside = grad * scale
        if learns:
            grad_zero = total(inside)
        for outside in (below, above):
            if outside.stride() == inside.stride():
                inside.masked_fill_(outside, 0)
            else:
                inside = torch.where(outside, 0, inside)
        if not learns:
            return inside.div_(scale), None, None, None, None
        grad_zero = grad_zero - total(inside)
        grad_scale = grad_scale - total(_product(inside, (x / scale).div_(scale)))
        grad_x = inside.div_(scale)
        grad_upper = grad_scale / levels * (upper - lower >= MIN_WIDTH)
        return grad_x, grad_zero / previous - grad_upper, grad_upper, None, None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """A b; in b's memory where that has the layout that torch would choose, on which the order of a sum hangs."""
    return b.mul_(a) if a.stride() == b.stride() else a * b


def _stale_grid(
    lower: Tensor, upper: Tensor, levels: int, previous: Tensor
) -> tuple[Tensor, Tensor]:
    return scale_of(lower, upper, levels), _straight_through(lower / previous)


def fake_quantize_stale(
    x: Tensor, lower: Tensor, upper: Tensor, levels: int, previous: Tensor
) -> Tensor:
    """PassionSR's released form: the zero point comes from `previous`, the scale of the last forward (8.6.2).

    Its gradient pushes both bounds where values clip; kept to measure what that costs.

    Args:    as `fake_quantize`; previous: of the bounds' shape, without gradient.
    """
    return _FakeQuantizeStale.apply(x, lower, upper, levels, previous)
