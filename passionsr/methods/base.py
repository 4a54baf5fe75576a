"""The Method protocol, the registry, and what every method shares."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Literal, Protocol, get_args

import torch
from torch import nn

from passionsr.calibration.batches import CalibrationBatch
from passionsr.calibration.checkpoints import watch
from passionsr.calibration.fit import FitLog
from passionsr.models.one_step import OneStepSR
from passionsr.quantization.attention import AttentionConfig
from passionsr.quantization.layer import LayerConfig
from passionsr.quantization.modules import freeze, keep_weights
from passionsr.quantization.spec import Scheme
from passionsr.quantization.swap import (
    SwapRow,
    layers_in_set,
    swap_attention,
    swap_layers,
)
from passionsr.utils.files import UserError


class Method(Protocol):
    """A quantization method: one file, one line in config/methods.yaml."""

    def prepare(
        self, model: OneStepSR, scheme: Scheme, scope: str
    ) -> tuple[OneStepSR, list[SwapRow]]:
        """A copy of the float model with layers swapped; `model` itself is changed only where it is `low_memory`."""
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


Exceptions = Literal["passionsr", "native"]


EXCEPTIONS = get_args(Exceptions)


def quantized_copy(
    model: OneStepSR,
    scheme: Scheme,
    scope: str,
    configure: Callable[[str, nn.Module, int, int], LayerConfig | None],
    attention: Callable[[str, nn.Module], AttentionConfig] | None,
    eight_bit: str | None = "passionsr",
) -> tuple[OneStepSR, list[SwapRow]]:
    """A float copy of `model` with the scope's layers and the UNet's attentions swapped.

    A low_memory model is given up by its caller and swapped in place: no second copy of the weights.

    configure: (name, layer, weight bits, activation bits) -> config, None to leave a layer float. The bits are
    the scheme's, and at least 8 in the family's layer set `eight_bit` (None: no such layers). attention: None leaves the products float.
    """
    copy = (model if model.low_memory else deepcopy(model)).eval().requires_grad_(False)
    if copy.low_memory:
        for part in copy.family.parts:
            getattr(copy, part).enable_gradient_checkpointing()
    exceptions = layers_in_set(copy, scope, eight_bit) if eight_bit else set()

    def layer(name: str, module: nn.Module) -> LayerConfig | None:
        least = 8 if name in exceptions else 0
        bits = max(least, scheme.weight_bits), max(least, scheme.act_bits)
        return configure(name, module, *bits)

    report = swap_layers(copy, scope, layer)
    if attention is not None:
        report += swap_attention(copy, attention)
    keep_weights(copy, not copy.low_memory)
    return copy, report


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
