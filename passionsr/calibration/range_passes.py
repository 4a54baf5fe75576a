"""Passes over calibration inputs that set the quantizers' ranges and LET's scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from passionsr.calibration.checkpoints import Checkpoints
from passionsr.calibration.sub_models import (
    SubModel,
    _all,
    _quantize_weights,
    named_parts,
    parts_of,
    sub_quantizers,
)
from passionsr.quantization.equivalent_transform import LearnedScale, ScaleInit
from passionsr.quantization.layer import QuantizedLayer
from passionsr.quantization.modules import as_float
from passionsr.quantization.observers import RangeMode
from passionsr.quantization.quantizer import Finder, Quantizer, observing
from passionsr.utils.finite import check_finite


@dataclass(frozen=True, kw_only=True)
class RangeRule:
    """How ranges are made from weights and calibration inputs.

    mode, momentum: how the ranges of batches are combined, see `RangeObserver`; "first" runs one
        batch only.
    include_zero: widen each range until it holds 0, for exact zero padding.
    find, find_weight: (quantizer, tensor) -> range of an activation batch, and of a weight; by
        default their minimum and maximum.
    weights: False leaves the weight ranges as they are.
    quantized_weights: run the pass with quantized weights instead of float ones (activations are
        float either way).
    """

    mode: RangeMode = "ema"
    momentum: float = 0.95
    include_zero: bool = False
    find: Finder = Quantizer.observe
    find_weight: Finder = Quantizer.observe
    weights: bool = True
    quantized_weights: bool = False


MINIMUM_AND_MAXIMUM = RangeRule()
ADVICE = "lower the learning rates, or check the weights and the calibration images"


@torch.no_grad()
def set_ranges(
    sub: SubModel, inputs: Sequence[Tensor], rule: RangeRule = MINIMUM_AND_MAXIMUM
) -> None:
    """Set weight ranges from the weights, activation ranges from one pass over `inputs`."""
    for part in parts_of(sub):
        if rule.weights and isinstance(part, QuantizedLayer):
            part.init_weights(rule.include_zero, rule.find_weight)
    observe = [
        observing(m, rule.mode, rule.include_zero, rule.momentum, rule.find) for m in sub.modules
    ]
    with _all(observe):
        if rule.quantized_weights:
            _quantize_weights(sub)
        for x in inputs[:1] if rule.mode == "first" else inputs:
            sub.run(x)


def init_ranges(
    sub: SubModel,
    inputs: Sequence[Tensor],
    checkpoints: Checkpoints,
    rule: RangeRule = MINIMUM_AND_MAXIMUM,
) -> None:
    """`set_ranges` as a part of a calibration, which a restart does not repeat.

    Raises UserError, which names quantizers, for bounds without a finite width.
    """
    changed = [
        tensor
        for quantizer in sub_quantizers(sub)
        for tensor in (quantizer.lower, quantizer.upper, *quantizer.forward_state())
    ]

    def work() -> None:
        set_ranges(sub, inputs, rule)
        # A width is finite where both bounds are, unless it overflows.
        widths = ((n, q.upper - q.lower) for n, q in named_parts(sub, Quantizer))
        check_finite(widths, f"{sub.name}.ranges", ADVICE)

    checkpoints.run(f"{sub.name}.ranges", changed, work)


@torch.no_grad()
def init_let(
    sub: SubModel,
    inputs: Sequence[Tensor],
    mode: ScaleInit = "ratio",
    continued: bool = False,
) -> None:
    """Set LET's scales by one float pass over `inputs`, as an EMA (0.9) over batches.

    mode: see `init_scale`. continued: the average goes on from the present scales instead of
        starting anew.
    Raises UserError, which names layers, for scales that are not finite.
    """
    parts = [p for p in parts_of(sub) if p.config.let]
    for part in parts:
        part.start_collecting(mode, reset=not continued)
    try:
        with _all([as_float(m) for m in sub.modules]):
            for x in inputs:
                sub.run(x)
    finally:
        for part in parts:
            part.stop_collecting()
    scales = ((n, s.scale) for n, s in named_parts(sub, LearnedScale))
    check_finite(scales, f"{sub.name}.let", ADVICE)
