"""PNG <-> tensor: the only place that knows uint8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from passionsr.utils.files import UserError, atomic_path
from passionsr.utils.finite import NonFiniteError, is_finite

if TYPE_CHECKING:  # torch takes seconds to import; the jobs data, tables and figures do without
    from torch import Tensor


def read_uint8(path: str | Path) -> np.ndarray:
    """Read an 8-bit RGB image as (H, W, 3) uint8.

    Raises UserError for a missing, unreadable, truncated, grey, palette, alpha or 16-bit file:
    silently converting any of them would change what the metrics measure.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: image not found")
    try:
        with Image.open(path) as image:
            image.load()
            mode = image.mode
            array = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as err:
        raise UserError(f"{path}: cannot be read as an image, perhaps truncated ({err})") from None
    if mode != "RGB" or array.dtype != np.uint8:
        raise UserError(
            f"{path}: image mode is {mode}, expected 8-bit RGB without alpha; convert it first "
            "(for example: Image.open(f).convert('RGB').save(f))"
        )
    return array


def write_uint8(path: str | Path, array: np.ndarray) -> None:
    """Write (H, W, 3) uint8 as PNG, atomically."""
    with atomic_path(path) as tmp:
        Image.fromarray(array).save(tmp, format="PNG")


def to_tensor(array: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [0, 1]."""
    import torch

    return torch.from_numpy(array.copy()).permute(2, 0, 1).unsqueeze(0).float().div(255)


def to_uint8(image: Tensor) -> np.ndarray:
    """(1, 3, H, W) float in [0, 1] -> (H, W, 3) uint8 by truncation, as OSEDiff's code does.

    Raises UserError if the image holds NaN or infinity: the model or its input is broken.
    """
    if not is_finite(image):
        raise NonFiniteError(
            "the output image holds NaN or infinite values; check the model's weights"
        )
    return image[0].clamp(0, 1).mul(255).byte().permute(1, 2, 0).cpu().numpy()


def upscale(lr: np.ndarray, scale: int) -> np.ndarray:
    """(h, w, 3) -> (scale*h, scale*w, 3) uint8 by PIL bicubic: the model's input."""
    height, width = lr.shape[:2]
    size = (width * scale, height * scale)
    return np.asarray(Image.fromarray(lr).resize(size, Image.Resampling.BICUBIC))
