"""Colour correction against the official code's vectors, and its invariants."""

import numpy as np
import pytest

from passionsr.inference.colour import adain, fix_colour, low_frequencies


@pytest.mark.parametrize("kind", ["adain", "wavelet"])
def test_vectors(shared, kind):
    """8-bit results exactly but for at most 0.1 % of values off by 1 (the vectors' README)."""
    case = np.load(shared / "vectors" / f"cf_{kind}_40x48.npz")
    ours = fix_colour(case["target"], case["source"], kind).astype(int)
    difference = np.abs(ours - case["result"].astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


def test_adain_takes_over_mean_and_deviation():
    rng = np.random.default_rng(0)
    image, source = rng.random((32, 24, 3)), 0.3 + 0.1 * rng.random((32, 24, 3))
    fixed = adain(image, source)
    np.testing.assert_allclose(fixed.mean((0, 1)), source.mean((0, 1)), atol=1e-6)


def test_low_frequencies_keep_a_constant():
    image = np.full((20, 30, 3), 0.25)
    np.testing.assert_allclose(low_frequencies(image), image, atol=1e-12)


def test_bad_arguments():
    image = np.zeros((8, 8, 3), np.uint8)
    assert fix_colour(image, image[:4], "none") is image
    with pytest.raises(ValueError, match="'sepia' is unknown"):
        fix_colour(image, image, "sepia")
    with pytest.raises(ValueError, match=r"image is \(8, 8\) but its input is \(4, 8\)"):
        fix_colour(image, image[:4], "adain")
