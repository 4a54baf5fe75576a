"""What a calibrated model looks like inside."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from passionsr.models.one_step import OneStepSR
from passionsr.quantization.layer import QuantizedLayer
from passionsr.quantization.modules import as_float
from passionsr.quantization.quantizer import Phase, Quantizer

SENSITIVITY_COLUMNS = ("layer", "weight_bits", "act_bits", "psnr_fp")
RANGE_COLUMNS = ("layer", "channel", "lower", "upper", "let_lower", "let_upper")


@torch.no_grad()
def let_ranges(model: OneStepSR, image: Tensor) -> list[dict[str, Any]]:
    """Per layer and input channel: the range of x and of (x - o) / s on one batch.

    Args: image: (N, 3, H, W) upscaled LR. Returns no rows for a model without LET.
    """
    rows: list[dict[str, Any]] = []

    def record(name: str, layer: QuantizedLayer, x: Tensor) -> None:
        axis = 1 if layer.is_conv else x.ndim - 1
        dims = [d for d in range(x.ndim) if d != axis]
        before = x.amin(dims), x.amax(dims)
        assert layer.transform is not None
        after = layer.transform.input(x)
        values = zip(*before, after.amin(dims), after.amax(dims), strict=True)
        for channel, row in enumerate(values):
            rows.append(dict(zip(RANGE_COLUMNS, (name, channel, *map(float, row)), strict=True)))

    handles = [
        part.register_forward_pre_hook(lambda layer, args, name=name: record(name, layer, args[0]))
        for name, part in model.named_modules()
        if isinstance(part, QuantizedLayer) and part.transform is not None
    ]
    try:
        if handles:
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return rows


@torch.no_grad()
def sensitivity(model: OneStepSR, image: Tensor) -> list[dict[str, Any]]:
    """PSNR (dB) to the float output when one layer alone is quantized, for every quantized layer.

    Args: model: prepared and calibrated but not frozen. image: (N, 3, H, W) upscaled LR.
    """
    rows = []
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, QuantizedLayer)]
    with as_float(model):
        reference = model(image)
        for name, layer in layers:
            own = [m for m in layer.children() if isinstance(m, Quantizer)]
            for quantizer in own:
                quantizer.phase = Phase.QUANTIZED
            error = float((model(image) - reference).square().mean())
            for quantizer in own:
                quantizer.phase = Phase.FLOAT
            psnr = -10 * math.log10(max(error, 1e-12))
            config = layer.config
            values = (name, config.weight_bits, config.act_bits, psnr)
            rows.append(dict(zip(SENSITIVITY_COLUMNS, values, strict=True)))
    return rows


def model_bytes(model: OneStepSR) -> int:
    """Bytes of a frozen model with its codes packed: bits per weight, and 32 for what stays float.

    Scales, LET's vectors, the 8-bit exceptions and unquantized layers are all counted; the constant
    context is not.
    """
    bits, counted = 0, set()
    for part in model.modules():
        if isinstance(part, QuantizedLayer):
            width = part.config.weight_bits
            for codes in (part.weight_codes, part.bias_codes):
                if codes is not None:
                    bits += codes.numel() * width
                    counted.add(id(codes))
    tensors = [*model.parameters(), *(b for n, b in model.named_buffers() if n != "context")]
    bits += sum(t.numel() * t.element_size() * 8 for t in tensors if id(t) not in counted)
    return -(-bits // 8)
