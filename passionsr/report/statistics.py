"""Means, intervals, paired differences and marks of score rows. No torch.

A cell of a table is the mean of the scores of all images and seeds of its row. Both factors are
samples: other images and other seeds of the same kind would move the mean. With scores y[s, i] of
S seeds and I images the two-way random-effects model y = mean + seed + image + rest gives

    var(mean) = (MS_seed + MS_image - MS_rest) / (S I),

the mean squares of a two-way analysis of variance without replication (Satterthwaite, 1946;
Clark, 1973, for items and subjects). We never let it fall below MS_seed / (S I) or
MS_image / (S I), which are what is left where one factor dominates. A t distribution gives the
interval; its degrees of freedom are Satterthwaite's, 1 / (w^2 / (S - 1) + (1 - w)^2 / (I - 1)) with
w = MS_seed / (MS_seed + MS_image), in which both mean squares stand at the upper end of their own
90 % interval: three seeds say little about how much seeds matter, so where they may dominate, the
interval is that of S - 1 degrees of freedom. (With the plain estimates three seeds miss the true
mean in 7 % of cases.) A p value is compared with limits far below 5 % once many are looked at, and
so far out estimated degrees of freedom are too many: it takes min(S, I) - 1, the fewest that are
possible. tests/report/test_statistics.py simulates both: at most 6 % of intervals and of p values
call a difference what is none, for 3, 5 and 10 seeds, whichever factor dominates, and at most 6 %
of tables without any difference get a mark.

Two rows are compared by their paired difference: the same images and the same seeds on both sides,
so that what makes an image hard for all methods cancels. Rows of different seeds are never paired.
One seed says nothing about seeds: then the interval is over images alone, and there is no p value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from passionsr.metrics.registry import METRICS

CONFIDENCE = 0.95
FALSE_DISCOVERIES = 0.05  # share of a table's marked differences that may be none
MEAN_SQUARE_QUANTILE = 0.1  # a mean square's upper 90 % bound: divided by this quantile of chi2


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and images.

    Attributes:
        mean: of all values.
        low: lower end of its 95 % interval; NaN of a single value.
        high: upper end.
        p: two-sided p value of "the mean is 0"; NaN with a single seed.
        seeds: how many.
        images: how many.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    images: int


def mark_best(
    group: pd.DataFrame, metrics: Sequence[str], shares: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Boolean frame: True where a row is best of its group, by the digits that are printed.

    shares: like `group`, which part of a row's scores is there; only rows with the largest compete.
    """
    marks = pd.DataFrame(False, index=group.index, columns=list(metrics))
    for name in metrics:
        column = group[name].round(METRICS[name].digits)
        if shares is not None:
            column = column.where(shares[name] == shares[name].max())
        if column.notna().any():
            best = column.min() if METRICS[name].lower_better else column.max()
            marks[name] = column == best
    return marks


def by_seed_and_image(rows: pd.DataFrame) -> pd.DataFrame:
    """Score rows of one metric, method, bit width, scope and dataset -> (seeds, images).

    Images without a number under some of the seeds are left out.
    """
    table = rows.pivot_table("value", "seed", "image", dropna=False).sort_index()
    return table.dropna(how="all").dropna(axis="columns")


def _mean_square(means: np.ndarray, repeated: int) -> float:
    """Mean square of a factor from the means of its levels; 0 of a single level."""
    return float(repeated * means.var(ddof=1)) if len(means) > 1 else 0.0


def _upper(mean_square: float, degrees: int) -> float:
    """The upper end of the one-sided 90 % interval of a mean square's expectation."""
    return mean_square * degrees / special.chdtri(degrees, 1 - MEAN_SQUARE_QUANTILE)


def estimate(values: np.ndarray) -> Estimate:
    """Mean, interval and p value over both factors; see this module's text.

    Args:
        values: (seeds, images), a score or a paired difference of scores each; no NaN.

    Raises:
        ValueError: there is no value.
    """
    seeds, images = values.shape
    if not values.size:
        raise ValueError("no values: the rows share no image")
    mean = float(values.mean())
    per_seed, per_image = values.mean(1), values.mean(0)
    seed_ms, image_ms = _mean_square(per_seed, images), _mean_square(per_image, seeds)
    rest_df = (seeds - 1) * (images - 1)
    rest = values - per_seed[:, None] - per_image[None, :] + mean
    rest_ms = float((rest**2).sum() / rest_df) if rest_df else 0.0
    variance = max(seed_ms, image_ms, seed_ms + image_ms - rest_ms) / values.size
    if values.size == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, seeds, images)
    degrees = _degrees_of_freedom(seed_ms, image_ms, seeds, images)
    half = special.stdtrit(degrees, (1 + CONFIDENCE) / 2) * math.sqrt(variance)
    return Estimate(
        mean, mean - half, mean + half, _p_value(mean, variance, seeds, images), seeds, images
    )


def _p_value(mean: float, variance: float, seeds: int, images: int) -> float:
    if seeds == 1:
        return math.nan
    if not variance:
        return float(mean == 0)
    degrees = (seeds if images == 1 else min(seeds, images)) - 1
    return float(2 * special.stdtr(degrees, -abs(mean) / math.sqrt(variance)))


def _degrees_of_freedom(seed_ms: float, image_ms: float, seeds: int, images: int) -> float:
    if seeds == 1 or images == 1:
        return max(seeds, images) - 1
    seed_part, image_part = _upper(seed_ms, seeds - 1), _upper(image_ms, images - 1)
    if seed_part + image_part == 0:
        return min(seeds, images) - 1
    share = seed_part / (seed_part + image_part)
    return 1 / (share**2 / (seeds - 1) + (1 - share) ** 2 / (images - 1))


def paired(rows: pd.DataFrame, other: pd.DataFrame) -> Estimate | None:
    """The difference of two rows of a table, rows - other.

    Args:
        rows: score rows of one metric, method, bit width, scope and dataset.
        other: those of the row that is subtracted, of the same metric and dataset.

    Returns:
        None if the rows cannot be paired: their seeds differ, or they share no image.
    """
    ours, theirs = by_seed_and_image(rows), by_seed_and_image(other)
    images = ours.columns.intersection(theirs.columns)
    if list(ours.index) != list(theirs.index) or images.empty:
        return None
    return estimate((ours[images] - theirs[images]).to_numpy())


def differ_in_seeds(rows: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two rows cannot be paired because their scores have other seeds."""
    return set(rows.seed) != set(other.seed)


def p_to_best(p: float, compared: int) -> float:
    """The p value of a difference to the best of `compared` rows.

    Which row is best was decided by the same numbers: all compared (compared - 1) / 2 pairs were
    looked at, and compared - 1 of them are shown, so the p value is multiplied by their ratio.
    """
    return float(np.minimum(1.0, p * compared / 2))  # NaN stays


def adjusted(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Values adjusted for their number (Benjamini and Hochberg, 1995); NaN stays.

    Those up to FALSE_DISCOVERIES are called decided; of these, 5 % at most are expected to be
    false.
    """
    from scipy.stats import false_discovery_control  # imports much; nothing else here needs it

    found = np.array(p_values, dtype=float)
    there = ~np.isnan(found)
    if there.any():
        found[there] = false_discovery_control(found[there])
    return found
