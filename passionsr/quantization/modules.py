"""Every quantized layer and attention of a model: find, freeze, run as float."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from passionsr.quantization.attention import (
    QuantizedAttention,
)
from passionsr.quantization.layer import (
    QuantizedLayer,
)
from passionsr.quantization.quantizer import Phase, quantizers, set_phase


def quantized_modules(module: nn.Module) -> list[QuantizedLayer | QuantizedAttention]:
    """Every quantized layer and attention below `module`, in registration order."""
    return [m for m in module.modules() if isinstance(m, (QuantizedLayer, QuantizedAttention))]


def keep_weights(module: nn.Module, keep: bool) -> None:
    """Whether the layers below `module` keep their fake-quantized weights between forward passes.

    That is faster and takes twice the memory.
    """
    for part in quantized_modules(module):
        if isinstance(part, QuantizedLayer):
            part.keep_weight = keep


def freeze(module: nn.Module) -> None:
    """Freeze every quantized layer: integer codes instead of weights, no gradient."""
    for quantizer in quantizers(module):
        quantizer.fold_scale_into_bounds()
    for part in quantized_modules(module):
        if isinstance(part, QuantizedLayer):
            part.freeze()
    module.requires_grad_(False)


def freeze_empty(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Freeze every quantized layer for `load_state_dict` of `state`, without computing anything."""
    for quantizer in quantizers(module):
        quantizer.fold_scale_into_bounds()
    saved: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        layer, _, name = key.rpartition(".")
        saved.setdefault(layer, {})[name] = tensor
    for layer, part in module.named_modules():
        if isinstance(part, QuantizedLayer):
            part.freeze_empty(saved.get(layer, {}))


def as_float(module: nn.Module):
    """Context: run `module` with every quantizer passing its input through."""
    return set_phase(module, Phase.FLOAT)
