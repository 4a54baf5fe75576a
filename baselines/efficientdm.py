"""EfficientDM (He et al., ICLR 2024): QALoRA with scale-aware learning rates, and learned steps.

W_hat = Q(W + B A): a rank-r update inside the weight quantizer, merged before export, so the
integers of the artifact are those of training. Trained together: A, B; weight scales (zero points
fixed); activation scales and zero points. AdamW, linear decay to 0, loss the sum of squared errors
against the float teacher.

One step: the per-timestep activation quantizers (TALSQ) degenerate to one; the data-free start from
noise would be off-distribution, so the calibration latents are used. UNet target: x0; VAE [ours]:
latent and image.

Deviations: float base weight (paper Eq. 6; qalora_base="int" starts from the dequantized integers,
with the one scale shared); zero points rounded straight-through (act_zp="real" is the released
form, not integer-executable); every range holds zero, for exact zero padding; a long tensor is
searched on its histogram; a fit stage that ends above its start is undone (FitConfig).
exceptions="native" leaves shortcut and downsampler convolutions float and attention products float,
and does not train the 8-bit layers; "passionsr" quantizes every layer. Attention products are
quantized with quant_attn_matmul.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from passionsr.calibration.batches import CalibrationBatch
from passionsr.calibration.checkpoints import Checkpoints
from passionsr.calibration.fit import FitConfig, FitLog, FitStage, ParamGroup, fit
from passionsr.calibration.range_passes import RangeRule, init_ranges
from passionsr.calibration.sub_models import (
    SubModel,
    first_images,
    in_sequence,
    parts_of,
    sub_quantizers,
)
from passionsr.methods.base import (
    Count,
    Exceptions,
    Steps,
    StepSize,
    check_options,
    quantized_copy,
)
from passionsr.models.one_step import OneStepSR
from passionsr.quantization.attention import AttentionConfig
from passionsr.quantization.layer import LayerConfig, QuantizedLayer
from passionsr.quantization.quantizer import Quantizer
from passionsr.quantization.range_search import shrink_search
from passionsr.quantization.spec import Form, Scheme
from passionsr.quantization.swap import SwapRow

# As released.
RANK, WEIGHT_LR, WEIGHT_DECAY = 32, 1e-6, 0.01


class QALoRA(nn.Module):
    """W -> base + B A (EfficientDM Eq. 6), as a parametrization of a layer's weight.

    A is (rank, Cin, kh, kw) or (rank, Cin), B is (Cout, rank). base: the float weight, or (codes -
    zero_point) * scale with the quantizer's own, learned scale.
    """

    def __init__(self, layer: QuantizedLayer, rank: int, integer_base: bool):
        super().__init__()
        weight = layer.weight
        fan_in = math.prod(weight.shape[1:])
        # PyTorch's default layer initialisation for A, zero for B. A is drawn on the CPU: the same
        # numbers on any device.
        drawn = torch.empty(rank, *weight.shape[1:]).uniform_(-1, 1) / fan_in**0.5
        self.a = nn.Parameter(drawn.to(weight.device))
        self.b = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        self.requires_grad_(False)
        self.steps: Tensor | None = None
        if integer_base:
            codes = layer.weight_quantizer.codes(weight).to(weight.dtype)
            zero_point = layer.weight_quantizer.zero_point
            assert zero_point is not None
            self.steps = codes - zero_point.reshape(-1, *[1] * (weight.ndim - 1))
            self._quantizer = (layer.weight_quantizer,)  # in a tuple: not a submodule of this one

    def forward(self, weight: Tensor) -> Tensor:
        """Same shape as `weight`."""
        if self.steps is not None:
            scale = self._quantizer[0].scale
            assert scale is not None  # it is learned meanwhile
            weight = self.steps * scale.reshape(-1, *[1] * (weight.ndim - 1))
        return weight + (self.b @ self.a.flatten(1)).reshape(weight.shape)


@dataclass(frozen=True, kw_only=True)
class EfficientDM:
    """Options.

    qalora_base: what the low-rank update is added to, the float weight or the one after naive
        rounding.
    act_zp: activation zero points are rounded (straight-through) or stay real, as released.
    exceptions: see `Exceptions`. quant_attn_matmul: quantize the attention products, too.
    steps: per sub-model. lora_lr: as a share of a layer's mean weight scale.
    act_lr: Adam step of activation scales and zero points; with relative_lr a share of each
        activation scale (an absolute step can exceed the whole scale of a softmax output).
    init_images: for the activation search.
    """

    qalora_base: Literal["float", "int"] = "float"
    act_zp: Literal["rounded", "real"] = "rounded"
    exceptions: Exceptions = "passionsr"
    quant_attn_matmul: bool = False
    steps: Steps = 2000
    lora_lr: StepSize = 1 / 2500
    act_lr: StepSize = 5e-4
    relative_lr: bool = False
    init_images: Count = 32

    def __post_init__(self) -> None:
        check_options(self)

    def prepare(
        self, model: OneStepSR, scheme: Scheme, scope: str
    ) -> tuple[OneStepSR, list[SwapRow]]:
        """A copy with the layers swapped; attention only with quant_attn_matmul."""
        native = self.exceptions == "native"

        def layer(name: str, _: nn.Module, weight_bits: int, act_bits: int) -> LayerConfig | None:
            if native and model.family.in_set("efficientdm_float", name):
                return None
            return LayerConfig(weight_bits=weight_bits, act_bits=act_bits, act_form=self._act_form)

        attention = (
            (lambda *_: AttentionConfig(act_bits=scheme.act_bits, form=self._act_form))
            if self.quant_attn_matmul
            else None
        )
        eight_bit = "efficientdm" if native else "passionsr"
        return quantized_copy(model, scheme, scope, layer, attention, eight_bit)

    @property
    def _act_form(self) -> Form:
        return Form.REAL_ZP if self.act_zp == "real" else Form.AFFINE

    def calibrate(
        self,
        model: OneStepSR,
        batches: Sequence[CalibrationBatch],
        scope: str,
        checkpoints: Checkpoints,
    ) -> FitLog:
        """Ranges, then one joint fit per sub-model; LoRA is merged at its end."""
        log = FitLog()
        config = FitConfig(steps=self.steps, schedule="linear", weight_decay=WEIGHT_DECAY)
        find = partial(Quantizer.search, search=shrink_search)
        rule = RangeRule(mode="first", include_zero=True, find=find)
        untrained = self._untrained(model)
        for sub, inputs, pairs in in_sequence(model, batches, scope):
            first = first_images(inputs, self.init_images)
            init_ranges(sub, [first], checkpoints, rule)
            layers = [
                p for p in parts_of(sub) if isinstance(p, QuantizedLayer) and p not in untrained
            ]
            groups = self._groups(sub, layers, untrained)
            stage = FitStage.of(sub, "qalora", log, checkpoints)
            fit(groups, partial(_squared_error, sub), pairs, config, stage)
            merge(layers)
            for quantizer in sub_quantizers(sub):
                quantizer.fold_scale_into_bounds()
        return log

    def _untrained(self, model: OneStepSR) -> set[nn.Module]:
        """Under `native`, the 8-bit layers keep their initial ranges."""
        if self.exceptions != "native":
            return set()
        found = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLayer)}
        return {m for n, m in found.items() if model.family.in_set("efficientdm", n)}

    def _groups(
        self, sub: SubModel, layers: Sequence[QuantizedLayer], untrained: set[nn.Module]
    ) -> list[ParamGroup]:
        groups = []
        for layer in layers:
            scale, _ = layer.weight_quantizer.learn_scale()
            lora = QALoRA(layer, RANK, self.qalora_base == "int")
            parametrize.register_parametrization(layer, "weight", lora)
            groups.append(ParamGroup([lora.a, lora.b], self.lora_lr * float(scale.mean())))
            groups.append(ParamGroup([scale], WEIGHT_LR))
        fixed = {q for m in untrained for q in (m.weight_quantizer, m.act_quantizer)}
        fixed |= {layer.weight_quantizer for layer in layers}
        for quantizer in sub_quantizers(sub):
            if quantizer not in fixed:
                scale, zero_point = quantizer.learn_scale()
                unit = float(scale.mean()) if self.relative_lr else 1.0
                groups.append(ParamGroup([scale], self.act_lr * unit))
                groups.append(ParamGroup([zero_point], self.act_lr))
        return groups


def _squared_error(sub: SubModel, pair: tuple[Tensor, Tensor]) -> Tensor:
    """Summed, not averaged, as released; under Adam that is a constant factor."""
    output = sub.run(pair[0])
    return (output - pair[1].to(output.device)).square().sum()


def merge(layers: Sequence[QuantizedLayer]) -> None:
    """Replace each layer's weight by W + B A, with the integers of the last training pass."""
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        layer.weight.requires_grad_(False)
