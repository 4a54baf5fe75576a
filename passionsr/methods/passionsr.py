"""PassionSR (CVPR 2025): LBQ + LET + DQC (methods.md 8), and its ablations as options.

LBQ: learned bounds of weights, activations and biases. LET: learnable equivalent transformation of
layers and attention. DQC: LET and LBQ in separate stages, ranges re-estimated in between, sub-models in
sequence. Defaults are the mathematically right forms of methods.md 0.1: per-step zero_grad, x0-space loss
for the UNet, float decoder output as decoder target, channel-axis split, posterior mean, ranges by EMA
over the whole calibration set.

Adapted [ours]: nothing for one step, it is the paper's setting: t = 999 is constant, so ranges and LET serve one
distribution. VAE: encoder and decoder are sub-models of the same sequence, without split, their attention products float (8.1).

Deviations: s is learnt as log s, so it stays positive (8.2 allows it); by default lbq_lr is relative to each
range's width (8.3) or level; s_j of self-attention is used only where `let_latent_size` fixes the token count. Scales and ranges are set
sub-model by sub-model, in one pass each, with quantizers off (so those of P and s_j come from float q and k, 13.5; they are quantized in
every pass that trains). The border term of o stays float. A stage that ends above its start is undone (`undo_worse`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from passionsr.calibration.batches import CalibrationBatch
from passionsr.calibration.fit import FitConfig, FitLog, ParamGroup, fit
from passionsr.calibration.range_passes import init_let, init_ranges, set_ranges
from passionsr.calibration.sub_models import SubModel, in_sequence, mse_to, parts_of, sub_quantizers
from passionsr.methods.base import check_choices, quantized_copy
from passionsr.models.one_step import OneStepSR
from passionsr.quantization.attention import AttentionConfig, QuantizedAttention
from passionsr.quantization.equivalent_transform import ChannelTransform, LearnedScale, ScaleInit
from passionsr.quantization.layer import LayerConfig
from passionsr.quantization.observers import RangeMode
from passionsr.quantization.quantizer import Quantizer
from passionsr.quantization.spec import Form, Scheme
from passionsr.quantization.swap import SwapRow, match_attention
from passionsr.utils.files import UserError

Item = tuple[Tensor, CalibrationBatch]
LrUnit = Literal["width", "level", "absolute"]
OFFICIAL: dict[str, Any] = {
    "lbq_form": "int_zp_stale",
    "quantize_bias": "official",
    "let_linear_offset": "official",
    "let_2d_stat": "official",
    "act_split_axis": "tokens",
    "act_range_init": "official",
    "lbq_reinit_after_let": False,
    "zero_grad": "epoch",
    "unet_let_loss": "eps",
    "decoder_target": "hr",
    "encoder_noise": "independent",
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "lbq_form": ("real_offset", "int_zp", "int_zp_stale"),
    "let_scale_init": ("ratio", "smoothquant"),
    "quantize_bias": (True, False, "official"),
    "let_linear_offset": ("right", "official"),
    "let_2d_stat": ("channel", "official"),
    "act_split_axis": ("channels", "tokens"),
    "act_range_init": ("ema", "global", "first", "official"),
    "lbq_reinit_after_let": (True, False, "sample"),
    "zero_grad": ("step", "epoch"),
    "unet_let_loss": ("x0", "eps"),
    "decoder_target": ("float", "hr"),
    "encoder_noise": ("mean", "independent"),
    "lr_unit": get_args(LrUnit),
}


@dataclass(frozen=True, kw_only=True)
class PassionSR:
    """Options; the ablations are let=False, lbq=False, dqc=False (methods.md 8.4).

    epochs: per stage with DQC; without it one stage of 2 * epochs, as in the paper's ablation.
    let_lr: Adam step of log s and o. lbq_lr: Adam step of a bound, as a share of its range's width.
    lr_unit [ours]: "width" is the above; "level" gives both in quantization levels: one step moves a bound, and what LET puts at the end of an
    activation's range, by that many levels, at any bit width (a width has 15 levels at 4 bits and 255 at 8); "absolute" gives both
    as they are, the released 1e-5 for instance (`paper` in config/budgets.yaml).
    unet_decay: factor of both in the second half of a UNet stage; None is the released one, 0.2 in UV and 0.1 in U (8.3).
    quantize_bias: biases at weight bits, per tensor (8.1).
    What follows reproduces released behaviour that differs from the paper or is wrong (methods.md 0.1), each alone:
    let_linear_offset, let_2d_stat, act_split_axis ("tokens"), lbq_form ("int_zp_stale"), act_range_init
    ("official": first batch for layers, under the first batch's s, which then moves on; EMA for attention), lbq_reinit_after_let
    (False: the UV script; "sample": the U script, bounds are each LET step's own extremes, at the end the last one's), zero_grad ("epoch"),
    unet_let_loss ("eps"), decoder_target ("hr"), encoder_noise ("independent"), quantize_bias ("official": LET's
    bias term stays float). official() sets them all. undo_worse: see FitConfig. let_latent_size: side of the latents that s_j
    of self-attention is made for; None keeps s_j = 1 there and any image size.
    """

    let: bool = True
    lbq: bool = True
    dqc: bool = True
    lbq_form: str = "real_offset"
    split: bool = True
    quantize_bias: bool | Literal["official"] = True
    let_alpha: float = 0.3
    let_scale_init: ScaleInit = "ratio"
    let_latent_size: int | None = None
    let_linear_offset: Literal["right", "official"] = "right"
    let_2d_stat: Literal["channel", "official"] = "channel"
    act_split_axis: Literal["channels", "tokens"] = "channels"
    act_range_init: RangeMode | Literal["official"] = "ema"
    lbq_reinit_after_let: bool | Literal["sample"] = True
    zero_grad: Literal["step", "epoch"] = "step"
    undo_worse: bool = True
    unet_let_loss: Literal["x0", "eps"] = "x0"
    decoder_target: Literal["float", "hr"] = "float"
    encoder_noise: Literal["mean", "independent"] = "mean"
    epochs: int = 2
    let_lr: float = 1e-5
    lbq_lr: float = 1e-4
    lr_unit: LrUnit = "width"
    unet_decay: float | None = None

    def __post_init__(self) -> None:
        check_choices(self, **CHOICES)

    @classmethod
    def official(cls, **options: Any) -> PassionSR:
        """The released UNet + VAE script: every switch at its official value, and no stage undone."""
        return cls(**{**OFFICIAL, "undo_worse": False, **options})

    def prepare(
        self, model: OneStepSR, scheme: Scheme, scope: str
    ) -> tuple[OneStepSR, list[SwapRow]]:
        """A copy with layers and attentions swapped; split in the UNet only (8.1)."""
        form = Form(self.lbq_form)
        if form is Form.INT_ZP_STALE and model.low_memory:
            raise UserError(
                "lbq_form int_zp_stale remembers its last forward, which a low_memory model runs twice: set low_memory: false"
            )
        tokens = self._attention_tokens(model) if self.let else {}
        in_denoiser = model.family.in_denoiser

        def layer(name: str, module: nn.Module, weight_bits: int, act_bits: int) -> LayerConfig:
            return LayerConfig(
                weight_bits=weight_bits,
                act_bits=act_bits,
                form=form,
                # half the channels, rounded down as in the official code
                split=module.weight.shape[1] // 2 if self.split and in_denoiser(name) else 0,
                let=self.let,
                quantize_bias=bool(self.quantize_bias),
                official=self._layer_bugs(),
            )

        def attention(name: str, module: nn.Module) -> AttentionConfig:
            return AttentionConfig(
                act_bits=scheme.act_bits,
                form=form,
                let=self.let,
                head_dim=module.inner_dim // module.heads,
                let_tokens=tokens.get(name),
            )

        return quantized_copy(model, scheme, scope, layer, attention)

    def _attention_tokens(self, model: OneStepSR) -> dict[str, int]:
        """Key tokens per attention: the context's length, or what one pass at let_latent_size shows."""
        attentions = match_attention(model)
        tokens = {n: model.context.shape[1] for n, m in attentions if m.is_cross_attention}
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
                model.predict_eps(model.context.new_zeros(1, model.latent_channels, side, side))
        finally:
            for handle in handles:
                handle.remove()
        return tokens

    def calibrate(
        self, model: OneStepSR, batches: Sequence[CalibrationBatch], scope: str
    ) -> FitLog:
        """Encoder, UNet, decoder; each on its quantized predecessor's outputs (8.3)."""
        log = FitLog()
        for sub, inputs, _ in in_sequence(model, batches, scope):
            self._init(sub, inputs)
            decay = self._unet_decay(scope) if sub.name == "unet" else 1.0
            items = list(zip(inputs, batches, strict=True))
            for stage, groups, epochs, reinit in self._stages(sub):
                config = FitConfig(
                    epochs=epochs,
                    schedule="halves",
                    decay=decay,
                    zero_grad=self.zero_grad,
                    undo_worse=self.undo_worse,
                )
                loss = self._loss(model, sub, stage)
                if reinit and self.lbq_reinit_after_let == "sample":
                    loss = _with_own_ranges(sub, loss)
                fit(groups, loss, items, config, log, f"{sub.name}.{stage}")
                if reinit and self.lbq_reinit_after_let == "sample":
                    init_ranges(sub, inputs[-1:], "first")
                elif reinit and self.lbq_reinit_after_let:
                    self._init_ranges(sub, inputs)
        return log

    def _unet_decay(self, scope: str) -> float:
        if self.unet_decay is not None:
            return self.unet_decay
        return 0.1 if scope == "U" else 0.2

    def _init(self, sub: SubModel, inputs: Sequence[Tensor]) -> None:
        """Scales, then ranges under them; "official" takes the ranges under the first batch's scales."""
        if not self.let:
            self._init_ranges(sub, inputs)
        elif self.act_range_init != "official":
            init_let(sub, inputs, self.let_alpha, self.let_scale_init)
            self._init_ranges(sub, inputs)
        else:
            init_let(sub, inputs[:1], self.let_alpha, self.let_scale_init)
            self._init_ranges(sub, inputs)
            init_let(sub, inputs[1:], self.let_alpha, self.let_scale_init, go_on=True)

    def _init_ranges(self, sub: SubModel, inputs: Sequence[Tensor]) -> None:
        if self.act_range_init != "official":
            init_ranges(sub, inputs, self.act_range_init)
            return
        init_ranges(sub, inputs, "ema")
        attention = {
            id(q) for p in parts_of(sub) if isinstance(p, QuantizedAttention) for q in p.children()
        }
        kept = {
            q: (q.lower.clone(), q.upper.clone()) for q in sub_quantizers(sub) if id(q) in attention
        }
        init_ranges(sub, inputs, "first", weights=False)
        for quantizer, bounds in kept.items():
            quantizer.set_bounds(*bounds)

    def _loss(self, model: OneStepSR, sub: SubModel, stage: str) -> Callable[[Item], Tensor]:
        """MSE of a stage between the quantized sub-model and its target, of one (input, batch)."""

        def noisy_latents(item: Item) -> Tensor:
            mean, std = model.encode_distribution(item[0])
            target = item[1].latent + item[1].latent_std * torch.randn_like(item[1].latent)
            return mse_to(mean + std * torch.randn_like(mean), target)

        def eps(item: Item) -> Tensor:
            target = (model.latent_gain * item[1].latent - item[1].x0) / model.eps_gain
            return mse_to(model.predict_eps(item[0]), target)

        def against_hr(item: Item) -> Tensor:
            if item[1].hr is None:
                raise UserError('decoder_target "hr" needs ground truth: give calibration targets')
            return mse_to(sub.run(item[0]), item[1].hr)

        if sub.name == "encoder" and self.encoder_noise == "independent":
            return noisy_latents
        if sub.name == "unet" and "let" in stage and self.unet_let_loss == "eps":
            return eps
        if sub.name == "decoder" and self.decoder_target == "hr":
            return against_hr
        return lambda item: mse_to(sub.run(item[0]), sub.target(item[1]))

    def _layer_bugs(self) -> tuple[str, ...]:
        bugs = {
            "linear_offset": self.let_linear_offset == "official",
            "stat_2d": self.let_2d_stat == "official",
            "split_tokens": self.act_split_axis == "tokens",
            "bias": self.quantize_bias == "official",
        }
        return tuple(name for name, on in bugs.items() if on)

    def _stages(self, sub: SubModel) -> Iterator[tuple[str, list[ParamGroup], int, bool]]:
        """(name, parameters, epochs, re-estimate ranges afterwards) per stage of a sub-model (8.4).

        A generator: relative steps are read off the ranges as they are when their stage begins.
        """
        if self.let and self.lbq and self.dqc:
            yield "let", let_groups(sub, self.let_lr, self.lr_unit), self.epochs, True
            yield "lbq", lbq_groups(sub, self.lbq_lr, self.lr_unit), self.epochs, False
        elif self.let and self.lbq:
            groups = let_groups(sub, self.let_lr, self.lr_unit) + lbq_groups(
                sub, self.lbq_lr, self.lr_unit
            )
            yield "let+lbq", groups, 2 * self.epochs, False
        elif self.let:
            yield "let", let_groups(sub, self.let_lr, self.lr_unit), 2 * self.epochs, True
        elif self.lbq:
            yield "lbq", lbq_groups(sub, self.lbq_lr, self.lr_unit), 2 * self.epochs, False


def _with_own_ranges(sub: SubModel, loss: Callable[[Item], Tensor]) -> Callable[[Item], Tensor]:
    """The loss of an item under the extremes of that item."""

    def own(item: Item) -> Tensor:
        set_ranges(sub, [item[0]], "first")
        return loss(item)

    return own


def let_groups(sub: SubModel, lr: float, unit: LrUnit = "width") -> list[ParamGroup]:
    """LET's parameters: log s and o of layers, s_qk and s_j of attentions; unit: see PassionSR.lr_unit."""
    groups = []
    for part in parts_of(sub):
        levels = 2**part.config.act_bits - 1 if unit == "level" else 1
        for scale in (m for m in part.modules() if isinstance(m, LearnedScale)):
            groups.append(ParamGroup([scale.log_scale], lr / levels))
            if isinstance(scale, ChannelTransform):
                level = 1.0
                if unit == "level":  # x is quantized as (x - o) / s
                    level = _width(part.act_quantizer) / levels * float(scale.scale.mean())
                groups.append(ParamGroup([scale.offset], lr * level))
    return groups


def lbq_groups(sub: SubModel, lr: float, unit: LrUnit = "width") -> list[ParamGroup]:
    """LBQ's parameters: both bounds of every quantizer; lr is relative to the mean width or level, or absolute."""

    def size(quantizer: Quantizer) -> float:
        if unit == "absolute":
            return 1.0
        return _width(quantizer) / (quantizer.spec.levels if unit == "level" else 1)

    return [ParamGroup([q.lower, q.upper], lr * size(q)) for q in sub_quantizers(sub)]


def _width(quantizer: Quantizer) -> float:
    return float((quantizer.upper - quantizer.lower).mean())
