"""Pure functions: quantize, dequantize, and fake quantization with its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from passionsr.quantization.spec import Form

MIN_WIDTH = 1e-6
# A real zero point comes back from the bounds with float noise: codes 0 and n are inside.
REAL_ZP_SLACK = 1e-4


def round_half_away(x: Tensor) -> Tensor:
    """Round half away from zero, as PassionSR does (torch.round rounds half to even).

    >>> round_half_away(torch.tensor([-2.5, 0.5, 1.5]))
    tensor([-3.,  1.,  2.])
    """
    return torch.sign(x) * torch.floor(torch.abs(x) + 0.5)


def _round(x: Tensor, form: Form) -> Tensor:
    return round_half_away(x) if form is Form.INT_ZP else torch.round(x)


def zero_of(lower: Tensor, scale: Tensor, form: Form) -> Tensor:
    """The code offset lower / scale (minus the zero point), rounded unless the form is REAL_ZP."""
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
    """Fake quantization with exact bound gradients, inclusive at the bounds.

    The formulas are derived in docs/methods.md#learned-bounds. torch.clamp is avoided on purpose:
    since torch 2.14 its gradient is 0 at the bound, where codes 0 and n sit after rounding. Only x,
    its quantized copy (which the next operation keeps anyway) and the bounds are saved.
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
        # Inside, x_hat - x is the rounding residual; its share of the range is d x_hat / d upper.
        inner = inner / (upper - lower).clamp_min(MIN_WIDTH)
        grad_lower, grad_upper = below - inner, above + inner
        if form is not Form.REAL_OFFSET:
            # The grid of a rounded zero point is shifted against the bounds by (zero - lower /
            # scale) steps.
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
