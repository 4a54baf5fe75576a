"""What a calibrated model looks like inside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from passionsr.layers import QuantizedLayer
from passionsr.model import OneStepSR

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
