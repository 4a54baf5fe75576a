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
    return round_half_away(x) if form is Form.INT_ZP else torch.round(x)


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
        return codes * scale + lower
    return (codes + zero_of(lower, scale, form)) * scale


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization with exact bound gradients (methods.md 8.2), inclusive at the bounds.

    torch.clamp is avoided on purpose: since torch 2.14 its gradient is 0 at the bound, where codes 0
    and n sit after rounding (methods.md 13.1). Only x and the bounds are saved.
    """

    @staticmethod
    def forward(ctx, x: Tensor, lower: Tensor, upper: Tensor, levels: int, form: Form) -> Tensor:
        ctx.save_for_backward(x, lower, upper)
        ctx.levels, ctx.form = levels, form
        return dequantize(quantize(x, lower, upper, levels, form), lower, upper, levels, form)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, lower, upper = ctx.saved_tensors
        levels, form = ctx.levels, ctx.form
        scale = scale_of(lower, upper, levels)
        if form is Form.REAL_OFFSET:
            above, below = x > upper, x < lower
        else:
            steps = x / scale
            rounded = _round(steps, form)
            zero = zero_of(lower, scale, form)
            if form is Form.LSQ:
                above, below = x >= upper, x <= lower
            else:
                # A real zero point comes back from the bounds with float noise: codes 0 and n are inside.
                slack = 1e-4 if form is Form.REAL_ZP else 0.0
                codes = rounded - zero
                above, below = codes > levels + slack, codes < -slack
        outside = above | below
        grad_x = grad.masked_fill(outside, 0.0) if ctx.needs_input_grad[0] else None
        if not (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
            return grad_x, None, None, None, None
        if form is Form.REAL_OFFSET:
            t = (x - lower).div_(scale)
            residual = torch.floor(t + 0.5).sub_(t)
            excess = 0.0
        else:
            residual = rounded.sub_(steps)
            excess = (zero - lower / scale) / levels
        inner = residual.div_(levels).masked_fill_(outside, 0.0).mul_(grad).sum_to_size(lower.shape)
        grad_above = (grad * above).sum_to_size(lower.shape)
        grad_below = (grad * below).sum_to_size(lower.shape)
        drift = excess * (grad_above + grad_below)
        return grad_x, grad_below - inner - drift, grad_above + inner + drift, None, None


def fake_quantize(x: Tensor, lower: Tensor, upper: Tensor, levels: int, form: Form) -> Tensor:
    """Quantize and dequantize `x`; gradients flow to x (straight-through) and to both bounds.

    Args:    x: any shape. lower, upper: equal shapes, broadcastable to x. levels: 2^bits - 1.
    Returns: x's shape, at most levels + 1 distinct values per range.
    """
    return _FakeQuantize.apply(x, lower, upper, levels, form)
