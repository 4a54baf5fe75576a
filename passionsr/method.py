"""The Method protocol, the registry, and what every method shares."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from passionsr.calibration import CalibrationBatch
from passionsr.files import UserError
from passionsr.fit import FitLog
from passionsr.layers import (
    AttentionConfig,
    LayerConfig,
    QuantizedAttention,
    QuantizedLayer,
    as_float,
    freeze,
    keep_weights,
    quantized_modules,
)
from passionsr.memory import give_back_freed_memory
from passionsr.model import OneStepSR
from passionsr.quant.observers import RangeMode
from passionsr.quant.quantizers import Finder, Phase, Quantizer, observing, quantizers
from passionsr.quant.spec import Scheme
from passionsr.resume import once, watch
from passionsr.surgery import (
    PASSIONSR_8BIT,
    SwapRow,
    check_scope,
    match_layers,
    match_patterns,
    swap_attention,
    swap_layers,
)
from passionsr.transforms import ScaleInit


class Method(Protocol):
    """A quantization method: one file, one line in config/methods.yaml."""

    def prepare(
        self, model: OneStepSR, scheme: Scheme, scope: str
    ) -> tuple[OneStepSR, list[SwapRow]]:
        """A copy of the float model with layers swapped; `model` itself is changed only where it is lean."""
        ...

    def calibrate(
        self, model: OneStepSR, batches: Sequence[CalibrationBatch], scope: str
    ) -> FitLog:
        """Set ranges and train, in place, on what `prepare` returned."""
        ...


def check_choices(options: object, **allowed: Sequence[Any]) -> None:
    """UserError unless each named field of `options` has one of its allowed values."""
    for name, values in allowed.items():
        given = getattr(options, name)
        if given not in values:
            raise UserError(
                f"{name} {given!r} is unknown: give one of {', '.join(map(str, values))}"
            )


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


Patterns = Mapping[str, Sequence[str]]
Exceptions = Literal["passionsr", "native"]
EXCEPTIONS = get_args(Exceptions)


def layers_matching(model: OneStepSR, scope: str, patterns: Patterns) -> set[str]:
    """Names of the scope's layers that match the patterns of their part ("unet", "vae")."""
    names = [name for name, _ in match_layers(model, scope)]
    return match_patterns(names, [p for part in check_scope(scope) for p in patterns[part]])


def swapped(
    model: OneStepSR,
    scheme: Scheme,
    scope: str,
    configure: Callable[[str, nn.Module, int, int], LayerConfig | None],
    attention: Callable[[str, nn.Module], AttentionConfig] | None,
    eight_bit: Patterns = PASSIONSR_8BIT,
) -> tuple[OneStepSR, list[SwapRow]]:
    """A float copy of `model` with the scope's layers and the UNet's attentions swapped.

    A lean model is given up by its caller and swapped in place: no second copy of the weights.

    configure: (name, layer, weight bits, activation bits) -> config, None to leave a layer float. The bits are
    the scheme's, and at least 8 where `eight_bit` matches. attention: None leaves the products float.
    """
    copy = (model if model.lean else deepcopy(model)).eval().requires_grad_(False)
    if copy.lean:
        copy.unet.enable_gradient_checkpointing()
        copy.vae.enable_gradient_checkpointing()
    exceptions = layers_matching(copy, scope, eight_bit)

    def layer(name: str, module: nn.Module) -> LayerConfig | None:
        least = 8 if name in exceptions else 0
        bits = max(least, scheme.weight_bits), max(least, scheme.act_bits)
        return configure(name, module, *bits)

    report = swap_layers(copy, scope, layer)
    if attention is not None:
        report += swap_attention(copy, attention)
    keep_weights(copy, not copy.lean)
    return copy, report


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


def in_sequence(
    model: OneStepSR, batches: Sequence[CalibrationBatch], scope: str
) -> Iterator[tuple[SubModel, list[Tensor], list[tuple[Tensor, Tensor]]]]:
    """Each sub-model with its inputs, and (input, target) pairs for a fit.

    Inputs are images (float latents in scope U), then what the quantized predecessor makes of them: the
    caller calibrates a sub-model before it asks for the next.
    """
    # Batches kept in files are on the CPU; `encode` moves images itself.
    device = model.context.device
    inputs = [b.latent.to(device) if scope == "U" else b.image for b in batches]
    subs = sub_models(model, scope)
    for sub in subs:
        yield sub, inputs, [(x, sub.target(b)) for x, b in zip(inputs, batches, strict=True)]
        if sub is not subs[-1]:
            with torch.no_grad():
                inputs = [sub.run(x) for x in inputs]
            give_back_freed_memory()


def first_images(inputs: Sequence[Tensor], count: int) -> Tensor:
    """The first `count` images of the batches as one tensor; later batches are not read."""
    found = []
    for batch in inputs:
        if count > 0:
            found.append(batch[:count])
        count -= len(batch)
    return torch.cat(found)


def mse_to(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error; a target that was kept in a file is brought to the output's device."""
    return nn.functional.mse_loss(output, target.to(output.device))


def output_loss(sub: SubModel) -> Callable[[tuple[Tensor, Tensor]], Tensor]:
    """MSE between the sub-model's output and the float teacher's, of one (input, target) pair."""
    return lambda pair: mse_to(sub.run(pair[0]), pair[1])


def parts_of(sub: SubModel) -> list[nn.Module]:
    """Quantized layers and attentions of a sub-model."""
    return [part for module in sub.modules for part in quantized_modules(module)]


def softmax_quantizers(sub: SubModel) -> set[Quantizer]:
    """The quantizers of P, one per attention: their inputs are in [0, 1] and mostly near 0."""
    return {p.p for p in parts_of(sub) if isinstance(p, QuantizedAttention)}


def sub_quantizers(sub: SubModel) -> list[Quantizer]:
    """Quantizers of a sub-model."""
    return [q for module in sub.modules for q in quantizers(module)]


@contextlib.contextmanager
def _all(contexts: Sequence[contextlib.AbstractContextManager]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def _once_per_call(function: Callable[..., None]) -> Callable[..., None]:
    """A function of a sub-model that sets its bounds becomes a stage that a restart does not repeat."""

    @functools.wraps(function)
    def stage(sub: SubModel, *args: Any, **kwargs: Any) -> None:
        bounds = [bound for q in sub_quantizers(sub) for bound in (q.lower, q.upper)]
        once(f"{sub.name}.ranges", bounds, lambda: function(sub, *args, **kwargs))

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
init_ranges = _once_per_call(set_ranges)


def _quantize_weights(sub: SubModel) -> None:
    for part in parts_of(sub):
        if isinstance(part, QuantizedLayer):
            part.weight_quantizer.phase = Phase.QUANTIZED


@contextlib.contextmanager
def weights_only(sub: SubModel) -> Iterator[None]:
    """Run the sub-model with quantized weights and float activations."""
    with _all([as_float(m) for m in sub.modules]):
        _quantize_weights(sub)
        yield


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


def quantize_model(
    method: Method,
    model: OneStepSR,
    scheme: Scheme,
    scope: str,
    batches: Sequence[CalibrationBatch],
    seed: int = 0,
) -> tuple[OneStepSR, FitLog, list[SwapRow]]:
    """prepare, calibrate and freeze; the same for every method. `seed`: of all random numbers drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prepared, report = method.prepare(model, scheme, scope)
        watch(prepared)
        log = method.calibrate(prepared, batches, scope)
    freeze(prepared)
    return prepared, log, report
