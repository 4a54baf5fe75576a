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

    def reach(self, axis: int) -> int:
        """Input rows that the kernel spans, from its first to its last."""
        return self.dilation[axis] * (self.kernel_size[axis] - 1) + 1

    def lead(self, axis: int) -> int:
        """Output rows that the padding before a map reaches."""
        return -(-self.padding[axis] // self.stride[axis])

    def output_size(self, axis: int, size: int) -> int:
        """Output rows of a map."""
        return (size + 2 * self.padding[axis] - self.reach(axis)) // self.stride[axis] + 1

    def small_size(self, axis: int, size: int) -> int:
        """Input rows of a small map that stands for a map of `size`.

        A convolution of a constant map differs from its interior value only where the kernel
        overlaps the padding, so the smallest map with the same residue modulo the stride, and one
        interior row between its borders, shows every distinct row.
        """
        stride, padding = self.stride[axis], self.padding[axis]
        small = 2 * self.lead(axis) * stride + self.reach(axis) - 2 * padding
        small += (size - small) % stride
        return min(size, small)

    def cut_off(self, axis: int, size: int) -> list[tuple[int, int]]:
        """For each output row: how many rows of the kernel lie before the map, and behind it."""
        end = size + self.padding[axis] - self.reach(axis) + 1
        found = []
        for start in range(-self.padding[axis], end, self.stride[axis]):
            rows = range(start, start + self.reach(axis), self.dilation[axis])
            found.append((sum(r < 0 for r in rows), sum(r >= size for r in rows)))
        return found


def expand_borders(small: Tensor, height: int, width: int, lead: tuple[int, int]) -> Tensor:
    """Grow (1, C, h, w) to (1, C, height, width) by repeating the interior row and column.

    lead: rows and columns before the interior one. Raises ValueError if the response is larger than
    the map that is asked for.
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

    Returns: (1, Cout, h, w); `whole_border` makes the whole map of it.
    """
    small = [conv.small_size(i, size[i]) for i in range(2)]
    tiny = offset.reshape(1, -1, 1, 1).expand(1, -1, *small)
    return F.conv2d(tiny, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def whole_border(
    small: Tensor, conv: ConvGeometry, made_for: tuple[int, int], size: tuple[int, int]
) -> Tensor | None:
    """The border term of a map of any size, from the small one that was made for another map.

    Args:
        small: `shift_response` minus its interior value, (1, Cout, h, w).
        conv: the convolution.
        made_for: (height, width) of the input map that `small` was made for.
        size: (height, width) of the input map that is asked for.
    Returns: (1, Cout, H, W); None where `small` has not every distinct row and column, which
        happens only where the sizes differ modulo the stride.
    """
    height, width = (conv.output_size(i, size[i]) for i in range(2))
    same_residue = all((size[i] - made_for[i]) % conv.stride[i] == 0 for i in range(2))
    # With an interior, or with both borders side by side.
    fits = height + 1 >= small.shape[2] and width + 1 >= small.shape[3]
    if made_for == size or (same_residue and fits):
        return expand_borders(small, height, width, (conv.lead(0), conv.lead(1)))
    return _combine_borders(small, conv, made_for, size)


def _combine_borders(
    small: Tensor, conv: ConvGeometry, made_for: tuple[int, int], size: tuple[int, int]
) -> Tensor | None:
    """`whole_border` of a map on which a kernel can see the padding on both sides at once.

    A row of the response is a sum over the kernel's rows inside the map. It is the row that lacks
    only what lies before the map, plus the one that lacks only what lies behind it, minus the
    interior one; so with columns.
    """
    for axis, dim in ((0, 2), (1, 3)):
        there = conv.cut_off(axis, conv.small_size(axis, made_for[axis]))
        before: list[int] = []
        behind: list[int] = []
        for a, b in conv.cut_off(axis, size[axis]):
            if not {(a, 0), (0, b), (0, 0)} <= set(there):
                return None
            before.append(there.index((a, 0)))
            behind.append(there.index((0, b)))
        parts = [
            small.index_select(dim, torch.tensor(rows, device=small.device))
            for rows in (before, behind)
        ]
        small = parts[0] + parts[1] - small.narrow(dim, there.index((0, 0)), 1)
    return small
