"""Finding layers by name and swapping them for quantized ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from passionsr.models.one_step import OneStepSR
from passionsr.quantization.attention import AttentionConfig, QuantizedAttention
from passionsr.quantization.layer import LayerConfig, QuantizedLayer
from passionsr.utils.files import UserError

Scope = Literal["U", "UV"]
SCOPES: dict[str, tuple[str, ...]] = {"U": ("unet",), "UV": ("vae", "unet")}

# PassionSR's 8-bit exceptions (methods.md 8.1), by exact diffusers names.
PASSIONSR_8BIT = {
    "unet": ("unet.time_embedding.linear_1", "unet.conv_out"),
    "vae": (
        "vae.quant_conv",
        "vae.post_quant_conv",
        "vae.encoder.conv_out",
        "vae.decoder.conv_out",
    ),
}


@dataclass(frozen=True)
class SwapRow:
    """One module of the scope; bits are None for what stays float."""

    name: str
    kind: str
    weight_bits: int | None
    act_bits: int | None
    split: int
    let: bool


def check_scope(scope: str) -> tuple[str, ...]:
    """The top-level parts of a scope; UserError for anything but U and UV."""
    if scope not in SCOPES:
        raise UserError(f"scope {scope!r} is unknown: give 'U' (UNet only) or 'UV' (UNet + VAE)")
    return SCOPES[scope]


def match_layers(model: OneStepSR, scope: str) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    """(name, module) of every Conv2d and Linear of the scope, in registration order."""
    parts = check_scope(scope)
    return [
        (name, module)
        for name, module in model.named_modules()
        if name.split(".")[0] in parts and isinstance(module, (nn.Conv2d, nn.Linear))
    ]


def match_attention(model: OneStepSR) -> list[tuple[str, nn.Module]]:
    """(name, module) of the UNet's attentions (the VAE's attention products stay float, methods.md 8.1)."""
    from diffusers.models.attention_processor import Attention

    return [(n, m) for n, m in model.unet.named_modules(prefix="unet") if isinstance(m, Attention)]


def match_patterns(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    """Names matched by shell-style patterns; UserError if a pattern matches nothing."""
    matched: set[str] = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatchcase(name, pattern)}
        if not hits:
            raise UserError(f"the 8-bit pattern {pattern!r} matches no layer of this model")
        matched |= hits
    return matched


def _replace(root: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, new)


def swap_layers(
    model: OneStepSR,
    scope: str,
    configure: Callable[[str, nn.Conv2d | nn.Linear], LayerConfig | None],
) -> list[SwapRow]:
    """Replace the layers of the scope in place; `configure` says how by name, None leaves a layer float."""
    rows = []
    for name in [name for name, _ in match_layers(model, scope)]:
        layer = model.get_submodule(
            name
        )  # one at a time: a list of them would keep every float weight alive
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
    """Give every attention of the UNet a quantizing processor, in place."""
    rows = []
    for name, attention in match_attention(model):
        config = configure(name, attention)
        attention.set_processor(QuantizedAttention(config).to(model.context.device))
        rows.append(SwapRow(name, "attention", None, config.act_bits, 0, config.let))
    return rows
