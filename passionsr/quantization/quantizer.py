"""Quantizer: the module that holds one tensor's bounds and fake-quantizes it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from enum import Enum

import torch
from torch import Tensor, nn

from passionsr.quantization.functional import (
    dequantize,
    fake_quantize,
    quantize,
    scale_of,
    zero_of,
)
from passionsr.quantization.observers import RangeMode, RangeObserver
from passionsr.quantization.range_search import RangeSearch
from passionsr.quantization.spec import Form, QuantSpec

MIN_SCALE = 1e-8
# Values after which the faster kernels make up for importing numba: 1 ns each, half a second.
WORTH_NUMBA = 1 << 29
# (tensor, factors of its last axis or None) -> the fake-quantized product.
Quantize = Callable[[Tensor, Tensor | None], Tensor]


def can_fuse(x: Tensor, bound: Tensor) -> bool:
    """Whether the CPU kernels serve this device and these types."""
    known = x.dtype is bound.dtype and x.dtype in (torch.float32, torch.float64)
    return known and x.device.type == "cpu" and bound.device.type == "cpu"


class _Worth:
    """Whether the CPU kernels are worth importing numba by now.

    Outside training the chain of torch operations gives the same values to the bit, so that a
    process that quantizes little, such as a command for one small image, does without numba.
    """

    def __init__(self, values: int):
        self.left = values

    def __call__(self, x: Tensor) -> bool:
        """Count the values of x, which are about to be quantized."""
        self.left = 0 if torch.is_grad_enabled() else max(0, self.left - x.numel())
        return self.left == 0


worth_kernels = _Worth(WORTH_NUMBA)


def times(x: Tensor, factors: Tensor | None) -> Tensor:
    """x, multiplied by `factors` along its last axis where there are any."""
    return x if factors is None else x * factors


class Phase(Enum):
    """FLOAT and OBSERVING pass the tensor through (OBSERVING also records its range)."""

    FLOAT = "float"
    OBSERVING = "observing"
    QUANTIZED = "quantized"


class Quantizer(nn.Module):
    """Fake-quantizes one tensor with bounds `lower`, `upper`.

    Args:
        spec: bits, form and granularity.
        channels: (out, in) for a per-channel weight, (in,) for a grouped activation, () otherwise.

    The parameters have shape (out, groups) or (groups,): a weight [Cout, Cin, ...] or an activation
    with channels on spec.channel_axis. Both are frozen until a method asks for their gradient.

    A subclass whose forward passes change what the next one computes overrides `is_stateless`,
    `forward_state` and `bound_function`.
    """

    def __init__(self, spec: QuantSpec, channels: tuple[int, ...] = ()):
        super().__init__()
        self.spec = spec
        if spec.split > 0 and not spec.split < channels[-1]:
            raise ValueError(
                f"{channels[-1]} channels cannot be split after the first {spec.split}"
            )
        self._index: Tensor | None = None
        shape = (channels[0], spec.groups) if spec.per_channel else (spec.groups,)
        self.lower = nn.Parameter(torch.full(shape, -1.0), requires_grad=False)
        self.upper = nn.Parameter(torch.full(shape, 1.0), requires_grad=False)
        self.scale: nn.Parameter | None = None
        self.zero_point: nn.Parameter | None = None
        self.phase = Phase.QUANTIZED
        self.observer: RangeObserver | None = None
        self.find: Finder | None = None

    def learn_scale(self) -> tuple[nn.Parameter, nn.Parameter]:
        """Make (scale, zero_point) the parameters instead of the bounds.

        `fold_scale_into_bounds` ends that. Standard sign: lower = -zero_point * scale, upper = (n -
        zero_point) * scale, so the gradients of the bounds become those of LSQ, Q-Diffusion and
        EfficientDM. A zero point that is learned is rounded with a straight-through gradient,
        except in the form REAL_ZP.

        Returns: both in the shape of the bounds.
        """
        scale = scale_of(self.lower, self.upper, self.spec.levels).detach()
        zero_point = -zero_of(self.lower, scale, self.spec.form).detach()
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.zero_point = nn.Parameter(zero_point, requires_grad=False)
        return self.scale, self.zero_point

    @torch.no_grad()
    def fold_scale_into_bounds(self) -> None:
        """End of training: what `learn_scale` learned becomes the bounds."""
        lower, upper = self.bounds()
        self.lower.copy_(lower)
        self.upper.copy_(upper)
        self.scale = self.zero_point = None

    def bounds(self) -> tuple[Tensor, Tensor]:
        """(lower, upper) in the shape of the parameters, with gradient to what is learned."""
        if self.scale is None or self.zero_point is None:
            return self.lower, self.upper
        zero_point: Tensor = self.zero_point
        if self.spec.form is not Form.REAL_ZP:
            zero_point = zero_point + (zero_point.round() - zero_point).detach()
        scale = self.scale.clamp_min(MIN_SCALE)
        return -zero_point * scale, (self.spec.levels - zero_point) * scale

    def group_of(self, size: int) -> Tensor:
        """The group, 0 or 1, of each of `size` channels."""
        index = self._index
        if index is None or index.shape[0] != size or index.device != self.lower.device:
            index = (torch.arange(size) >= self._first(size)).long().to(self.lower.device)
            self._index = index
        return index

    def _first(self, size: int) -> int:
        """How many of `size` channels are in the first of two groups."""
        return min(self.spec.split, size)

    def _broadcast(self, bound: Tensor, like: Tensor) -> Tensor:
        """Bounds -> a tensor that broadcasts against `like`."""
        if bound.numel() == 1:
            return bound.reshape(())
        axis = self.spec.channel_axis
        if self.spec.groups > 1:
            bound = self._per_channel(bound, like.shape[axis])
        shape = [1] * like.ndim
        shape[axis] = bound.shape[-1]
        if self.spec.per_channel:
            shape[0] = bound.shape[0]
        return bound.reshape(shape)

    def _per_channel(self, bound: Tensor, size: int) -> Tensor:
        """Bounds of two groups (..., 2) -> those of each channel (..., size)."""
        if bound.device.type == "cpu":
            return bound.index_select(-1, self.group_of(size))
        # The gradient of index_select is a sum by atomics on a GPU, in no fixed order.
        first = self._first(size)
        sizes = first, size - first
        parts = [b.expand(*b.shape[:-1], n) for b, n in zip(bound.split(1, -1), sizes, strict=True)]
        return torch.cat(parts, -1)

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = self.bounds()
        return self._broadcast(lower, like), self._broadcast(upper, like)

    def grid(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(scale, zero_point) in the standard sign, broadcastable against `like`."""
        lower, upper = self._bounds(like)
        scale = scale_of(lower, upper, self.spec.levels)
        return scale, -zero_of(lower, scale, self.spec.form)

    def rows(self, x: Tensor) -> list[Tensor]:
        """The values of each range, one tensor per group of channels.

        Each is (1, elements), or (out, elements) where ranges are per channel.
        """
        parts = [x]
        if self.spec.groups > 1:
            axis = self.spec.channel_axis % x.ndim
            parts = [
                x.index_select(axis, (self.group_of(x.shape[axis]) == g).nonzero().flatten())
                for g in range(self.spec.groups)
            ]
        return [p.reshape(p.shape[0] if self.spec.per_channel else 1, -1) for p in parts]

    def search(self, x: Tensor, search: RangeSearch) -> tuple[Tensor, Tensor]:
        """Bounds that `search` finds for each range of `x`, in the shape of the parameters."""
        found = [search(rows, self.spec) for rows in self.rows(x.detach())]
        lower, upper = (torch.stack(bound, -1) for bound in zip(*found, strict=True))
        return lower.reshape(self.lower.shape), upper.reshape(self.lower.shape)

    def observe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Minimum and maximum of `x` per range, in the shape of the parameters."""
        x = x.detach()
        if self.spec.groups == 1 and not self.spec.per_channel:
            low, high = torch.aminmax(x)
            return low.reshape(1), high.reshape(1)
        axis = self.spec.channel_axis % x.ndim
        kept = [0, axis] if self.spec.per_channel else [axis]
        front = x.permute(*kept, *(d for d in range(x.ndim) if d not in kept))
        flat = front.reshape(*front.shape[: len(kept)], -1)
        low, high = flat.amin(-1), flat.amax(-1)  # (..., channels)
        if self.spec.groups == 1:
            return low.amin(-1, keepdim=True), high.amax(-1, keepdim=True)
        groups = [self.group_of(x.shape[axis]) == g for g in range(self.spec.groups)]
        # One token cannot be divided: the group without values has the range of the other.
        masks = [m if m.any() else ~m for m in groups]
        return (
            torch.stack([low[..., m].amin(-1) for m in masks], -1),
            torch.stack([high[..., m].amax(-1) for m in masks], -1),
        )

    @torch.no_grad()
    def set_bounds(self, lower: Tensor, upper: Tensor, include_zero: bool = False) -> None:
        """Overwrite the bounds; `include_zero` widens them to hold 0.0, for exact zero padding."""
        self.lower.copy_(lower.clamp_max(0) if include_zero else lower)
        self.upper.copy_(upper.clamp_min(0) if include_zero else upper)

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of `x`: uint8 up to 8 bits, int32 above."""
        codes = quantize(x, *self._bounds(x), self.spec.levels, self.spec.form)
        return codes.to(torch.uint8 if self.spec.bits <= 8 else torch.int32)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Values of `codes`, bit-equal to what `forward` returns for the tensor they came from."""
        return dequantize(
            codes.to(self.lower.dtype), *self._bounds(codes), self.spec.levels, self.spec.form
        )

    @property
    def is_stateless(self) -> bool:
        """Whether equal tensors under equal bounds always give equal results, as here."""
        return True

    def forward_state(self) -> list[Tensor]:
        """The tensors besides the bounds that forward passes change: none here."""
        return []

    @property
    def is_pure(self) -> bool:
        """Whether quantizing a tensor in parts is quantizing it: no statistics, no state."""
        return self.phase is not Phase.OBSERVING and self.is_stateless

    def _fake_quantize(
        self, x: Tensor, bounds: tuple[Tensor, Tensor], factors: Tensor | None = None
    ) -> Tensor:
        """Fake quantization; bounds: in the shape of the parameters, factors: see `forward`."""
        levels, form = self.spec.levels, self.spec.form
        fits = can_fuse(x, bounds[0])
        if not (fits and worth_kernels(x)):
            # The kernels make contiguous results; of others, a product could be rounded otherwise.
            x = x.contiguous() if fits else x
            lower, upper = (self._broadcast(bound, x) for bound in bounds)
            return fake_quantize(times(x, factors), lower, upper, levels, form)
        from passionsr.quantization import cpu_functions  # numba: only where it is used

        if factors is not None and bounds[0].numel() == 1:
            return cpu_functions.fake_quantize_scaled(x, factors, *bounds, levels, form)
        x = times(x, factors)
        shape, cut = self._rows_and_cut(x.shape)
        return cpu_functions.fake_quantize_rows(x, *bounds, levels, form, shape, cut)

    def _rows_and_cut(self, shape: torch.Size) -> tuple[tuple[int, int, int], int]:
        """A tensor's shape as (outer, rows, columns), and the column where a row's two ranges meet.

        There is a row per range, or per pair of ranges.
        """
        rows = shape[0] if self.spec.per_channel else 1
        if self.spec.groups == 1:
            columns = shape.numel() // rows
            return (1, rows, columns), columns
        axis = self.spec.channel_axis % len(shape)
        inner = shape[axis + 1 :].numel()
        outer = shape[:axis].numel() // rows
        return (outer, rows, shape[axis] * inner), self._first(shape[axis]) * inner

    def bound_function(self, like: Tensor) -> Quantize:
        """Fake quantization of tensors shaped like `like` under the present bounds.

        It can be called again for the same result, as gradient checkpointing does.
        """
        bounds = self.bounds()
        return lambda x, factors: self._fake_quantize(x, bounds, factors)

    def with_current_bounds(self) -> Quantize:
        """`forward` for the parts of a tensor under one range, whose bounds are looked up once."""
        if self.phase is Phase.FLOAT:
            return times
        assert self.phase is Phase.QUANTIZED
        assert self.lower.numel() == 1
        return self.bound_function(self.lower)

    def forward(self, x: Tensor, factors: Tensor | None = None) -> Tensor:
        """Same shape as `x`; factors multiply it along the last axis before it is quantized."""
        if self.phase is Phase.QUANTIZED:
            return self.bound_function(x)(x, factors)
        x = times(x, factors)
        if self.phase is Phase.OBSERVING and self.observer is not None:
            bounds = self.observe(x) if self.find is None else self.find(self, x)
            self.observer.update(*bounds)
        return x


Finder = Callable[[Quantizer, Tensor], tuple[Tensor, Tensor]]


def quantizers(module: nn.Module) -> list[Quantizer]:
    """All quantizers below `module`, in registration order."""
    return [m for m in module.modules() if isinstance(m, Quantizer)]


@contextlib.contextmanager
def set_phase(module: nn.Module, phase: Phase) -> Iterator[None]:
    """Put every quantizer below `module` into `phase`; the former phases come back on exit."""
    found = quantizers(module)
    before = [q.phase for q in found]
    for quantizer in found:
        quantizer.phase = phase
    try:
        yield
    finally:
        for quantizer, old in zip(found, before, strict=True):
            quantizer.phase = old


@contextlib.contextmanager
def observing(
    module: nn.Module,
    mode: RangeMode = "ema",
    include_zero: bool = False,
    momentum: float = 0.95,
    find: Finder | None = None,
) -> Iterator[None]:
    """Record ranges of what passes through; on exit they become the bounds.

    find: (quantizer, tensor) -> bounds of one batch; by default its minimum and maximum. Quantizers
    that no tensor reached keep their bounds (weights are set by `QuantizedLayer.init_weights`).
    """
    found = quantizers(module)
    for quantizer in found:
        quantizer.observer = RangeObserver(mode, momentum)
        quantizer.find = find
    try:
        with set_phase(module, Phase.OBSERVING):
            yield
        for quantizer in found:
            seen = quantizer.observer
            if seen is not None and seen.lower is not None and seen.upper is not None:
                quantizer.set_bounds(seen.lower, seen.upper, include_zero)
    finally:
        for quantizer in found:
            quantizer.observer = quantizer.find = None
