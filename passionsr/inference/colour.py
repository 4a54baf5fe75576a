"""Colour correction of the output against the upscaled input, as in OSEDiff."""

from __future__ import annotations

from typing import get_args

import numpy as np

from passionsr.inference.options import ColourFix

COLOUR_FIXES = get_args(ColourFix)
LEVELS = 5


def adain(image: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Give `image` the channel means and deviations of `source`; both (H, W, 3) float32 in [0, 1].

    The deviation is sqrt(unbiased variance + 1e-5).
    """

    def statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = x.mean((0, 1), dtype=np.float64)
        return mean, np.sqrt(x.var((0, 1), dtype=np.float64, ddof=1) + 1e-5)

    mean, deviation = statistics(image)
    target_mean, target_deviation = statistics(source)
    fixed = (image - mean) / deviation * target_deviation + target_mean
    return fixed.astype(np.float32)


def low_frequencies(image: np.ndarray) -> np.ndarray:
    """Five blurs by [1 2 1] / 4 per axis, dilated by 1, 2, 4, 8, 16, edges replicated.

    (H, W, 3).
    """
    from scipy.ndimage import correlate1d  # the default, without a fix, is not to wait for it

    for level in range(LEVELS):
        step = 2**level
        kernel = np.zeros(2 * step + 1)
        kernel[[0, step, -1]] = 0.25, 0.5, 0.25
        for axis in (0, 1):
            image = correlate1d(image, kernel, axis=axis, mode="nearest")
    return image


def wavelet(image: np.ndarray, source: np.ndarray) -> np.ndarray:
    """High frequencies of `image` on the low frequencies of `source`.

    Both (H, W, 3) float32 in [0, 1].
    """
    return image - low_frequencies(image) + low_frequencies(source)


def fix_colour(image: np.ndarray, source: np.ndarray, kind: ColourFix) -> np.ndarray:
    """Correct (H, W, 3) uint8 against the upscaled input of the same size.

    Truncates to 8 bits as OSEDiff does.

    Raises ValueError for an unknown kind or different sizes.
    """
    if kind == "none":
        return image
    if kind not in COLOUR_FIXES:
        raise ValueError(f"colour fix {kind!r} is unknown: give one of {', '.join(COLOUR_FIXES)}")
    if image.shape != source.shape:
        raise ValueError(f"image is {image.shape[:2]} but its input is {source.shape[:2]}")
    scaled = [x.astype(np.float32) / 255 for x in (image, source)]
    fixed = {"adain": adain, "wavelet": wavelet}[kind](*scaled)
    return (fixed.clip(0, 1) * 255).astype(np.uint8)
