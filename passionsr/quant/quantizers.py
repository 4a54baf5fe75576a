"""Quantizer: the module that holds one tensor's bounds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import Enum

import torch
from torch import Tensor, nn

from passionsr.quant.observers import RangeMode, RangeObserver
from passionsr.quant.primitives import dequantize, fake_quantize, quantize
from passionsr.quant.spec import QuantSpec


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
    """

    def __init__(self, spec: QuantSpec, channels: tuple[int, ...] = ()):
        super().__init__()
        self.spec = spec
        if spec.groups > 1:
            size = channels[-1]
            if size < spec.groups:
                raise ValueError(f"{size} channels cannot be split in {spec.groups} groups")
            # First half, second half; an odd channel goes to the second half as in the official code.
            index = (torch.arange(size) // max(1, size // spec.groups)).clamp_max(spec.groups - 1)
            self.register_buffer("group_of", index, persistent=False)
        shape = (channels[0], spec.groups) if spec.per_channel else (spec.groups,)
        self.lower = nn.Parameter(torch.full(shape, -1.0), requires_grad=False)
        self.upper = nn.Parameter(torch.full(shape, 1.0), requires_grad=False)
        self.phase = Phase.QUANTIZED
        self.observer: RangeObserver | None = None

    def _expand(self, bound: Tensor, ndim: int) -> Tensor:
        """Bounds -> a tensor that broadcasts against an input of `ndim` dimensions."""
        if self.spec.groups > 1:
            bound = bound.index_select(-1, self.group_of)
        shape = [1] * ndim
        shape[self.spec.channel_axis] = bound.shape[-1]
        if self.spec.per_channel:
            shape[0] = bound.shape[0]
        return bound.reshape(shape)

    def _bounds(self, ndim: int) -> tuple[Tensor, Tensor]:
        if self.spec.groups == 1 and not self.spec.per_channel:
            return self.lower.reshape(()), self.upper.reshape(())
        return self._expand(self.lower, ndim), self._expand(self.upper, ndim)

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
        masks = [self.group_of == g for g in range(self.spec.groups)]
        return (
            torch.stack([low[..., m].amin(-1) for m in masks], -1),
            torch.stack([high[..., m].amax(-1) for m in masks], -1),
        )

    @torch.no_grad()
    def set_bounds(self, lower: Tensor, upper: Tensor, include_zero: bool = False) -> None:
        """Overwrite the bounds; `include_zero` widens them so that 0.0 is inside (methods.md 3.2)."""
        self.lower.copy_(lower.clamp_max(0) if include_zero else lower)
        self.upper.copy_(upper.clamp_min(0) if include_zero else upper)

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of `x`: uint8 up to 8 bits, int32 above."""
        codes = quantize(x, *self._bounds(x.ndim), self.spec.levels, self.spec.form)
        return codes.to(torch.uint8 if self.spec.bits <= 8 else torch.int32)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Values of `codes`, bit-equal to what `forward` returns for the tensor they came from."""
        return dequantize(
            codes.to(self.lower.dtype), *self._bounds(codes.ndim), self.spec.levels, self.spec.form
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`."""
        if self.phase is Phase.QUANTIZED:
            return fake_quantize(x, *self._bounds(x.ndim), self.spec.levels, self.spec.form)
        if self.phase is Phase.OBSERVING and self.observer is not None:
            self.observer.update(*self.observe(x))
        return x


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
    module: nn.Module, mode: RangeMode = "ema", include_zero: bool = False
) -> Iterator[None]:
    """Record ranges of what passes through; on exit they become the bounds.

    Quantizers that saw nothing keep their bounds (weights are set by `QuantizedLayer.init_weights`).
    """
    found = quantizers(module)
    for quantizer in found:
        quantizer.observer = RangeObserver(mode)
    try:
        with set_phase(module, Phase.OBSERVING):
            yield
        for quantizer in found:
            seen = quantizer.observer
            if seen is not None and seen.lower is not None and seen.upper is not None:
                quantizer.set_bounds(seen.lower, seen.upper, include_zero)
    finally:
        for quantizer in found:
            quantizer.observer = None
