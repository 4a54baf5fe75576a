"""Sub-models in the family's calibration order, each on its quantized predecessor's outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TypeVar

import torch
from torch import Tensor, nn

from passionsr.calibration.batches import CalibrationBatch
from passionsr.models.one_step import OneStepSR
from passionsr.quantization.attention import QuantizedAttention
from passionsr.quantization.layer import QuantizedLayer
from passionsr.quantization.modules import as_float, quantized_modules
from passionsr.quantization.quantizer import Phase, Quantizer, quantizers
from passionsr.utils.finite import NonFiniteError, is_finite, where_it_begins
from passionsr.utils.memory import give_back_freed_memory

Part = TypeVar("Part", bound=nn.Module)


@dataclass(frozen=True)
class SubModel:
    """A part of a model that is calibrated on the outputs of its quantized predecessors.

    Attributes:
        name: "encoder", "unet" or "decoder".
        named_modules: what is calibrated, by its name in the model.
        run: input -> output.
        source: the float teacher's input of it, of a batch.
        target: the float teacher's output of it, of a batch.
        block_types: class names of its blocks that block reconstruction trains as one unit.
    """

    name: str
    named_modules: Mapping[str, nn.Module]
    run: Callable[[Tensor], Tensor]
    source: Callable[[CalibrationBatch], Tensor]
    target: Callable[[CalibrationBatch], Tensor]
    block_types: tuple[str, ...]

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """What is calibrated."""
        return tuple(self.named_modules.values())


def sub_models(model: OneStepSR, scope: str) -> list[SubModel]:
    """The sub-models of a prepared model in the parts of a scope (in scope U the UNet alone)."""
    family = model.family
    parts = family.scope_parts(scope)
    return [
        SubModel(
            name=spec.name,
            named_modules={name: model.get_submodule(name) for name in spec.modules},
            run=getattr(model, spec.run),
            source=attrgetter(spec.source),
            target=attrgetter(spec.target),
            block_types=family.block_types,
        )
        for spec in family.sub_models
        if spec.part in parts
    ]


def in_sequence(
    model: OneStepSR, batches: Sequence[CalibrationBatch], scope: str
) -> Iterator[tuple[SubModel, list[Tensor], list[tuple[Tensor, Tensor]]]]:
    """Each sub-model with its inputs, and (input, target) pairs for a fit.

    Inputs are images (float latents in scope U), then what the quantized predecessor makes of them:
    the caller calibrates a sub-model before it asks for the next. Raises UserError where that makes
    NaN or infinite values.
    """
    subs = sub_models(model, scope)
    inputs = [subs[0].source(batch) for batch in batches]
    if subs[0].name != "encoder":  # it moves images itself; batches kept in files are on the CPU
        inputs = [x.to(model.context.device) for x in inputs]
    for sub in subs:
        yield sub, inputs, [(x, sub.target(b)) for x, b in zip(inputs, batches, strict=True)]
        if sub is not subs[-1]:
            with torch.no_grad():
                outputs = [sub.run(x) for x in inputs]
                _check_outputs(model, sub, inputs, outputs)
            inputs = outputs
            give_back_freed_memory()


def _check_outputs(
    model: OneStepSR, sub: SubModel, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> None:
    """UserError where what a calibrated sub-model hands to the next is not finite."""
    for x, output in zip(inputs, outputs, strict=True):
        if not is_finite(output):
            begins = where_it_begins(model, partial(sub.run, x))
            raise NonFiniteError(
                f"{sub.name}: after calibration its outputs hold NaN or infinite values: {begins}; "
                "lower the learning rates, or check the calibration images"
            )


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


def parts_of(sub: SubModel) -> list[QuantizedLayer | QuantizedAttention]:
    """Quantized layers and attentions of a sub-model."""
    return [part for module in sub.modules for part in quantized_modules(module)]


def softmax_quantizers(sub: SubModel) -> set[Quantizer]:
    """The quantizers of P, one per attention: their inputs are in [0, 1] and mostly near 0."""
    return {p.p for p in parts_of(sub) if isinstance(p, QuantizedAttention)}


def sub_quantizers(sub: SubModel) -> list[Quantizer]:
    """Quantizers of a sub-model."""
    return [q for module in sub.modules for q in quantizers(module)]


def named_parts(sub: SubModel, kind: type[Part]) -> Iterator[tuple[str, Part]]:
    """(name in the model, module) of every module of a class in a sub-model."""
    for prefix, root in sub.named_modules.items():
        for name, module in root.named_modules(prefix=prefix):
            if isinstance(module, kind):
                yield name, module


@contextlib.contextmanager
def _all(contexts: Sequence[contextlib.AbstractContextManager]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


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
