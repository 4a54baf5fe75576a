"""The Method protocol, the registry, and what every method shares."""

from __future__ import annotations

import dataclasses
import importlib
import types
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Literal, Protocol, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn

from passionsr.calibration.batches import CalibrationBatch
from passionsr.calibration.checkpoints import Checkpoints, NoCheckpoints
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
    """A quantization method: one file, one entry of config/methods.yaml.

    A method is a frozen dataclass whose fields are its options. It does two things: `prepare` swaps
    layers, `calibrate` sets and trains what the swapped layers hold. `quantize_model` calls them in
    turn.
    """

    def prepare(
        self, model: OneStepSR, scheme: Scheme, scope: str
    ) -> tuple[OneStepSR, list[SwapRow]]:
        """A copy of the float model with quantized layers, and one row per module of the scope.

        `model` itself is changed only where it is `low_memory`. See `quantized_copy`.
        """
        ...

    def calibrate(
        self,
        model: OneStepSR,
        batches: Sequence[CalibrationBatch],
        scope: str,
        checkpoints: Checkpoints,
    ) -> FitLog:
        """Set ranges and train, in place, what `prepare` returned.

        checkpoints: is handed to every range pass (`init_ranges`) and fit stage (`FitStage.of`), so
        that a restarted calibration does not repeat those that were finished.
        """
        ...


def option(default: Any, text: str, **official: Any) -> Any:
    """A field of a method's dataclass: default, what it does, `official=` the released value."""
    return dataclasses.field(default=default, metadata={"help": text, **official})


def choices(hint: Any) -> tuple[Any, ...] | None:
    """The values that a type hint allows, where it lists them: Literal, bool, or a union of those.

    >>> choices(bool | Literal["sample"])
    (True, False, 'sample')
    """
    if hint is bool:
        return True, False
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        found = [choices(part) for part in get_args(hint)]
        return None if None in found else tuple(v for values in found for v in values or ())
    return None


def check_choices(options: object) -> None:
    """UserError unless each field of a method has one of the values that its type lists."""
    for name, hint in get_type_hints(type(options)).items():
        allowed, given = choices(hint), getattr(options, name)
        if allowed is not None and not any(given is v or given == v for v in allowed):
            raise UserError(
                f"{name} {given!r} is unknown: give one of {', '.join(map(str, allowed))}"
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
            f"{target}: unknown option {', '.join(unknown)}; "
            f"known: {', '.join(sorted(known)) or 'none, it has no options'}"
        )
    return cls(**(options or {}))


# Which layers have 8 bits: PassionSR's for every method, or those of the method's own code.
Exceptions = Literal["passionsr", "native"]


def quantized_copy(
    model: OneStepSR,
    scheme: Scheme,
    scope: str,
    configure: Callable[[str, nn.Conv2d | nn.Linear, int, int], LayerConfig | None],
    attention: Callable[[str, Any], AttentionConfig] | None,
    eight_bit: str | None = "passionsr",
) -> tuple[OneStepSR, list[SwapRow]]:
    """A float copy of `model` with the scope's layers and the UNet's attentions swapped.

    A low_memory model is given up by its caller and swapped in place: no second copy of the
    weights.

    Args:
        model: the float model.
        scheme: weight and activation bits.
        scope: which parts of the model.
        configure: (name, layer, weight bits, activation bits) -> config, None to leave a layer
            float. The bits are the scheme's, and at least 8 in the layer set `eight_bit`.
        attention: (name, attention) -> config; None leaves the products float.
        eight_bit: name of a layer set of the model's family; None: no layer has at least 8 bits.
    Returns: the copy, and one row per module of the scope.
    """
    copy = (model if model.low_memory else deepcopy(model)).eval().requires_grad_(False)
    if copy.low_memory:
        for part in copy.family.parts:
            getattr(copy, part).enable_gradient_checkpointing()
    exceptions = layers_in_set(copy, scope, eight_bit) if eight_bit else set()

    def layer(name: str, module: nn.Conv2d | nn.Linear) -> LayerConfig | None:
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
    checkpoints: Checkpoints | None = None,
) -> tuple[OneStepSR, FitLog, list[SwapRow]]:
    """Prepare, calibrate and freeze; the same for every method.

    seed: of all random numbers drawn. checkpoints: of a calibration that may be restarted; None
        keeps nothing.
    Returns: the frozen model, what its fit stages reported, one row per module of the scope.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prepared, report = method.prepare(model, scheme, scope)
        log = method.calibrate(prepared, batches, scope, checkpoints or NoCheckpoints())
    freeze(prepared)
    return prepared, log, report
