"""Pure functions: bounds + tensor -> codes, codes -> tensor, and the fake-quantize autograd function."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

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


def _positive(x: Tensor) -> Tensor:
    """1.0 where x > 0, else 0.0, in place: several times faster than a comparison, whose result is boolean."""
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
    # A real zero point comes back from the bounds with float noise: codes 0 and n are inside.
    slack = 1e-4 if form is Form.REAL_ZP else 0.0
    return _positive(codes - (levels + slack)), _positive(-slack - codes)


def _extremes(x: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of x per range, or per channel of a split range, shaped like the bounds."""
    if lower.ndim == 0:
        return torch.aminmax(x)
    dims = [d for d, size in enumerate(lower.shape) if size == 1]
    if not dims:
        return x, x
    # Two reductions: faster than torch.aminmax over a dimension, and ten times faster than comparing all.
    return x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)


def _clips(x: Tensor, lower: Tensor, upper: Tensor, levels: int, form: Form) -> bool:
    """Whether quantization clips anything, which the extremes of each range show."""
    low, high = _extremes(x, lower)
    if form is Form.REAL_OFFSET:
        return bool(((low < lower) | (high > upper)).any())
    masks = [_clipped(end, lower, upper, levels, form) for end in (low, high)]
    return any(bool(mask.any()) for pair in masks for mask in pair)


PIECE = 1 << 18  # elements: what stays in a core's cache through a chain of operations
DEVICE_PIECE = 1 << 26  # elsewhere: what bounds memory and still fills the device


def piece_size(like: Tensor) -> int:
    """Elements to work on at a time where a large tensor is made and used up in pieces."""
    return PIECE if like.device.type == "cpu" else DEVICE_PIECE


def _at_once(lower: Tensor, *tensors: Tensor) -> bool:
    small = lower.ndim > 0 or tensors[0].numel() <= PIECE or tensors[0].device.type != "cpu"
    return small or not all(t.is_contiguous() for t in tensors)


def _pieces(lower: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, of one shape; on a CPU large ones under one range in pieces, so that a chain of operations reads memory once."""
    if _at_once(lower, *tensors):
        return iter([tensors])
    return zip(*(t.view(-1).split(PIECE) for t in tensors), strict=True)


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization with exact bound gradients (methods.md 8.2), inclusive at the bounds.

    torch.clamp is avoided on purpose: since torch 2.14 its gradient is 0 at the bound, where codes 0
    and n sit after rounding (methods.md 13.1). Only x, its quantized copy (which the next operation keeps
    anyway) and the bounds are saved. Calibrated ranges mostly clip nothing, which the extremes of x show.
    """

    @staticmethod
    def forward(ctx, x: Tensor, lower: Tensor, upper: Tensor, levels: int, form: Form) -> Tensor:
        def through_codes(x: Tensor) -> Tensor:
            return dequantize(quantize(x, lower, upper, levels, form), lower, upper, levels, form)

        if _at_once(lower, x):
            out = through_codes(x)
        else:
            out = torch.empty_like(x)
            for piece, made in _pieces(lower, x, out):
                made.copy_(through_codes(piece))
        ctx.save_for_backward(x, out, lower, upper)
        ctx.levels, ctx.form = levels, form
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, out, lower, upper = ctx.saved_tensors
        levels, form = ctx.levels, ctx.form
        learns = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        clips = _clips(x, lower, upper, levels, form)
        if not (clips or learns):
            return grad, None, None, None, None
        grad_x = torch.empty_like(grad) if clips else grad
        sums = []  # of each piece: residual, clipped above, clipped below
        for x_i, out_i, grad_i, grad_x_i in _pieces(lower, x, out, grad, grad_x):
            clipped = ()
            if clips:
                above, below = _clipped(x_i, lower, upper, levels, form)
                clipped = above.mul_(grad_i), below.mul_(grad_i)
                torch.sub(grad_i, clipped[0], out=grad_x_i).sub_(clipped[1])
            if learns:
                terms = ((out_i - x_i).mul_(grad_x_i), *clipped)
                sums.append([term.sum_to_size(lower.shape) for term in terms])
        if not learns:
            return grad_x, None, None, None, None
        inner, *sum_clipped = (reduce(torch.add, terms) for terms in zip(*sums, strict=True))
        # Inside, x_hat - x is the rounding residual in units of x; its share of the range is d x_hat / d upper.
        inner = inner / (upper - lower).clamp_min(MIN_WIDTH)
        grad_lower, grad_upper = -inner, inner
        if clips:
            sum_above, sum_below = sum_clipped
            grad_lower, grad_upper = grad_lower + sum_below, grad_upper + sum_above
            if form is not Form.REAL_OFFSET:
                # The grid of a rounded zero point is shifted against the bounds by (zero - lower / scale) steps.
                scale = scale_of(lower, upper, levels)
                excess = (zero_of(lower, scale, form) - lower / scale) / levels
                drift = excess * (sum_above + sum_below)
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
