"""The parts that a quantized layer or attention is built from, as a seam for variants.

A variant of a method (another quantizer, another transformation) subclasses `Parts`, beside the
method that uses it. A configuration names the class, so that scheme.json says which variant an
artifact needs.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from passionsr.quantization.equivalent_transform import ChannelTransform
from passionsr.quantization.quantizer import Quantizer
from passionsr.quantization.spec import QuantSpec
from passionsr.utils.files import UserError

PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class Parts:
    """The standard parts. A subclass is a frozen dataclass, whose fields are JSON values."""

    def quantizer(self, spec: QuantSpec, channels: tuple[int, ...] = ()) -> Quantizer:
        """The quantizer of a weight, a bias or an operand of attention; see `Quantizer`."""
        return Quantizer(spec, channels)

    def input_quantizer(self, spec: QuantSpec, channels: int, is_conv: bool) -> Quantizer:
        """The quantizer of a layer's activations."""
        return self.quantizer(spec, (channels,))

    def transform(self, channels: int, is_conv: bool) -> ChannelTransform:
        """LET of a layer with `channels` input channels."""
        return ChannelTransform(channels, is_conv)

    def split_bias(self, bias: Tensor | None, shift: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(what is quantized as the bias, what is added in float) of the bias and LET's term W o.

        Both inputs have shape (out,). Here the sum is the bias: Q(b + W o), PassionSR Eq. 5.
        """
        return (shift if bias is None else bias + shift), None


STANDARD = Parts()


def parts_to_plain(parts: Parts) -> dict[str, Any] | None:
    """JSON values that `parts_from_plain` reads; None for the standard parts."""
    if parts == STANDARD:
        return None
    kind = type(parts)
    return {"class": f"{kind.__module__}:{kind.__qualname__}", **dataclasses.asdict(parts)}


def parts_from_plain(plain: Mapping[str, Any] | None) -> Parts:
    """Rebuild what `parts_to_plain` wrote; UserError unless it names a `Parts` of this package."""
    if plain is None:
        return STANDARD
    target = str(plain.get("class"))
    module, _, name = target.partition(":")
    kind = None
    if module.startswith(f"{PACKAGE}."):  # a file must not choose what is imported from elsewhere
        try:
            kind = getattr(importlib.import_module(module), name, None)
        except ImportError:
            kind = None
    if not (isinstance(kind, type) and issubclass(kind, Parts)):
        raise UserError(f"parts {target!r} of a quantized layer are unknown here: calibrate again")
    return kind(**{k: v for k, v in plain.items() if k != "class"})
