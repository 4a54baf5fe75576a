"""PTQ4DM (Shang et al., CVPR 2023): ranges by search, nothing is trained.

Weights per channel, activations per tensor, both symmetric as in the released script (one-sided
where the tensor is); the range minimises mean |x_hat - x|^2.4 per batch, then EMA 0.9 over batches.
Weights first, then activations with the weights already quantized.

One step: the paper's contribution, drawing calibration timesteps from a normal distribution,
degenerates to the single t = 999, and calibration inputs are the encoder's latents.

VAE [ours]: the same treatment.

Deviations: activation quantizers sit on layer inputs, so that products are integer-executable;
act_quant_site="output" is the released convention. Attention products are float as in the released
code unless quant_attn_matmul; exceptions="native" raises the activations of those layers, too (the
text: their weights). Whether a tensor is one-sided is decided batch by batch (released: from the
first). Batches are the calibration's, not 256 samples; a long tensor is searched on its histogram.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from passionsr.calibration.batches import CalibrationBatch
from passionsr.calibration.checkpoints import Checkpoints
from passionsr.calibration.fit import FitLog
from passionsr.calibration.range_passes import RangeRule, init_ranges
from passionsr.calibration.sub_models import in_sequence
from passionsr.methods.base import Count, Exceptions, check_options, quantized_copy
from passionsr.models.one_step import OneStepSR
from passionsr.quantization.attention import AttentionConfig
from passionsr.quantization.layer import LayerConfig
from passionsr.quantization.quantizer import Quantizer
from passionsr.quantization.range_search import symmetric_search, two_sided_search
from passionsr.quantization.spec import Scheme
from passionsr.quantization.swap import SwapRow

MOMENTUM = 0.9  # of the EMA over the ranges found in calibration batches, as released


@dataclass(frozen=True, kw_only=True)
class PTQ4DM:
    """Options.

    symmetric: the 1-D search of the released script; False is the 2-D search of the paper's text.
    candidates: thresholds (2-D: widths) that a search tries, 100 as released.
    act_quant_site: which side of a layer its activation quantizer sits on; "output" is released.
    quant_attn_matmul: quantize the attention products, too. exceptions: see `Exceptions`.
    """

    symmetric: bool = True
    candidates: Count = 100
    act_quant_site: Literal["input", "output"] = "input"
    quant_attn_matmul: bool = False
    exceptions: Exceptions = "passionsr"

    def __post_init__(self) -> None:
        check_options(self)

    def prepare(
        self, model: OneStepSR, scheme: Scheme, scope: str
    ) -> tuple[OneStepSR, list[SwapRow]]:
        """A copy with every layer swapped; where outputs are quantized, the last stays float."""
        ends_part = partial(model.family.in_set, "outputs")

        def layer(name: str, _: nn.Module, weight_bits: int, act_bits: int) -> LayerConfig:
            return LayerConfig(
                weight_bits=weight_bits,
                act_bits=act_bits,
                act_site=self.act_quant_site,
                quantize_act=self.act_quant_site == "input" or not ends_part(name),
            )

        attention = (
            (lambda *_: AttentionConfig(act_bits=scheme.act_bits))
            if self.quant_attn_matmul
            else None
        )
        eight_bit = "passionsr" if self.exceptions == "passionsr" else "ptq4dm"
        return quantized_copy(model, scheme, scope, layer, attention, eight_bit)

    def calibrate(
        self,
        model: OneStepSR,
        batches: Sequence[CalibrationBatch],
        scope: str,
        checkpoints: Checkpoints,
    ) -> FitLog:
        """One search per weight; one per activation and batch."""
        search = symmetric_search if self.symmetric else two_sided_search
        find = partial(Quantizer.search, search=partial(search, candidates=self.candidates))
        rule = RangeRule(momentum=MOMENTUM, find=find, find_weight=find, quantized_weights=True)
        for sub, inputs, _ in in_sequence(model, batches, scope):
            init_ranges(sub, inputs, checkpoints, rule)
        return FitLog()
