"""Pure functions: bounds + tensor -> codes, codes -> tensor, and the fake-quantize autograd function."""

from __future__ import annotations

import torch
from torch import Tensor

from passionsr.quant.spec import Form

MIN_WIDTH = 1e-6


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


def _clipped(
    x: Tensor, lower: Tensor, upper: Tensor, levels: int, form: Form
) -> tuple[Tensor, Tensor]:
    """(above, below): masks of the elements that quantization clips; bounds themselves are inside."""
    if form is Form.REAL_OFFSET:
        return x > upper, x < lower
    if form is Form.LSQ:
        return x >= upper, x <= lower
    scale = scale_of(lower, upper, levels)
    codes = _round(x / scale, form) - zero_of(lower, scale, form)
    # A real zero point comes back from the bounds with float noise: codes 0 and n are inside.
    slack = 1e-4 if form is Form.REAL_ZP else 0.0
    return codes > levels + slack, codes < -slack


def _masked_sum(values: Tensor, mask: Tensor, shape: torch.Size) -> Tensor:
    """Sum of the masked values, over the dimensions in which `shape` is 1; cheap if few are masked."""
    if int(mask.count_nonzero()) * 16 > mask.numel():
        return values.masked_fill(~mask, 0.0).sum_to_size(shape)
    if not shape:
        return values.masked_select(mask).sum()
    index = mask.nonzero(as_tuple=True)
    place = tuple(
        i if size > 1 else torch.zeros_like(i) for i, size in zip(index, shape, strict=True)
    )
    return values.new_zeros(shape).index_put_(place, values[index], accumulate=True)


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization with exact bound gradients (methods.md 8.2), inclusive at the bounds.

    torch.clamp is avoided on purpose: since torch 2.14 its gradient is 0 at the bound, where codes 0
    and n sit after rounding (methods.md 13.1). Only x, its quantized copy (which the next operation keeps
    anyway) and the bounds are saved. Calibrated ranges mostly clip nothing, which the extremes of x show.
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
        learns = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        clips = True
        if lower.ndim == 0:
            ends = torch.stack(torch.aminmax(x))
            above, below = _clipped(ends, lower, upper, levels, form)
            clips = bool((above | below).any())
        grad_x = grad
        if clips:
            above, below = _clipped(x, lower, upper, levels, form)
            outside = above | below
            clips = bool(outside.any())
            grad_x = grad.masked_fill(outside, 0.0) if clips else grad
        if not learns:
            return grad_x, None, None, None, None
        # Inside, x_hat - x is the rounding residual in units of x; its share of the range is d x_hat / d upper.
        width = (upper - lower).clamp_min(MIN_WIDTH)
        inner = (out - x).mul_(grad_x).sum_to_size(lower.shape) / width
        grad_lower, grad_upper = -inner, inner
        if clips:
            grad_above = _masked_sum(grad, above, lower.shape)
            grad_below = _masked_sum(grad, below, lower.shape)
            grad_lower, grad_upper = grad_lower + grad_below, grad_upper + grad_above
            if form is not Form.REAL_OFFSET:
                # The grid of a rounded zero point is shifted against the bounds by (zero - lower / scale) steps.
                scale = scale_of(lower, upper, levels)
                excess = (zero_of(lower, scale, form) - lower / scale) / levels
                drift = excess * (grad_above + grad_below)
                grad_lower, grad_upper = grad_lower - drift, grad_upper + drift
        return grad_x, grad_lower, grad_upper, None, None


def fake_quantize(x: Tensor, lower: Tensor, upper: Tensor, levels: int, form: Form) -> Tensor:
    """Quantize and dequantize `x`; gradients flow to x (straight-through) and to both bounds.

    Args:    x: any shape. lower, upper: equal shapes, broadcastable to x. levels: 2^bits - 1.
    Returns: x's shape, at most levels + 1 distinct values per range.
    """
    return _FakeQuantize.apply(x, lower, upper, levels, form)


def _straight_through(x: Tensor) -> Tensor:
    return x + (round_half_away(x) - x).detach()


def fake_quantize_stale(
    x: Tensor, lower: Tensor, upper: Tensor, levels: int, previous: Tensor
) -> Tensor:
    """PassionSR's released form: the zero point comes from `previous`, the scale of the last forward (8.6.2).

    Its gradient pushes both bounds where values clip; kept to measure what that costs.
    """
    scale = scale_of(lower, upper, levels)
    zero = _straight_through(lower / previous)
    codes = _straight_through(x / scale) - zero
    ends = torch.zeros_like(codes), torch.full_like(codes, float(levels))
    codes = torch.where(codes < 0, ends[0], torch.where(codes > levels, ends[1], codes))
    return (codes + zero) * scale
