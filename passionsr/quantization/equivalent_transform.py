"""LET, the learnable equivalent transformation of PassionSR (CVPR 2025).

The formulas are in docs/methods.md#equivalent-transformation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ScaleInit = Literal["ratio", "smoothquant"]
ALPHA = 0.3  # of the initial scale, as in PassionSR's configurations


def init_scale(
    amax_x: Tensor, amax_w: Tensor, mode: ScaleInit = "ratio", alpha: float = ALPHA
) -> Tensor:
    """Initial scale of each channel from the maxima of absolute values, which are floored at 1e-5.

    mode: "ratio" is (amax_x / amax_w)^alpha, PassionSR's code. "smoothquant" is amax_x^alpha /
    amax_w^(1 - alpha) (Xiao et al., ICML 2023, Eq. 4), which PassionSR's paper names; they agree at
    alpha = 0.5.
    """
    amax_x, amax_w = amax_x.clamp_min(1e-5), amax_w.clamp_min(1e-5)
    if mode == "smoothquant":
        return amax_x**alpha / amax_w ** (1 - alpha)
    return (amax_x / amax_w) ** alpha


class LearnedScale(nn.Module):
    """A positive scale s, learned as log s so that it stays positive, set by EMA over batches."""

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
        """Move s by one batch: s <- 0.9 s + 0.1 new; the first batch sets s. new: shape (size,)."""
        value = 0.9 * self.scale + 0.1 * new if self._started else new
        self.log_scale.copy_(value.log())
        self._started = True

    def reset(self) -> None:
        """Let the next `update` set s."""
        self._started = False


class _Normalise(torch.autograd.Function):
    """(x - o) exp(-log s), with o and log s broadcast per channel.

    The backward pass needs its output, and not x, which is therefore not kept.
    """

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
    """x -> (x - o) / s and W -> W s per input channel; adding f(o, W) makes it exact.

    Args: channels: input channels. is_conv: channel axis 1 with spatial dims, else the last axis.
    """

    def __init__(self, channels: int, is_conv: bool):
        super().__init__(channels)
        self.offset = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.is_conv = is_conv
        self.collecting = False

    def _shape(self, vector: Tensor, ndim: int) -> Tensor:
        return vector.reshape(1, -1, *[1] * (ndim - 2)) if self.is_conv else vector

    @torch.no_grad()
    def collect(self, x: Tensor, weight: Tensor, mode: ScaleInit) -> None:
        """Update s from one batch of inputs and the weight; mode: see `init_scale`."""
        amax_w = weight.abs().amax([d for d in range(weight.ndim) if d != 1])
        self.update(init_scale(self.input_maxima(x), amax_w, mode))

    def input_maxima(self, x: Tensor) -> Tensor:
        """Each channel's maximum of |x|, over all other dims of any rank of x; (channels,)."""
        axis = 1 if self.is_conv else x.ndim - 1
        return x.abs().amax([d for d in range(x.ndim) if d != axis])

    def subtracted(self) -> Tensor:
        """The offset that `input` subtracts, shape (channels,): o."""
        return self.offset

    def input(self, x: Tensor) -> Tensor:
        """(x - o) / s, same shape."""
        offset = self._shape(self.subtracted(), x.ndim)
        return _Normalise.apply(x, offset, self._shape(self.log_scale, x.ndim))

    def weight(self, weight: Tensor) -> Tensor:
        """W s along the input channels, same shape."""
        return weight * self.scale.reshape(1, -1, *[1] * (weight.ndim - 2))


@dataclass(frozen=True)
class ConvGeometry:
    """The arguments of F.conv2d that a Conv2d holds besides its weights, (height, width) each."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    @classmethod
    def of(cls, conv: nn.Conv2d) -> ConvGeometry:
        """Of a convolution without groups, whose padding is given in numbers."""
        assert not isinstance(conv.padding, str)
        return cls(conv.kernel_size, conv.stride, conv.padding, conv.dilation)


def border_sizes(size: int, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """For one axis: (size of a small input, rows of the output that the leading padding reaches).

    A convolution of a constant map differs from its interior value only where the kernel overlaps
    the padding, so the smallest map with the same residue modulo the stride, and one interior row
    between its borders, shows every distinct row.
    """
    lead = -(-padding // stride)
    small = 2 * lead * stride + kernel - 2 * padding
    small += (size - small) % stride
    return min(size, small), lead


def expand_borders(small: Tensor, height: int, width: int, lead: tuple[int, int]) -> Tensor:
    """Grow (1, C, h, w) to (1, C, height, width) by repeating the interior row and column.

    lead: rows and columns before the interior one, see `border_sizes`. Raises ValueError if the
    response is larger than the map that is asked for.
    """
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
    offset: Tensor, weight: Tensor, conv: ConvGeometry, size: tuple[int, int]
) -> Tensor:
    """conv(o broadcast to `size`, W), on the smallest map that has all its distinct values.

    Returns: (1, Cout, h, w); `expand_borders` makes the whole map of it.
    """
    small = [
        border_sizes(size[i], conv.kernel_size[i], conv.stride[i], conv.padding[i])[0]
        for i in range(2)
    ]
    tiny = offset.reshape(1, -1, 1, 1).expand(1, -1, *small)
    return F.conv2d(tiny, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
