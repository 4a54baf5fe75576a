"""Ranges of calibration batches, combined."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

RangeMode = Literal["ema", "first"]


class RangeObserver:
    """Combines the ranges (lower, upper) of calibration batches into one.

    mode: "ema" is m <- momentum m + (1 - momentum) m_batch, where the first batch sets m (0.95 in
    PassionSR's code, 0.9 in PTQ4DM's). "first" keeps the first batch's. Raises ValueError for
    another mode.
    """

    def __init__(self, mode: RangeMode = "ema", momentum: float = 0.95):
        if mode not in get_args(RangeMode):
            raise ValueError(f"range mode {mode!r} is unknown: give one of {get_args(RangeMode)}")
        self.mode, self.momentum = mode, momentum
        self.lower: Tensor | None = None
        self.upper: Tensor | None = None

    def update(self, lower: Tensor, upper: Tensor) -> None:
        """Take in one batch's lower and upper bounds, of any equal shapes."""
        if self.lower is None or self.upper is None:
            self.lower, self.upper = lower.clone(), upper.clone()
        elif self.mode == "ema":
            self.lower = self.momentum * self.lower + (1 - self.momentum) * lower
            self.upper = self.momentum * self.upper + (1 - self.momentum) * upper
