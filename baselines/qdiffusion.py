"""Q-Diffusion (Li et al., ICCV 2023): shortcut split, AdaRound by blocks, activation steps.

Weights per channel, activations per tensor, asymmetric; ranges by the shrink search (act_init "ema"
is the released --running_stat). The shortcut convolution of every up-block ResNet has two ranges,
for the hidden state's channels and for the skip's, in weights and activations. Then unit by unit in
execution order: rounding is learned against the float unit's output, on inputs from the network
with quantized predecessors, and rounded hard; afterwards the activation scales of each unit (zero
points fixed) on float inputs, p = 2.4.

One step: uniform timestep sampling degenerates to t = 999; the calibration latents are the data.

VAE [ours]: the same on random crops, no split; its attention products stay float.

Deviations: both halves of a split weight are regularised and softened
(adaround_split_reg="official": the first only). Errors are summed over channels for every unit; the
released code sums over dim 1, which is the token axis of a transformer block. P has the
activations' bits unless sm_bits (16 in the released SD command). Activation ranges are found with
float activations. The 8-bit exceptions are PassionSR's (the released code has none:
exceptions="native"). A long tensor is searched on its histogram. Learning rates follow the budget
(docs/methods.md#q-diffusion). A unit whose rounding or steps end above their start goes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from passionsr.calibration.batches import CalibrationBatch
from passionsr.calibration.checkpoints import Checkpoints
from passionsr.calibration.fit import FitConfig, FitLog, FitStage, ParamGroup, fit, mean_loss
from passionsr.calibration.range_passes import RangeRule, init_ranges
from passionsr.calibration.reconstruction import (
    AdaRound,
    Minibatches,
    RoundingPenalty,
    Seen,
    Unit,
    capture,
    find_units,
    hard,
    harden,
    reconstruction_loss,
    soften,
)
from passionsr.calibration.sub_models import (
    SubModel,
    first_images,
    in_sequence,
    softmax_quantizers,
    sub_models,
    weights_only,
)
from passionsr.methods.base import (
    Bits,
    Count,
    Exceptions,
    Steps,
    StepSize,
    check_options,
    quantized_copy,
)
from passionsr.models.one_step import OneStepSR
from passionsr.quantization.attention import AttentionConfig, QuantizedAttention
from passionsr.quantization.layer import LayerConfig, QuantizedLayer
from passionsr.quantization.modules import quantized_modules
from passionsr.quantization.quantizer import Phase, Quantizer, quantizers, set_phase
from passionsr.quantization.range_search import shrink_search
from passionsr.quantization.spec import Scheme
from passionsr.quantization.swap import SwapRow

ActInit = Literal["mse", "max", "ema"]
PENALTY = 0.01  # weight of the rounding penalty, lambda


def _float_twin(model: OneStepSR) -> OneStepSR:
    """A copy whose layers share the weights of `model` until it rounds its own."""
    memo = {
        id(p): nn.Parameter(p.detach(), requires_grad=False)
        for part in quantized_modules(model)
        if isinstance(part, QuantizedLayer)
        for p in (part.weight, part.bias)
        if p is not None
    }
    return deepcopy(model, memo)


@dataclass(frozen=True)
class _Pair:
    """One unit of the quantized network and the same unit of the float network."""

    sub: SubModel
    unit: Unit
    float_sub: SubModel
    float_unit: Unit

    def capture_float(self, inputs: Sequence[Tensor]) -> Seen:
        """What the float unit is called with and returns."""
        return capture(self.float_unit.module, self.float_sub.run, inputs)


@dataclass(frozen=True, kw_only=True)
class QDiffusion:
    """Options.

    weight_init, act_init: ranges by the shrink search ("mse") or from the extremes ("max"); for
        activations also an EMA of the extremes over all batches ("ema", as released for SD).
    sm_bits: bits of P, None for the activations' (16 as released for SD). exceptions: see
        `Exceptions`.
    adaround_split_reg: which halves of a split weight are regularised, "official" is the first
    only. weight_steps at weight_lr, act_steps at act_lr: per unit; fewer than about 3,000 steps
        need the larger rate for the rounding to harden.
    relative_lr: act_lr is a share of each scale; the released absolute step is larger than the
        whole scale of a softmax output (max P / 63 at 6 bits) and destroys it unless sm_bits is 16.
    batch: images per step. recon_images: images kept per unit. vae_crop: side in latent pixels of
        the random crops that the VAE's units are trained on, None for whole images. init_images:
        for the activation search.
    """

    weight_init: Literal["mse", "max"] = "mse"
    act_init: ActInit = "mse"
    sm_bits: Bits | None = None
    adaround_split_reg: Literal["both", "official"] = "both"
    exceptions: Exceptions = "passionsr"
    weight_steps: Steps = 2000
    weight_lr: StepSize = 1e-2
    act_steps: Steps = 1000
    act_lr: StepSize = 4e-4
    relative_lr: bool = False
    batch: Count = 8
    recon_images: Count = 128
    vae_crop: Count | None = 16
    init_images: Count = 16

    def __post_init__(self) -> None:
        check_options(self)

    def prepare(
        self, model: OneStepSR, scheme: Scheme, scope: str
    ) -> tuple[OneStepSR, list[SwapRow]]:
        """A copy with every layer swapped, shortcuts split, attention products quantized."""
        splits = model.family.skip_splits(model)

        def layer(name: str, _: nn.Module, weight_bits: int, act_bits: int) -> LayerConfig:
            return LayerConfig(
                weight_bits=weight_bits, act_bits=act_bits, split=splits.get(name, 0)
            )

        return quantized_copy(
            model,
            scheme,
            scope,
            layer,
            lambda *_: AttentionConfig(act_bits=scheme.act_bits, p_bits=self.sm_bits),
            "passionsr" if self.exceptions == "passionsr" else None,
        )

    def calibrate(
        self,
        model: OneStepSR,
        batches: Sequence[CalibrationBatch],
        scope: str,
        checkpoints: Checkpoints,
    ) -> FitLog:
        """Per sub-model: weight ranges, AdaRound; activation ranges, activation steps."""
        log = FitLog()
        teacher = _float_twin(model)
        for quantizer in quantizers(teacher):
            quantizer.phase = Phase.FLOAT
        float_subs = {sub.name: sub for sub in sub_models(teacher, scope)}
        for sub, inputs, _ in in_sequence(model, batches, scope):
            self._init_weights(sub, checkpoints)
            data = self._training_inputs(model, sub, inputs)
            float_sub = float_subs[sub.name]
            units = zip(find_units(sub, data[0]), find_units(float_sub, data[0]), strict=True)
            pairs = [_Pair(sub, unit, float_sub, float_unit) for unit, float_unit in units]
            for pair in pairs:
                self._round(pair, data, log, checkpoints)
            self._init_activations(sub, inputs, checkpoints)
            for pair in pairs:
                self._learn_steps(pair, pair.capture_float(data), log, checkpoints)
        return log

    # -- ranges -------------------------------------------------------------------------------

    def _init_weights(self, sub: SubModel, checkpoints: Checkpoints) -> None:
        rule = RangeRule(include_zero=True)
        if self.weight_init == "mse":
            rule = RangeRule(find_weight=partial(Quantizer.search, search=shrink_search))
        init_ranges(sub, [], checkpoints, rule)

    def _init_activations(
        self, sub: SubModel, inputs: Sequence[Tensor], checkpoints: Checkpoints
    ) -> None:
        softmax = softmax_quantizers(sub)

        def search(quantizer: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
            return quantizer.search(x, partial(shrink_search, from_zero=quantizer in softmax))

        def extremes(quantizer: Quantizer, x: Tensor) -> tuple[Tensor, Tensor]:
            low, high = quantizer.observe(x)
            return (torch.zeros_like(low) if quantizer in softmax else low), high

        if self.act_init != "ema":
            inputs = [first_images(inputs, self.init_images)]
        rule = RangeRule(
            mode="ema" if self.act_init == "ema" else "first",
            include_zero=self.act_init == "max",
            find=search if self.act_init == "mse" else extremes,
            weights=False,
            quantized_weights=True,
        )
        init_ranges(sub, inputs, checkpoints, rule)

    # -- units --------------------------------------------------------------------------------

    def _training_inputs(
        self, model: OneStepSR, sub: SubModel, inputs: Sequence[Tensor]
    ) -> list[Tensor]:
        """Batches of at most recon_images images; the VAE's are cropped at random."""
        side = None if sub.name == "unet" else self.vae_crop
        if side is not None and sub.name == "encoder":
            side *= model.latent_factor
        images = first_images(inputs, self.recon_images)
        if side is None or side >= min(images.shape[-2:]):
            return list(images.split(self.batch))
        crops = []
        for image in images:
            top, left = (int(torch.randint(n - side + 1, ())) for n in image.shape[-2:])
            crops.append(image[:, top : top + side, left : left + side])
        return list(torch.stack(crops).split(self.batch))

    def _round(
        self, pair: _Pair, data: Sequence[Tensor], log: FitLog, checkpoints: Checkpoints
    ) -> None:
        """AdaRound on one unit: inputs behind quantized predecessors, targets of the float one."""
        if not self.weight_steps:
            return
        sub, unit = pair.sub, pair.unit
        layers = unit.layers()
        target = pair.capture_float(data).output
        with weights_only(sub):
            seen = capture(unit.module, sub.run, data)
            rounders = soften(layers)
            batches = Minibatches(seen, target, self.batch, self.weight_steps)
            penalty = RoundingPenalty(steps=self.weight_steps, weight=PENALTY)
            loss = partial(_unit_loss, unit, power=2.0)
            start = [r.v.detach().clone() for r in rounders]
            with hard(rounders):
                nearest = mean_loss(loss, batches)
            fit(
                [ParamGroup([r.v for r in rounders])],
                loss,
                batches,
                # Soft weights start as the float ones: their loss can only rise until they are
                # hard.
                FitConfig(lr=self.weight_lr, steps=self.weight_steps, undo_worse=False),
                FitStage.of(sub, f"round.{unit.name}", log, checkpoints),
                lambda step: penalty(self._shares(layers, rounders), step),
            )
            with hard(rounders):
                learned = mean_loss(loss, batches)
            undone = not learned <= nearest  # a short budget can end above nearest rounding
            if undone:
                for rounder, v in zip(rounders, start, strict=True):
                    rounder.v.data.copy_(v)
            harden(layers, rounders)
            # What counts is the rounded weight: nearest rounding before, learned rounding after.
            log.stages[-1].update(
                loss_before=nearest, loss_after=nearest if undone else learned, undone=undone
            )

    def _shares(self, layers: Sequence[nn.Module], rounders: Sequence[AdaRound]) -> list[Tensor]:
        """The shares h(V) of every weight that is regularised."""
        shares = []
        for layer, rounder in zip(layers, rounders, strict=True):
            split = layer.config.split
            if split and self.adaround_split_reg == "official":
                shares.append(rounder.share()[:, :split])
            else:
                shares.append(rounder.share())
        return shares

    def _learn_steps(self, pair: _Pair, seen: Seen, log: FitLog, checkpoints: Checkpoints) -> None:
        """Activation scales of one unit, on the float network's inputs and outputs."""
        unit = pair.unit
        found = []
        for part in quantized_modules(unit.module):
            if isinstance(part, QuantizedAttention):
                found += [part.q, part.k, part.v]
                found += [part.p] if part.p.spec.bits < 16 else []
            elif isinstance(part.act_quantizer, Quantizer):
                found.append(part.act_quantizer)
        scales = [quantizer.learn_scale()[0] for quantizer in found]
        factors = [float(s.mean()) if self.relative_lr else 1.0 for s in scales]
        with set_phase(unit.module, Phase.QUANTIZED):
            fit(
                [ParamGroup([s], factor) for s, factor in zip(scales, factors, strict=True)],
                partial(_unit_loss, unit, power=2.4),
                Minibatches(seen, seen.output, self.batch, self.act_steps),
                FitConfig(lr=self.act_lr, steps=self.act_steps, schedule="cosine"),
                FitStage.of(pair.sub, f"steps.{unit.name}", log, checkpoints),
            )
        for quantizer in found:
            quantizer.fold_scale_into_bounds()


def _unit_loss(unit: Unit, batch: tuple[Seen, Tensor], power: float) -> Tensor:
    """Reconstruction loss of a unit's output, summed over its channels."""
    seen, target = batch
    output = unit.module(*seen.args, **seen.kwargs)
    return reconstruction_loss(output, target, power, 1 if target.ndim == 4 else -1)
