"""MinMax ("MaxMin" in PassionSR's Table 2, its floor): static ranges, nothing is trained.

Weights per output channel, activations per tensor, asymmetric, zero always inside the range (needed
for exact zero padding), ties to even. Activation ranges are an EMA over calibration batches.
Attention q, k, P, v of the UNet are quantized; biases stay float; 8-bit exceptions as PassionSR's.

One step: a single t, so one static range per tensor is all there is.

VAE: the same rules, its attention products stay float.

Deviation: the code behind the paper's table is unreleased; ours is calibrated sub-model by
sub-model (docs/methods.md#sub-models). It has no options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from passionsr.calibration.batches import CalibrationBatch
from passionsr.calibration.checkpoints import Checkpoints
from passionsr.calibration.fit import FitLog
from passionsr.calibration.range_passes import RangeRule, init_ranges
from passionsr.calibration.sub_models import in_sequence
from passionsr.methods.base import quantized_copy
from passionsr.models.one_step import OneStepSR
from passionsr.quantization.attention import AttentionConfig
from passionsr.quantization.layer import LayerConfig
from passionsr.quantization.spec import Scheme
from passionsr.quantization.swap import SwapRow


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """MinMax; activation ranges are an EMA (0.95) over calibration batches."""

    def prepare(
        self, model: OneStepSR, scheme: Scheme, scope: str
    ) -> tuple[OneStepSR, list[SwapRow]]:
        """A copy with every Conv2d / Linear of the scope and the UNet's attentions swapped."""
        return quantized_copy(
            model,
            scheme,
            scope,
            lambda _, __, w, a: LayerConfig(weight_bits=w, act_bits=a),
            lambda *_: AttentionConfig(act_bits=scheme.act_bits),
        )

    def calibrate(
        self,
        model: OneStepSR,
        batches: Sequence[CalibrationBatch],
        scope: str,
        checkpoints: Checkpoints,
    ) -> FitLog:
        """One pass per sub-model: encoder, UNet, decoder, each fed by its quantized predecessor."""
        for sub, inputs, _ in in_sequence(model, batches, scope):
            init_ranges(sub, inputs, checkpoints, RangeRule(include_zero=True))
        return FitLog()
