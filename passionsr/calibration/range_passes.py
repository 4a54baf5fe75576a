"""Passes over calibration inputs that set ranges and LET's scales."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from passionsr.calibration.checkpoints import checkpointed
from passionsr.calibration.sub_models import (
    SubModel,
    _all,
    _quantize_weights,
    parts_of,
    sub_quantizers,
)
from passionsr.quantization.equivalent_transform import ScaleInit
from passionsr.quantization.layer import QuantizedLayer
from passionsr.quantization.modules import as_float
from passionsr.quantization.observers import RangeMode
from passionsr.quantization.quantizer import Finder, Quantizer, observing


def _checkpointed_call(function: Callable[..., None]) -> Callable[..., None]:
    """A function of a sub-model that sets its bounds becomes a stage that a restart does not repeat."""

    @functools.wraps(function)
    def stage(sub: SubModel, *args: Any, **kwargs: Any) -> None:
        bounds = [bound for q in sub_quantizers(sub) for bound in (q.lower, q.upper)]
        checkpointed(f"{sub.name}.ranges", bounds, lambda: function(sub, *args, **kwargs))

    return stage


@torch.no_grad()
def set_ranges(
    sub: SubModel,
    inputs: Sequence[Tensor],
    mode: RangeMode = "ema",
    include_zero: bool = False,
    momentum: float = 0.95,
    find: Finder | None = None,
    find_weight: Finder = Quantizer.observe,
    weights: bool = True,
    quantized_weights: bool = False,
) -> None:
    """Weight bounds from the weights, activation bounds from one pass over `inputs`.

    find, find_weight: other statistics than minimum and maximum, see `observing`. weights: False leaves
    the weight bounds as they are. quantized_weights: the
    pass runs with quantized weights instead of float ones (activations are float either way).
    """
    for part in parts_of(sub):
        if weights and isinstance(part, QuantizedLayer):
            part.init_weights(include_zero, find_weight)
    with _all([observing(m, mode, include_zero, momentum, find) for m in sub.modules]):
        if quantized_weights:
            _quantize_weights(sub)
        for x in inputs[:1] if mode == "first" else inputs:
            sub.run(x)


# Inside a fit `set_ranges`; as a step of a calibration this.
init_ranges = _checkpointed_call(set_ranges)


@torch.no_grad()
def init_let(
    sub: SubModel, inputs: Sequence[Tensor], alpha: float, mode: ScaleInit, go_on: bool = False
) -> None:
    """Set LET's scales by one float pass over `inputs` (EMA 0.9); go_on: from where they are."""
    parts = [p for p in parts_of(sub) if p.config.let]
    for part in parts:
        part.start_collecting(alpha, mode, reset=not go_on)
    try:
        with _all([as_float(m) for m in sub.modules]):
            for x in inputs:
                sub.run(x)
    finally:
        for part in parts:
            part.stop_collecting()
