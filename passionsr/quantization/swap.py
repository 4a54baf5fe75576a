"""Finding layers by name and swapping them for quantized ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from passionsr.models.one_step import OneStepSR
from passionsr.quantization.attention import AttentionConfig, QuantizedAttention
from passionsr.quantization.layer import LayerConfig, QuantizedLayer
from passionsr.utils.files import UserError


@dataclass(frozen=True)
class SwapRow:
    """One module of the scope; bits are None for what stays float."""

    name: str
    kind: str
    weight_bits: int | None
    act_bits: int | None
    split: int
    let: bool


def match_layers(model: OneStepSR, scope: str) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    """(name, module) of every Conv2d and Linear of the scope, in registration order."""
    parts = model.family.scope_parts(scope)
    return [
        (name, module)
        for name, module in model.named_modules()
        if name.split(".")[0] in parts and isinstance(module, (nn.Conv2d, nn.Linear))
    ]


def match_attention(model: OneStepSR) -> list[tuple[str, nn.Module]]:
    """(name, module) of the attentions whose products are quantized; the family chooses them."""
    return model.family.attentions(model)


def match_patterns(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """Names matched by shell-style patterns; UserError if a pattern matches nothing."""
    matched: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatchcase(name, pattern)}
        if not hits:
            raise UserError(f"the 8-bit pattern {pattern!r} matches no layer of this model")
        matched |= hits
    return matched


def layers_in_set(model: OneStepSR, scope: str, name: str) -> set[str]:
    """Names of the scope's layers in one of the family's layer sets, such as "passionsr".

    Raises UserError for an unknown set and for a pattern of it that matches no layer.
    """
    patterns = model.family.layer_set(name)
    names = [layer for layer, _ in match_layers(model, scope)]
    parts = model.family.scope_parts(scope)
    return match_patterns(names, [p for part in parts for p in patterns.get(part, ())])


def _replace(root: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, new)


def swap_layers(
    model: OneStepSR,
    scope: str,
    configure: Callable[[str, nn.Conv2d | nn.Linear], LayerConfig | None],
) -> list[SwapRow]:
    """Replace the layers of the scope in place by what `configure` gives; None leaves one float."""
    rows = []
    for name in [name for name, _ in match_layers(model, scope)]:
        # One at a time: a list of them would keep every float weight alive.
        layer = model.get_submodule(name)
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        config = configure(name, layer)
        if config is None:
            rows.append(SwapRow(name, type(layer).__name__, None, None, 0, False))
            continue
        _replace(model, name, QuantizedLayer(layer, config))
        rows.append(
            SwapRow(
                name,
                type(layer).__name__,
                config.weight_bits,
                config.act_bits,
                config.split,
                config.let,
            )
        )
    return rows


def swap_attention(
    model: OneStepSR, configure: Callable[[str, nn.Module], AttentionConfig]
) -> list[SwapRow]:
    """Give every attention of `match_attention` a quantizing processor, in place."""
    rows = []
    attention: Any
    for name, attention in match_attention(model):
        config = configure(name, attention)
        attention.set_processor(QuantizedAttention(config).to(model.context.device))
        rows.append(SwapRow(name, "attention", None, config.act_bits, 0, config.let))
    return rows
