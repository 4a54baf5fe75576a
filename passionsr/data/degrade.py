"""The degradation that makes LR images from HR images: seeded and deterministic to the byte."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """Ranges a seeded draw picks from: blur sigma (HR px), noise std (of 255), JPEG quality."""

    blur: tuple[float, float] = (0.2, 1.2)
    noise: tuple[float, float] = (0.0, 6.0)
    jpeg: tuple[int, int] = (70, 98)


def rng_for(*key: object) -> np.random.Generator:
    """A generator that depends only on `key` (hashed as text), never on call order."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def degrade(
    hr: np.ndarray, rng: np.random.Generator, scale: int, ranges: Degradation | None = None
) -> np.ndarray:
    """Blur, bicubic / scale, noise, JPEG: (H, W, 3) uint8 -> (H / scale, W / scale, 3) uint8.

    Raises ValueError if H or W is not a multiple of `scale`.
    """
    from scipy.ndimage import gaussian_filter  # a quarter of a second, which lists do not need

    ranges = ranges or Degradation()
    height, width = hr.shape[:2]
    if height % scale or width % scale:
        raise ValueError(f"HR size {width}x{height} is not a multiple of {scale}")
    sigma = rng.uniform(*ranges.blur)
    blurred = gaussian_filter(hr.astype(np.float32), (sigma, sigma, 0), mode="nearest")
    small = Image.fromarray(np.rint(blurred).clip(0, 255).astype(np.uint8)).resize(
        (width // scale, height // scale), Image.Resampling.BICUBIC
    )
    std = rng.uniform(*ranges.noise)
    noisy = np.asarray(small, dtype=np.float64) + rng.normal(0.0, 1.0, (*small.size[::-1], 3)) * std
    stream = io.BytesIO()
    quality = int(rng.integers(ranges.jpeg[0], ranges.jpeg[1] + 1))
    Image.fromarray(np.rint(noisy).clip(0, 255).astype(np.uint8)).save(
        stream, format="JPEG", quality=quality
    )
    with Image.open(stream) as decoded:
        return np.asarray(decoded.convert("RGB"))
