"""The Method protocol, the registry, and what every method shares."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from passionsr.calibration import CalibrationBatch
from passionsr.files import UserError
from passionsr.fit import FitLog
from passionsr.layers import QuantizedLayer, as_float, freeze, quantized_modules
from passionsr.model import OneStepSR
from passionsr.quant.observers import RangeMode
from passionsr.quant.quantizers import Finder, Quantizer, observing
from passionsr.quant.spec import Scheme
from passionsr.surgery import PASSIONSR_8BIT, SwapRow, check_scope, match_layers, match_patterns


class Method(Protocol):
    """A quantization method: one file, one line in config/methods.yaml."""

    def prepare(
        self, model: OneStepSR, scheme: Scheme, scope: str
    ) -> tuple[OneStepSR, list[SwapRow]]:
        """A copy of the float model with layers swapped; `model` itself is never changed."""
        ...

    def calibrate(
        self, model: OneStepSR, batches: Sequence[CalibrationBatch], scope: str
    ) -> FitLog:
        """Set ranges and train, in place, on what `prepare` returned."""
        ...


def load_method(target: str, options: dict[str, Any] | None = None) -> Method:
    """Import "module:Class" and build it with `options` (a frozen dataclass's fields).

    Raises UserError for an unknown module, class or option.
    """
    module_name, _, class_name = target.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as err:
        raise UserError(
            f"method {target!r} cannot be imported ({err}); give module:Class"
        ) from None
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(options or {}) - known)
    if unknown:
        raise UserError(
            f"{target}: unknown option {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    return cls(**(options or {}))


def eight_bit_layers(model: OneStepSR, scope: str) -> set[str]:
    """PassionSR's 8-bit exceptions inside the scope (methods.md 8.1)."""
    names = [name for name, _ in match_layers(model, scope)]
    patterns = [p for part in check_scope(scope) for p in PASSIONSR_8BIT[part]]
    return match_patterns(names, patterns)


def bits_for(scheme: Scheme, name: str, exceptions: set[str]) -> tuple[int, int]:
    """(weight bits, activation bits) of a layer: exceptions have at least 8."""
    if name in exceptions:
        return max(8, scheme.weight_bits), max(8, scheme.act_bits)
    return scheme.weight_bits, scheme.act_bits


def copy_model(model: OneStepSR) -> OneStepSR:
    """A deep copy in eval mode without gradients."""
    return deepcopy(model).eval().requires_grad_(False)


# -- sub-models in calibration order (methods.md 2.5) ---------------------------------------------


@dataclass(frozen=True)
class SubModel:
    """A part calibrated on the outputs of its quantized predecessors.

    modules: what is calibrated. run: input -> output. target: what the float teacher gives.
    output_loss: compares them (MSE; latents for the encoder, x0 for the UNet, unclamped image for the decoder).
    """

    name: str
    modules: tuple[nn.Module, ...]
    run: Callable[[Tensor], Tensor]
    target: Callable[[CalibrationBatch], Tensor]


def sub_models(model: OneStepSR, scope: str) -> list[SubModel]:
    """Encoder, UNet, decoder of a prepared model (UNet alone in scope U)."""
    unet = SubModel("unet", (model.unet,), model.denoise, lambda b: b.x0)
    if scope == "U":
        return [unet]
    vae = model.vae
    return [
        SubModel("encoder", (vae.encoder, vae.quant_conv), model.encode, lambda b: b.latent),
        unet,
        SubModel("decoder", (vae.post_quant_conv, vae.decoder), model.decode, lambda b: b.output),
    ]


def first_inputs(batches: Sequence[CalibrationBatch], scope: str) -> list[Tensor]:
    """Inputs of the first sub-model: images, or float latents in scope U."""
    return [b.latent if scope == "U" else b.image for b in batches]


@torch.no_grad()
def outputs(sub: SubModel, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The sub-model's (quantized) outputs: the next one's inputs."""
    return [sub.run(x) for x in inputs]


def parts_of(sub: SubModel) -> list[nn.Module]:
    """Quantized layers and attentions of a sub-model."""
    return [part for module in sub.modules for part in quantized_modules(module)]


@contextlib.contextmanager
def _all(contexts: Sequence[contextlib.AbstractContextManager]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


@torch.no_grad()
def init_ranges(
    sub: SubModel,
    inputs: Sequence[Tensor],
    mode: RangeMode = "ema",
    include_zero: bool = False,
    momentum: float = 0.95,
    find: Finder | None = None,
    find_weight: Finder = Quantizer.observe,
) -> None:
    """Weight bounds from the weights, activation bounds from one float pass over `inputs`.

    find, find_weight: other statistics than minimum and maximum, see `observing`.
    """
    for part in parts_of(sub):
        if isinstance(part, QuantizedLayer):
            part.init_weights(include_zero, find_weight)
    with _all([observing(m, mode, include_zero, momentum, find) for m in sub.modules]):
        for x in inputs:
            sub.run(x)


@torch.no_grad()
def init_let(sub: SubModel, inputs: Sequence[Tensor], alpha: float, mode: str) -> None:
    """Set LET's scales by one float pass over `inputs` (EMA 0.9)."""
    parts = [p for p in parts_of(sub) if p.config.let]
    for part in parts:
        part.start_collecting(alpha, mode)
    try:
        with _all([as_float(m) for m in sub.modules]):
            for x in inputs:
                sub.run(x)
    finally:
        for part in parts:
            part.stop_collecting()


def quantize_model(
    method: Method,
    model: OneStepSR,
    scheme: Scheme,
    scope: str,
    batches: Sequence[CalibrationBatch],
) -> tuple[OneStepSR, FitLog, list[SwapRow]]:
    """prepare, calibrate and freeze; the same for every method."""
    prepared, report = method.prepare(model, scheme, scope)
    log = method.calibrate(prepared, batches, scope)
    freeze(prepared)
    return prepared, log, report
