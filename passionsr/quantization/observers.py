"""Ranges seen during calibration."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

RangeMode = Literal["ema", "global", "first"]


class RangeObserver:
    """(lower, upper) of batches: EMA m <- 0.95 m + 0.05 m_batch, the running min / max, or the first batch's.

    The first batch sets the value (methods.md 3.2; EMA as in PassionSR's quantizers).
    """

    def __init__(self, mode: RangeMode = "ema", momentum: float = 0.95):
        if mode not in get_args(RangeMode):
            raise ValueError(f"range mode {mode!r} is unknown: give one of {get_args(RangeMode)}")
        self.mode, self.momentum = mode, momentum
        self.lower: Tensor | None = None
        self.upper: Tensor | None = None

    def update(self, lower: Tensor, upper: Tensor) -> None:
        """Take in one batch's minima and maxima, any equal shapes."""
        if self.lower is None or self.upper is None:
            self.lower, self.upper = lower.clone(), upper.clone()
        elif self.mode == "ema":
            self.lower = self.momentum * self.lower + (1 - self.momentum) * lower
            self.upper = self.momentum * self.upper + (1 - self.momentum) * upper
        elif self.mode == "global":
            self.lower = self.lower.minimum(lower)
            self.upper = self.upper.maximum(upper)
