"""PassionSR (CVPR 2025): learned bounds and an equivalent transformation, trained separately.

LBQ: learned bounds of weights, activations and biases (Eq. 3). LET: learnable equivalent
transformation of layers (Eq. 5) and attention. DQC: LET and LBQ are trained in separate fit stages,
ranges are estimated anew in between (Sec. 3.4.1), and sub-models follow each other.
docs/methods.md#passionsr has the equations and all defaults.

One step: the setting is the paper's own. t = 999 is constant, so ranges and LET serve one
distribution.

VAE: encoder and decoder are sub-models of the same sequence, without split; their attention
products stay float.

Defaults are the paper's forms; `official` switches to the released code's, see `released`.

Deviations [ours]: s is learned as log s, so that it stays positive. `lbq_lr` is relative to each
range by default (`lr_unit`). s_j of self-attention is used only where `let_latent_size` fixes the
number of tokens. Scales and ranges are set sub-model by sub-model, in one pass each, with
quantizers off, so those of P and s_j come from float q and k; every training pass has q and k
quantized. The border term of o stays float. `undo_worse` undoes a fit stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passionsr.calibration.batches import CalibrationBatch
from passionsr.calibration.checkpoints import Checkpoints
from passionsr.calibration.fit import FitConfig, FitLog, FitStage, ParamGroup, every_step, fit
from passionsr.calibration.range_passes import init_let, init_ranges
from passionsr.calibration.sub_models import SubModel, in_sequence, mse_to, parts_of, sub_quantizers
from passionsr.methods import released
from passionsr.methods.base import (
    Count,
    Steps,
    StepSize,
    check_options,
    option,
    quantized_copy,
)
from passionsr.models.one_step import OneStepSR
from passionsr.quantization.attention import AttentionConfig
from passionsr.quantization.equivalent_transform import ChannelTransform, LearnedScale, ScaleInit
from passionsr.quantization.layer import LayerConfig, QuantizedLayer
from passionsr.quantization.parts import STANDARD, Parts
from passionsr.quantization.quantizer import Quantizer
from passionsr.quantization.spec import Form, Scheme
from passionsr.quantization.swap import SwapRow, match_attention
from passionsr.utils.files import UserError

LrUnit = Literal["width", "level", "absolute"]
# Scope -> factor of the learning rates in the second half of the UNet's fit stages, as released.
UNET_DECAY = {"U": 0.1, "UV": 0.2}


@dataclass(frozen=True, kw_only=True)
class PassionSR:
    """PassionSR and its ablations (let=False, lbq=False or dqc=False), as options.

    Each field says what it does in its metadata ("help"); those of released behaviour have its
    value, too ("official").
    """

    let: bool = option(True, "learnable equivalent transformation; else s = 1 and o = 0")
    lbq: bool = option(True, "train the bounds; else they are the extremes, estimated after LET")
    dqc: bool = option(True, "LET and LBQ in separate fit stages; else in one of twice the epochs")
    let_scale_init: ScaleInit = option(  # noqa: RUF009 (a field)
        "ratio", "initial s: (max|x| / max|W|)^0.3, or SmoothQuant's formula, which the paper names"
    )
    let_latent_size: Count | None = option(  # noqa: RUF009 (a field)
        None,
        "side of the latents that s_j of self-attention is made for; None keeps s_j = 1 (any size)",
    )
    epochs: Steps = option(  # noqa: RUF009 (a field)
        2, "passes over the calibration set per fit stage"
    )
    let_lr: StepSize = option(  # noqa: RUF009 (a field)
        1e-5, "Adam's step of log s and o, in lr_unit"
    )
    lbq_lr: StepSize = option(  # noqa: RUF009 (a field)
        1e-4, "Adam's step of a bound, in lr_unit"
    )
    lr_unit: LrUnit = option(  # noqa: RUF009 (a field)
        "width",
        "width: lbq_lr is a share of each range's width, let_lr is absolute; level: both count "
        "quantization levels, so one step moves as many at any bit width; absolute: both as given",
    )
    undo_worse: bool = option(True, "undo a fit stage that ends above its start", official=False)
    official: bool = option(
        False,
        "the released script for UNet + VAE: every switch left at its default takes that value",
    )
    lbq_form: Literal["real_offset", "int_zp", "int_zp_stale"] = option(
        "real_offset",
        "grid: counted from a real lower bound (Eq. 3), an integer zero point, or that of the "
        "previous forward pass",
        official="int_zp_stale",
    )
    quantize_bias: bool | Literal["official"] = option(
        True, "Q(b + W o) at weight bits, per tensor; official: Q(b) + W o", official="official"
    )
    let_linear_offset: Literal["right", "official"] = option(
        "right", "(x - o) / s; official: (x + o) / s in linear layers", official="official"
    )
    let_2d_stat: Literal["channel", "official"] = option(
        "channel",
        "initial s of an (N, C) input from each channel's maximum; official: from one of all",
        official="official",
    )
    act_split_axis: Literal["channels", "tokens"] = option(
        "channels", "what the two ranges of a linear layer's input divide", official="tokens"
    )
    act_range_init: Literal["ema", "official"] = option(
        "ema",
        "ranges from all calibration batches; official: from the first, for layers",
        official="official",
    )
    lbq_reinit_after_let: bool | Literal["sample"] = option(
        True,
        "estimate ranges anew between LET and LBQ; False: the UNet + VAE script; sample: the UNet "
        "script, whose ranges are each LET step's own extremes, in the end the last one's",
        official=False,
    )
    zero_grad: Literal["step", "epoch"] = option(
        "step", "when gradients are cleared", official="epoch"
    )
    unet_let_loss: Literal["x0", "eps"] = option(
        "x0", "what the UNet's LET compares (Eq. 10: x0)", official="eps"
    )
    decoder_target: Literal["float", "hr"] = option(
        "float", "the float decoder's output (Eq. 8), or the ground truth", official="hr"
    )
    encoder_noise: Literal["mean", "independent"] = option(
        "mean",
        "compare the posterior's means, or two independent samples",
        official="independent",
    )

    def __post_init__(self) -> None:
        if self.official:
            for field in fields(self):
                given = getattr(self, field.name)
                if "official" in field.metadata and given == field.default:
                    object.__setattr__(self, field.name, field.metadata["official"])
        check_options(self)

    # -- prepare ------------------------------------------------------------------------------

    def prepare(
        self, model: OneStepSR, scheme: Scheme, scope: str
    ) -> tuple[OneStepSR, list[SwapRow]]:
        """A copy with layers and attentions swapped; only the UNet's layers are split."""
        stale = self.lbq_form == "int_zp_stale"
        if stale and model.low_memory:
            raise UserError(
                "lbq_form int_zp_stale remembers its last forward pass, which a low_memory model "
                "runs twice: set low_memory: false"
            )
        form = Form.INT_ZP if stale else Form(self.lbq_form)
        parts = self._parts()
        tokens = self._attention_tokens(model) if self.let else {}
        in_denoiser = model.family.in_denoiser

        def layer(
            name: str, module: nn.Conv2d | nn.Linear, weight_bits: int, act_bits: int
        ) -> LayerConfig:
            return LayerConfig(
                weight_bits=weight_bits,
                act_bits=act_bits,
                form=form,
                # half the channels, rounded down as in the official code
                split=module.weight.shape[1] // 2 if in_denoiser(name) else 0,
                let=self.let,
                quantize_bias=bool(self.quantize_bias),
                parts=parts,
            )

        def attention(name: str, module: Any) -> AttentionConfig:
            return AttentionConfig(
                act_bits=scheme.act_bits,
                form=form,
                let=self.let,
                head_dim=module.inner_dim // module.heads,
                let_tokens=tokens.get(name),
                parts=parts,
            )

        return quantized_copy(model, scheme, scope, layer, attention)

    def _parts(self) -> Parts:
        found = released.ReleasedParts(
            stale_zero_point=self.lbq_form == "int_zp_stale",
            added_offset=self.let_linear_offset == "official",
            one_maximum=self.let_2d_stat == "official",
            split_tokens=self.act_split_axis == "tokens",
            float_shift=self.quantize_bias == "official",
        )
        return STANDARD if found == released.ReleasedParts() else found

    def _attention_tokens(self, model: OneStepSR) -> dict[str, int]:
        """Key tokens per attention: the context's, or those of a pass at let_latent_size."""
        attentions = match_attention(model)
        context: Tensor = model.context
        tokens = {n: context.shape[1] for n, m in attentions if m.is_cross_attention}
        if self.let_latent_size is None:
            return tokens

        def record(name: str, hidden: torch.Tensor) -> None:
            tokens.setdefault(name, hidden.shape[1])

        handles = [
            m.register_forward_pre_hook(lambda _, args, name=n: record(name, args[0]))
            for n, m in attentions
        ]
        try:
            with torch.no_grad():
                side = self.let_latent_size
                model.predict_eps(context.new_zeros(1, model.latent_channels, side, side))
        finally:
            for handle in handles:
                handle.remove()
        return tokens

    # -- calibrate ----------------------------------------------------------------------------

    def calibrate(
        self,
        model: OneStepSR,
        batches: Sequence[CalibrationBatch],
        scope: str,
        checkpoints: Checkpoints,
    ) -> FitLog:
        """Encoder, UNet, decoder; each on its quantized predecessor's outputs."""
        log = FitLog()
        for sub, inputs, _ in in_sequence(model, batches, scope):
            self._init(sub, inputs, checkpoints)
            items = list(zip(inputs, batches, strict=True))
            for name, groups, epochs, reinit in self._fit_stages(sub):
                config = FitConfig(
                    epochs=epochs,
                    schedule="halves",
                    decay=UNET_DECAY[scope] if sub.name == "unet" else 1.0,
                    clears_gradients=(
                        released.once_per_epoch if self.zero_grad == "epoch" else every_step
                    ),
                    undo_worse=self.undo_worse,
                )
                loss = self._loss(model, sub, name)
                if reinit and self.lbq_reinit_after_let == "sample":
                    loss = released.with_own_ranges(sub, loss)
                fit(groups, loss, items, config, FitStage.of(sub, name, log, checkpoints))
                if reinit:
                    self._reinit(sub, inputs, checkpoints)
        return log

    def _init(self, sub: SubModel, inputs: Sequence[Tensor], checkpoints: Checkpoints) -> None:
        """LET's scales, then ranges under them."""
        if self.let and self.act_range_init == "official":
            released.init_let_and_ranges(sub, inputs, self.let_scale_init, checkpoints)
            return
        if self.let:
            init_let(sub, inputs, self.let_scale_init)
        self._init_ranges(sub, inputs, checkpoints)

    def _init_ranges(
        self, sub: SubModel, inputs: Sequence[Tensor], checkpoints: Checkpoints
    ) -> None:
        official = self.act_range_init == "official"
        (released.init_first_ranges if official else init_ranges)(sub, inputs, checkpoints)

    def _reinit(self, sub: SubModel, inputs: Sequence[Tensor], checkpoints: Checkpoints) -> None:
        """Ranges under the scales that LET has learned, between the fit stages of LET and LBQ."""
        if self.lbq_reinit_after_let == "sample":
            released.init_last_ranges(sub, inputs, checkpoints)
        elif self.lbq_reinit_after_let:
            self._init_ranges(sub, inputs, checkpoints)

    def _loss(self, model: OneStepSR, sub: SubModel, stage: str) -> released.Loss:
        """Loss of an (input, batch) in a fit stage: the quantized sub-model's MSE to its target."""
        if sub.name == "encoder" and self.encoder_noise == "independent":
            return released.noisy_latent_loss(model)
        if sub.name == "unet" and "let" in stage and self.unet_let_loss == "eps":
            return released.eps_loss(model)
        if sub.name == "decoder" and self.decoder_target == "hr":
            return released.ground_truth_loss(sub)
        return lambda item: mse_to(sub.run(item[0]), sub.target(item[1]))

    def _fit_stages(self, sub: SubModel) -> Iterator[tuple[str, list[ParamGroup], int, bool]]:
        """(name, parameters, epochs, estimate ranges anew afterwards) per fit stage of a sub-model.

        A generator: relative learning rates follow the ranges as they are when their fit stage
        begins.
        """
        if self.let and self.lbq and self.dqc:
            yield "let", let_groups(sub, self.let_lr, self.lr_unit), self.epochs, True
            yield "lbq", lbq_groups(sub, self.lbq_lr, self.lr_unit), self.epochs, False
        elif self.let and self.lbq:
            groups = let_groups(sub, self.let_lr, self.lr_unit)
            groups += lbq_groups(sub, self.lbq_lr, self.lr_unit)
            yield "let+lbq", groups, 2 * self.epochs, False
        elif self.let:
            yield "let", let_groups(sub, self.let_lr, self.lr_unit), 2 * self.epochs, True
        elif self.lbq:
            yield "lbq", lbq_groups(sub, self.lbq_lr, self.lr_unit), 2 * self.epochs, False


def official_values() -> dict[str, Any]:
    """Option of PassionSR -> its value in the released UNet + VAE script, where that differs."""
    return {f.name: f.metadata["official"] for f in fields(PassionSR) if "official" in f.metadata}


def let_groups(sub: SubModel, lr: float, unit: LrUnit = "width") -> list[ParamGroup]:
    """LET's parameters: log s and o of layers, s_qk and s_j of attentions; unit: see `lr_unit`."""
    groups = []
    for part in parts_of(sub):
        levels = 2**part.config.act_bits - 1 if unit == "level" else 1
        for scale in (m for m in part.modules() if isinstance(m, LearnedScale)):
            groups.append(ParamGroup([scale.log_scale], lr / levels))
            if isinstance(scale, ChannelTransform):
                level = 1.0
                if unit == "level":  # x is quantized as (x - o) / s
                    assert isinstance(part, QuantizedLayer)
                    assert isinstance(part.act_quantizer, Quantizer)
                    level = _width(part.act_quantizer) / levels * float(scale.scale.mean())
                groups.append(ParamGroup([scale.offset], lr * level))
    return groups


def lbq_groups(sub: SubModel, lr: float, unit: LrUnit = "width") -> list[ParamGroup]:
    """LBQ's parameters: both bounds of every quantizer; unit: see `lr_unit`, of the mean width."""

    def size(quantizer: Quantizer) -> float:
        if unit == "absolute":
            return 1.0
        return _width(quantizer) / (quantizer.spec.levels if unit == "level" else 1)

    return [ParamGroup([q.lower, q.upper], lr * size(q)) for q in sub_quantizers(sub)]


def _width(quantizer: Quantizer) -> float:
    return float((quantizer.upper - quantizer.lower).mean())
