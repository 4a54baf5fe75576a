"""LSQ (Esser et al., ICLR 2020): learned step sizes, here for post-training quantization.

The paper trains weights and steps together (QAT). PTQ adaptation [ours]: weights stay frozen, only
step sizes are learned, against the float sub-model's output (latent, x0, image), sub-model by
sub-model (docs/methods.md#sub-models). Weights signed, no zero point, s = 2 mean|v| / sqrt(Qp);
activations unsigned where the first batch is non-negative, else signed. Steps are per output
channel for weights (`per_channel=False` is the paper's one per tensor).

Deviations: the softmax output P starts from its maximum unless lsq_init="paper", because the
canonical step clips almost all of a post-softmax map (docs/methods.md#lsq); Adam instead of the
paper's SGD. The gradient scale g = 1 / sqrt(N Qp) counts where it does something, with
optimizer="sgd" (momentum 0.9): Adam is invariant to it.

One step: a single t, so one quantizer per tensor sees every input there is. A fit stage that ends
above its start is undone, see FitConfig. lsq_plus: asymmetric with a learned zero point (rounded
straight-through), after LSQ+ (Bhalgat et al., 2020), started from minimum and maximum.

VAE: the same rules; its attention products stay float.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from passionsr.calibration.batches import CalibrationBatch
from passionsr.calibration.checkpoints import Checkpoints
from passionsr.calibration.fit import FitConfig, FitLog, FitStage, ParamGroup, fit
from passionsr.calibration.range_passes import RangeRule, init_ranges, set_ranges
from passionsr.calibration.sub_models import (
    SubModel,
    in_sequence,
    output_loss,
    parts_of,
    softmax_quantizers,
    sub_quantizers,
)
from passionsr.methods.base import Exceptions, Steps, StepSize, check_options, quantized_copy
from passionsr.models.one_step import OneStepSR
from passionsr.quantization.attention import AttentionConfig
from passionsr.quantization.layer import LayerConfig, QuantizedLayer
from passionsr.quantization.quantizer import Quantizer
from passionsr.quantization.spec import Form, Scheme
from passionsr.quantization.swap import SwapRow


def lsq_bounds(quantizer: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
    """(-Qn s, Qp s) with s = 2 mean|x| / sqrt(Qp) (Sec. 2.1); Qn = 0 where x is non-negative."""
    n = quantizer.spec.levels
    unsigned = bool(x.min() >= 0) and not quantizer.spec.per_channel
    below, above = (0, n) if unsigned else ((n + 1) // 2, n // 2)
    means = torch.stack([rows.abs().mean(1) for rows in quantizer.rows(x)], -1)
    step = (2 * means / above**0.5).clamp_min(1e-8).reshape(quantizer.lower.shape)
    return -below * step, above * step


def gradient_scale(quantizer: Quantizer, elements: int) -> float:
    """The factor g = 1 / sqrt(N Qp) of a step's gradient (Sec. 2.2).

    quantizer: with its initial bounds. elements: N, the number of values that share the step.
    """
    n = quantizer.spec.levels
    unsigned = bool((quantizer.lower == 0).all())
    return (elements * (n if unsigned else n // 2)) ** -0.5


def gradient_scales(sub: SubModel, x: Tensor) -> dict[Quantizer, float]:
    """`gradient_scale` of every quantizer; x: a batch of the sub-model's inputs.

    N counts the values of a weight's channel (or layer), or of one image's activations.
    """
    counts = {}
    for part in parts_of(sub):
        if isinstance(part, QuantizedLayer):
            counts[part.weight_quantizer] = part.weight_quantizer.rows(part.weight)[0].shape[1]

    def count(quantizer: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
        counts[quantizer] = x[0].numel()
        return quantizer.lower, quantizer.upper

    set_ranges(sub, [x], RangeRule(mode="first", find=count, weights=False))
    return {quantizer: gradient_scale(quantizer, n) for quantizer, n in counts.items()}


@dataclass(frozen=True, kw_only=True)
class LSQ:
    """Options.

    lsq_plus: asymmetric, with a learned zero point.
    lsq_init: how P's step starts, from its maximum ("minmax_p") or as every other ("paper").
    per_channel: one weight step per output channel; False is the paper's one per layer.
    exceptions: see `Exceptions`. epochs: passes over the calibration set per sub-model.
    act_lr, weight_lr: learning rates of activation and weight step sizes, cosine to 0; with
        `relative_lr` they are shares of each quantizer's mean step size.
    optimizer: "sgd" is the paper's, with the gradient scale (its learning rates: 1e-3 at 8 bits,
        1e-2 below).
    """

    lsq_plus: bool = False
    lsq_init: Literal["minmax_p", "paper"] = "minmax_p"
    per_channel: bool = True
    exceptions: Exceptions = "passionsr"
    epochs: Steps = 4
    act_lr: StepSize = 1e-4
    weight_lr: StepSize = 1e-5
    relative_lr: bool = False
    optimizer: Literal["adam", "sgd"] = "adam"

    def __post_init__(self) -> None:
        check_options(self)

    def prepare(
        self, model: OneStepSR, scheme: Scheme, scope: str
    ) -> tuple[OneStepSR, list[SwapRow]]:
        """A copy with every layer of the scope and the UNet's attentions swapped."""
        form = Form.AFFINE if self.lsq_plus else Form.LSQ
        return quantized_copy(
            model,
            scheme,
            scope,
            lambda _, __, w, a: LayerConfig(
                weight_bits=w, act_bits=a, form=form, per_channel=self.per_channel
            ),
            lambda *_: AttentionConfig(act_bits=scheme.act_bits, form=form),
            "passionsr" if self.exceptions == "passionsr" else "first_last",
        )

    def calibrate(
        self,
        model: OneStepSR,
        batches: Sequence[CalibrationBatch],
        scope: str,
        checkpoints: Checkpoints,
    ) -> FitLog:
        """Step sizes from the first batch, then learned on the whole set."""
        log = FitLog()
        config = FitConfig(epochs=self.epochs, schedule="cosine", optimizer=self.optimizer)
        for sub, inputs, pairs in in_sequence(model, batches, scope):
            self._init(sub, inputs, checkpoints)
            groups = self._groups(sub, inputs[0])
            stage = FitStage.of(sub, "steps", log, checkpoints)
            fit(groups, output_loss(sub), pairs, config, stage)
            for quantizer in sub_quantizers(sub):
                quantizer.fold_scale_into_bounds()
        return log

    def _init(self, sub: SubModel, inputs: Sequence[Tensor], checkpoints: Checkpoints) -> None:
        if self.lsq_plus:
            init_ranges(sub, inputs, checkpoints, RangeRule(mode="first", include_zero=True))
            return
        softmax = softmax_quantizers(sub)

        def find(quantizer: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
            if quantizer in softmax and self.lsq_init == "minmax_p":
                return torch.zeros_like(quantizer.lower), x.max().reshape(1)
            return lsq_bounds(quantizer, x)

        rule = RangeRule(mode="first", find=find, find_weight=lsq_bounds)
        init_ranges(sub, inputs, checkpoints, rule)

    def _groups(self, sub: SubModel, x: Tensor) -> list[ParamGroup]:
        weights = {p.weight_quantizer for p in parts_of(sub) if isinstance(p, QuantizedLayer)}
        # A factor of SGD's gradient is a factor of its step.
        factors = gradient_scales(sub, x) if self.optimizer == "sgd" else {}
        groups = []
        for quantizer in sub_quantizers(sub):
            scale, zero_point = quantizer.learn_scale()
            lr = self.weight_lr if quantizer in weights else self.act_lr
            lr *= factors.get(quantizer, 1.0)
            unit = float(scale.mean()) if self.relative_lr else 1.0
            groups.append(ParamGroup([scale], lr * unit))
            if self.lsq_plus:
                # A zero point is counted in steps: its move is that of the offset scale *
                # zero_point.
                groups.append(ParamGroup([zero_point], lr * unit / float(scale.mean())))
        return groups
