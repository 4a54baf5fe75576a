"""super_resolve: LR array in, SR array out."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from passionsr.images import SCALE, to_tensor, to_uint8, upscale
from passionsr.model import OneStepSR


@torch.no_grad()
def super_resolve(model: OneStepSR, lr: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 -> (4h, 4w, 3) uint8: bicubic x4, model, truncation to 8 bits (methods.md 1.4).

    Sides that the model cannot take are padded by reflection at the right and bottom and cut off again.
    """
    image = to_tensor(upscale(lr))
    height, width = image.shape[2:]
    multiple = model.size_multiple
    pad = (-width % multiple, -height % multiple)
    if any(pad):
        image = F.pad(image, (0, pad[0], 0, pad[1]), mode="reflect")
    out = to_uint8(model(image))
    return out[: lr.shape[0] * SCALE, : lr.shape[1] * SCALE]
