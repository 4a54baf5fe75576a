"""The Method protocol, the registry, and what every method shares."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Annotated, Any, Literal, Protocol, get_type_hints

import torch
from pydantic import Field
from torch import nn

from passionsr.calibration.batches import CalibrationBatch
from passionsr.calibration.checkpoints import Checkpoints, NoCheckpoints
from passionsr.calibration.fit import FitLog
from passionsr.methods.declared import option_mistakes
from passionsr.models.one_step import OneStepSR
from passionsr.quantization.attention import AttentionConfig
from passionsr.quantization.layer import LayerConfig
from passionsr.quantization.modules import freeze, keep_weights
from passionsr.quantization.spec import MAX_BITS, MIN_BITS, Scheme
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


# Types of options. Their limits are checked before any job runs (passionsr/methods/declared.py).
Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]  # with 0 nothing is trained
StepSize = Annotated[float, Field(ge=0)]  # of an optimizer
Bits = Annotated[int, Field(ge=MIN_BITS, le=MAX_BITS)]


def check_options(method: object) -> None:
    """UserError unless each field of a method has a value of its type, within its limits."""
    hints = get_type_hints(type(method), include_extras=True)
    names = {field.name for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    options = {name: getattr(method, name) for name in names}
    problems = option_mistakes(options, {name: hints[name] for name in names})
    if problems:
        raise UserError("; ".join(sorted(problems)))


def load_method(target: str, options: dict[str, Any] | None = None) -> Method:
    """Import "module:Class" and build it with `options` (a frozen dataclass's fields).

    Raises UserError for an unknown module, class or option, and for a value that an option cannot
    have.
    """
    module_name, _, class_name = target.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except Exception as err:  # a foreign module can raise anything
        raise UserError(
            f"method {target!r} cannot be imported ({err}); give module:Class"
        ) from None
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise UserError(f"{target} is no quantization method: give a class that is a dataclass")
    hints = get_type_hints(cls, include_extras=True)
    known = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    problems = option_mistakes(options or {}, known)
    if problems:
        raise UserError(f"{target}: {'; '.join(problems)}")
    made: Any = cls(**(options or {}))
    method: Method = made
    return method


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
