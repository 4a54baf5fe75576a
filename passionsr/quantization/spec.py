"""Number formats as values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

MIN_BITS, MAX_BITS = 2, 16


class Form(StrEnum):
    """How bounds (lower, upper) become a grid of 2^b points.

    REAL_OFFSET: x_hat = scale * q + lower. PassionSR Eq. 3; 0 need not be on the grid. Ties away
        from 0.
    INT_ZP: x_hat = scale * (q + round(lower / scale)). PassionSR's code with a fresh scale. Ties
        away.
    AFFINE: as INT_ZP with ties to even: the standard scale / zero_point form of the baselines.
    LSQ: the grid of AFFINE; what is clipped is decided by x against the bounds, not by its code
        (Esser et al., ICLR 2020, Eq. 3).
    REAL_ZP: as AFFINE with a zero point that is never rounded, so codes are no integers. Only
        EfficientDM's act_zp="real" uses it. It is a form here, and not a variant beside the method,
        because its bound gradients must come from the same CPU kernels as everyone's, to the bit.
    """

    REAL_OFFSET = "real_offset"
    INT_ZP = "int_zp"
    AFFINE = "affine"
    LSQ = "lsq"
    REAL_ZP = "real_zp"


@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """Bits and grid of one quantizer.

    per_channel: one range per output channel (dim 0), for weights; else per tensor.
    split: 0 for one range; else two ranges along the input-channel axis, the first for this many
        channels (half of them in PassionSR; those of the hidden state in Q-Diffusion's split
        shortcuts).
    channel_axis: the input-channel axis that `split` refers to.
    """

    bits: int
    form: Form = Form.AFFINE
    per_channel: bool = False
    split: int = 0
    channel_axis: int = 1

    def __post_init__(self) -> None:
        check_bits(self.bits)

    @property
    def groups(self) -> int:
        """Ranges along the channel axis."""
        return 2 if self.split else 1

    @property
    def levels(self) -> int:
        """N = 2^bits - 1: codes run from 0 to n."""
        return 2**self.bits - 1


def check_bits(bits: int) -> int:
    """Return `bits`, or raise ValueError if the width is not supported."""
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bit width {bits} is not supported: give {MIN_BITS} to {MAX_BITS} bits")
    return bits


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Weight and activation bits of a run, such as W6A6."""

    weight_bits: int
    act_bits: int

    def __post_init__(self) -> None:
        check_bits(self.weight_bits)
        check_bits(self.act_bits)

    @classmethod
    def parse(cls, text: str) -> Scheme:
        """Parse "W6A6".

        >>> Scheme.parse("W6A8")
        Scheme(weight_bits=6, act_bits=8)
        """
        match = re.fullmatch(r"W(\d+)A(\d+)", text)
        if not match:
            raise ValueError(f"scheme {text!r} is not of the form W<bits>A<bits>, such as W6A6")
        return cls(weight_bits=int(match[1]), act_bits=int(match[2]))

    def __str__(self) -> str:
        return f"W{self.weight_bits}A{self.act_bits}"
