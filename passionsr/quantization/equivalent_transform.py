"""LET, PassionSR's learnable equivalent transformation (methods.md 8.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ScaleInit = Literal["ratio", "smoothquant"]


def init_scale(
    amax_x: Tensor, amax_w: Tensor, alpha: float = 0.3, mode: ScaleInit = "ratio"
) -> Tensor:
    """Initial per-channel scale: (amaxX / amaxW)^alpha, or SmoothQuant's amaxX^a / amaxW^(1-a).

    Both maxima are of absolute values and floored at 1e-5 (methods.md 8.2).
    """
    amax_x, amax_w = amax_x.clamp_min(1e-5), amax_w.clamp_min(1e-5)
    if mode == "smoothquant":
        return amax_x**alpha / amax_w ** (1 - alpha)
    return (amax_x / amax_w) ** alpha


class LearnedScale(nn.Module):
    """A positive scale s, learnt as log s so that it cannot change sign, set by EMA over batches."""

    def __init__(self, size: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(size), requires_grad=False)
        self._started = False

    @property
    def scale(self) -> Tensor:
        """s, shape (size,)."""
        return self.log_scale.exp()

    @torch.no_grad()
    def update(self, new: Tensor) -> None:
        """S <- 0.9 s + 0.1 s_new; the first batch sets s (methods.md 8.2)."""
        value = 0.9 * self.scale + 0.1 * new if self._started else new
        self.log_scale.copy_(value.log())
        self._started = True

    def reset(self) -> None:
        """Let the next `update` set s."""
        self._started = False


class _Normalise(torch.autograd.Function):
    """(x - o) exp(-log s), o and log s broadcast per channel; keeps its output and not x for the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, offset: Tensor, log_scale: Tensor) -> Tensor:
        inverse = (-log_scale).exp()
        out = (x - offset).mul_(inverse)
        ctx.save_for_backward(out, inverse)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, inverse = ctx.saved_tensors
        grad_x = grad * inverse
        grad_offset = grad_log_scale = None
        if ctx.needs_input_grad[1]:
            grad_offset = -grad_x.sum_to_size(inverse.shape)
        if ctx.needs_input_grad[2]:
            grad_log_scale = -(grad * out).sum_to_size(inverse.shape)
        return grad_x, grad_offset, grad_log_scale


class ChannelTransform(LearnedScale):
    """x -> (x - o) / s and W -> W s per input channel, with the exact correction term f(o, W).

    Args:
        channels: input channels. is_conv: channel axis 1 with spatial dims, else the last axis.
        official: names of released bugs to reproduce in linear layers (methods.md 0.1): "linear_offset" computes
            (x + o) / s, which W o does not correct; "stat_2d" takes one maximum for a 2-D input.
    """

    def __init__(self, channels: int, is_conv: bool, official: Sequence[str] = ()):
        super().__init__(channels)
        self.official = tuple(official) if not is_conv else ()
        self.offset = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.is_conv = is_conv
        self.collecting = False

    def _shape(self, vector: Tensor, ndim: int) -> Tensor:
        return vector.reshape(1, -1, *[1] * (ndim - 2)) if self.is_conv else vector

    @torch.no_grad()
    def collect(self, x: Tensor, weight: Tensor, alpha: float, mode: ScaleInit) -> None:
        """Update s from one batch: per-channel maxima over all other dims, for any rank of x."""
        axis = 1 if self.is_conv else x.ndim - 1
        amax_x = x.abs().amax([d for d in range(x.ndim) if d != axis])
        if x.ndim == 2 and "stat_2d" in self.official:
            amax_x = amax_x.max().expand_as(amax_x)
        amax_w = weight.abs().amax([d for d in range(weight.ndim) if d != 1])
        self.update(init_scale(amax_x, amax_w, alpha, mode))

    def input(self, x: Tensor) -> Tensor:
        """(x - o) / s, same shape."""
        offset = -self.offset if "linear_offset" in self.official else self.offset
        return _Normalise.apply(x, self._shape(offset, x.ndim), self._shape(self.log_scale, x.ndim))

    def weight(self, weight: Tensor) -> Tensor:
        """W s along the input channels, same shape."""
        return weight * self.scale.reshape(1, -1, *[1] * (weight.ndim - 2))


def border_sizes(size: int, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """For one axis: (small input size, leading border rows of the output).

    A convolution of a constant map differs from its interior value only where the kernel overlaps
    the padding, so the smallest map with the same residue modulo the stride, and one interior row
    between its borders, shows every distinct row.
    """
    lead = -(-padding // stride)
    small = 2 * lead * stride + kernel - 2 * padding
    small += (size - small) % stride
    return min(size, small), lead


def expand_borders(small: Tensor, height: int, width: int, lead: tuple[int, int]) -> Tensor:
    """Grow a small response (1, C, h, w) to (1, C, height, width) by repeating its interior row / column."""
    for axis, (target, first) in ((2, (height, lead[0])), (3, (width, lead[1]))):
        have = small.shape[axis]
        if have == target:
            continue
        if have > target + 1:
            raise ValueError(f"feature map of {target} rows is below the {have} of the border map")
        top = small.narrow(axis, 0, first)
        if have == target + 1:  # borders without an interior between them
            bottom = small.narrow(axis, first + 1, have - first - 1)
            small = torch.cat([top, bottom], axis)
            continue
        middle = small.narrow(axis, first, 1)
        repeats = [-1, -1, -1, -1]
        repeats[axis] = target - have + 1
        bottom = small.narrow(axis, first + 1, have - first - 1)
        small = torch.cat([top, middle.expand(repeats), bottom], axis)
    return small


def shift_response(
    offset: Tensor, weight: Tensor, conv: nn.Conv2d, size: tuple[int, int]
) -> Tensor:
    """conv(o broadcast to `size`, W) on the smallest map with all border patterns, (1, Cout, h, w)."""
    small = [
        border_sizes(size[i], conv.kernel_size[i], conv.stride[i], conv.padding[i])[0]
        for i in range(2)
    ]
    tiny = offset.reshape(1, -1, 1, 1).expand(1, -1, *small)
    return F.conv2d(tiny, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
