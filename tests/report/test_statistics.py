"""Intervals and paired comparisons: by hand, and their error rates by simulation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from passionsr.report.statistics import (
    FALSE_DISCOVERIES,
    adjusted,
    by_seed_and_image,
    estimate,
    p_to_best,
    paired,
)


def drawn(rng, seeds, images, spread):
    """Differences without an effect: spread = standard deviations of seeds, images and the rest."""
    of_seeds, of_images, of_rest = spread
    return (
        of_seeds * rng.standard_normal((seeds, 1))
        + of_images * rng.standard_normal((1, images))
        + of_rest * rng.standard_normal((seeds, images))
    )


def rows(values, first_seed=0):
    """(seeds, images) -> score rows."""
    return pd.DataFrame(
        [
            {"seed": first_seed + s, "image": f"i{i}", "value": value}
            for s, row in enumerate(np.asarray(values, dtype=float))
            for i, value in enumerate(row)
        ]
    )


SPREADS = {
    "seeds": (1.0, 0.0, 0.1),
    "seeds, images too": (1.0, 0.3, 0.3),
    "both": (1.0, 1.0, 1.0),
    "images, seeds too": (0.3, 1.0, 0.3),
    "images": (0.0, 1.0, 0.1),
    "neither": (0.1, 0.1, 1.0),
}


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_false_differences_are_at_most_six_in_a_hundred(seeds, spread):
    """4000 differences that are none; the standard error of the rate is 0.35 in a hundred."""
    rng = np.random.default_rng(seeds)
    found = [estimate(drawn(rng, seeds, 10, spread)) for _ in range(4000)]
    assert np.mean([e.p < 0.05 for e in found]) <= 0.06
    assert np.mean([e.low > 0 or e.high < 0 for e in found]) <= 0.06


@pytest.mark.parametrize("spread", [SPREADS["seeds"], SPREADS["images"]], ids=["seeds", "images"])
def test_differences_that_are_there_are_found(spread):
    """An effect of six standard errors is found nearly always, so the test is no constant."""
    rng = np.random.default_rng(1)
    size = 6 * math.hypot(spread[0] / math.sqrt(5), spread[1] / math.sqrt(10))
    found = [estimate(size + drawn(rng, 5, 10, spread)).p < 0.05 for _ in range(300)]
    assert np.mean(found) > 0.95


def test_a_bootstrap_of_three_seeds_would_fail():
    """What was here before: resampling three seeds calls far more than 6 in 100 a difference."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        values = drawn(rng, 3, 10, SPREADS["seeds"])
        seeds, images = rng.integers(0, 3, (500, 3)), rng.integers(0, 10, (500, 10))
        means = values[seeds[:, :, None], images[:, None, :]].mean((1, 2))
        low, high = np.percentile(means, [2.5, 97.5])
        found.append(low > 0 or high < 0)
    assert np.mean(found) > 0.15


def test_intervals_of_many_images_are_no_wider_than_they_must():
    """Where images alone differ, three seeds widen the interval of ten images by a quarter."""
    rng = np.random.default_rng(6)
    ratios = []
    for _ in range(300):
        values = drawn(rng, 3, 10, SPREADS["images"])
        low, high = stats.t.interval(0.95, 9, 0, stats.sem(values.mean(0)))
        found = estimate(values)
        ratios.append((found.high - found.low) / (high - low))
    assert np.median(ratios) < 1.25


@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
def test_tables_without_differences_are_rarely_marked(spread):
    """Seven equal methods, four metrics: the rate of tables with any decided difference.

    The best row is chosen by the same numbers; without `p_to_best` the rate is above the limit.
    """
    rng = np.random.default_rng(2)
    kept = raw = 0
    tables = 300  # standard error of the rate: 1.3 in a hundred at the limit, which is kept
    for _ in range(tables):
        p_values = []
        for _ in range(4):
            methods = [drawn(rng, 3, 10, spread) for _ in range(7)]
            best = max(range(7), key=lambda m, methods=methods: methods[m].mean())
            others = [m for m in range(7) if m != best]
            p_values += [estimate(methods[best] - methods[m]).p for m in others]
        decided = adjusted([p_to_best(p, 7) for p in p_values]) <= FALSE_DISCOVERIES
        kept += decided.any()
        raw += (adjusted(p_values) <= FALSE_DISCOVERIES).any()
    assert kept / tables <= 0.06
    if spread == SPREADS["seeds"]:
        assert raw / tables > 0.06


def test_one_seed_is_the_t_test_of_the_images():
    values = np.random.default_rng(3).normal(0.4, 1, (1, 12))
    found = estimate(values)
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values[0]))
    # The same numbers in another order of operations.
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert math.isnan(found.p)
    assert (found.seeds, found.images) == (1, 12)


def test_one_image_is_the_t_test_of_the_seeds():
    values = np.random.default_rng(4).normal(0.4, 1, (5, 1))
    assert estimate(values).p == pytest.approx(stats.ttest_1samp(values[:, 0], 0).pvalue, rel=1e-12)


def test_where_seeds_alone_differ_it_is_the_t_test_of_their_means():
    values = np.repeat([[1.0], [2.0], [4.0]], 6, axis=1)
    found = estimate(values)
    oracle = stats.ttest_1samp([1.0, 2.0, 4.0], 0)
    assert found.p == pytest.approx(oracle.pvalue, rel=1e-9)
    assert found.high - found.mean == pytest.approx(
        stats.t.ppf(0.975, 2) * stats.sem([1.0, 2.0, 4.0]), rel=1e-9
    )


def test_single_value_and_constant_difference():
    one = estimate(np.array([[2.0]]))
    assert one.mean == 2.0
    assert math.isnan(one.low)
    assert math.isnan(one.p)
    constant = estimate(np.full((3, 4), -0.5))
    assert (constant.low, constant.high, constant.p) == (-0.5, -0.5, 0.0)
    assert estimate(np.zeros((3, 4))).p == 1.0
    with pytest.raises(ValueError, match="share no image"):
        estimate(np.empty((3, 0)))


def test_pairs_share_seeds_and_images():
    base = np.random.default_rng(5).normal(25, 4, (3, 8))
    ours, theirs = rows(base), rows(base - 0.2)
    found = paired(ours, theirs.sample(frac=1, random_state=0))
    # What the images share cancels; what is left of 0.2 is rounding.
    assert (found.low, found.high) == pytest.approx((0.2, 0.2), abs=1e-9)
    assert paired(ours, rows(base, first_seed=1)) is None  # other seeds
    assert paired(ours, rows(base[:2])) is None  # fewer seeds
    assert paired(ours, theirs.assign(image="x" + theirs.image)) is None  # other images


def test_an_image_without_a_number_is_left_out_of_both():
    base = np.arange(12.0).reshape(3, 4)
    ours, theirs = rows(base), rows(base + 1)
    theirs.loc[theirs.image.eq("i2") & theirs.seed.eq(1), "value"] = math.nan
    assert paired(ours, theirs).images == 3
    assert list(by_seed_and_image(theirs).columns) == ["i0", "i1", "i3"]


def test_adjusted_p_values():
    """Benjamini and Hochberg by hand: p * number / rank, never above a later one; NaN stays."""
    found = adjusted([0.01, math.nan, 0.04, 0.03])
    assert found[[0, 2, 3]] == pytest.approx([0.03, 0.04, 0.04])
    assert math.isnan(found[1])
    assert np.isnan(adjusted([math.nan])).all()
    assert p_to_best(0.01, 7) == pytest.approx(0.035)
    assert p_to_best(0.5, 7) == 1.0
    assert math.isnan(p_to_best(math.nan, 7))
