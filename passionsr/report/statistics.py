"""Means, best marks and bootstrap intervals of score rows. No torch.

A cell of a table is the mean of the scores of all images and seeds of its row. Its interval says
how far that mean would move with other images and other seeds of the same kind: a percentile
bootstrap (Efron, 1979) draws, 2000 times, as many images and as many seeds as there are, with
replacement, and takes the mean of the scores of the drawn images under the drawn seeds; the
interval holds the middle 95 % of these means. Two methods are compared by the same bootstrap of
their difference: both get the same drawn images and seeds (a paired bootstrap), so that what makes
an image hard for all methods cancels. If the interval of the difference holds 0, the difference is
called noise.

Where a metric could not score every image, a mean and its interval stand on the images that have a
score, and a comparison on those that have one in both rows. A row that has fewer of its scores than
its neighbours is never marked best: its mean is about other images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from passionsr.metrics.registry import METRICS

DRAWS = 2000  # bootstrap repetitions


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


def resampled_means(group: pd.DataFrame, draws: int = DRAWS) -> pd.DataFrame:
    """Bootstrap means of one metric: (draws, methods), images and seeds drawn with replacement.

    The same images and the same seeds are drawn for every method, so differences between columns
    are paired: a seed means the same order of the calibration images for all of them.

    Args:
        group: score rows of one metric, bit width, scope and dataset; every method has some score
            of every image (`on_shared_images`).
        draws: number of bootstrap repetitions.
    """
    cube = group.pivot_table("value", ["method", "seed"], "image", sort=False).sort_index()
    counts = cube.groupby(level="method").size()
    rng = np.random.default_rng(0)
    images = rng.integers(0, cube.shape[1], (draws, cube.shape[1]))
    drawn = {n: rng.integers(0, n, (draws, n)) for n in sorted(set(counts))}
    means = {}
    for method in dict.fromkeys(group.method):
        values = cube.loc[method].to_numpy()  # (seeds, images)
        seeds = drawn[len(values)]
        picked = values[seeds[:, :, None], images[:, None, :]]
        if np.isnan(values).any():  # an image has no score under some of the seeds
            there = ~np.isnan(picked)
            total = np.where(there, picked, 0).sum((1, 2))
            with np.errstate(invalid="ignore"):  # a draw of such images and seeds alone: NaN
                means[method] = total / there.sum((1, 2))
        else:
            means[method] = picked.mean((1, 2))
    return pd.DataFrame(means)


def interval(draws: pd.Series) -> tuple[float, float]:
    """The middle 95 % of bootstrap draws, those without a value left out: (lower, upper)."""
    low, high = np.percentile(draws.dropna(), [2.5, 97.5])
    return float(low), float(high)


def on_shared_images(rows: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The rows of these methods on the images of which each of them has a score.

    rows: score rows of one metric, without those that have no value.
    """
    own = rows[rows.method.isin(methods)]
    having = own.groupby("image", sort=False).method.nunique()
    return own[own.image.isin(having.index[having == len(set(methods))])]


def intervals(
    scores: pd.DataFrame, metric: str, best: Sequence[str]
) -> dict[str, tuple[float, float, bool]]:
    """Method -> (lower, upper, within noise) of one group of score rows.

    lower, upper: 95 % bootstrap interval of the mean over images and seeds. Within noise: the 95 %
    interval of the paired difference to the best method holds 0.

    Args:
        scores: rows of one bit width, scope and dataset.
        metric: of these rows.
        best: the best methods by the printed mean; the first is compared with.
    """
    rows = scores[(scores.metric == metric) & scores.value.notna()]
    if rows.empty:
        return {}
    methods = [str(method) for method in dict.fromkeys(rows.method)]
    complete = len(on_shared_images(rows, methods)) == len(rows)
    together = resampled_means(rows) if complete else None

    def drawn(*some: str) -> pd.DataFrame:
        """Bootstrap means of these methods on the images that all of them have; may be empty."""
        if together is not None:
            return together
        own = on_shared_images(rows, some)
        return pd.DataFrame() if own.empty else resampled_means(own)

    result = {}
    for method in methods:
        noise = False
        if best and method not in best and best[0] in methods:
            pair = drawn(method, best[0])
            if not pair.empty:
                low, high = interval(pair[method] - pair[best[0]])
                noise = low <= 0 <= high
        result[method] = (*interval(drawn(method)[method]), noise)
    return result
