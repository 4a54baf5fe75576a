"""Range searches: the bounds that minimise mean |x_hat - x|^2.4 over a list of candidates.

Each takes rows (ranges, elements) and a spec, and returns (lower, upper), each (ranges,). The first
of equal candidates wins. A single long row is condensed to a histogram first; its minimum and
maximum stay exact. Where no candidate has a finite error, because values are not finite or so large
that the power overflows, the bounds are the minimum and maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from passionsr.quantization.functional import dequantize, piece_size, quantize
from passionsr.quantization.spec import Form, QuantSpec

RangeSearch = Callable[[Tensor, QuantSpec], tuple[Tensor, Tensor]]
POWER = 2.4
BINS = 8192


def _condense(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Values and their weights; a histogram in place of one row longer than BINS."""
    if rows.shape[0] > 1 or rows.shape[1] <= BINS:
        return rows, None
    low, high = torch.aminmax(rows)
    if not (low < high and torch.isfinite(high - low)):  # constant, or not to be divided into bins
        return rows[:, :1], None
    counts = _histogram(rows.float(), float(low), float(high))
    edges = torch.linspace(float(low), float(high), BINS + 1, dtype=rows.dtype, device=rows.device)
    used = counts > 0
    centres = ((edges[1:] + edges[:-1]) / 2)[used]
    return centres[None], counts[used].to(rows.dtype)[None] / rows.shape[1]


def _histogram(rows: Tensor, low: float, high: float) -> Tensor:
    """Counts of the values of a row (1, elements) in BINS equal bins from `low` to `high`."""
    if rows.device.type == "cpu":
        return torch.histc(rows, BINS, low, high)
    # On a GPU deterministic mode refuses histc; counting integers needs no order.
    bins = ((rows[0] - low) / (high - low) * BINS).long().clamp_(0, BINS - 1)
    return torch.bincount(bins, minlength=BINS).to(rows.dtype)


def _score(
    values: Tensor, weights: Tensor | None, lower: Tensor, upper: Tensor, levels: int
) -> Tensor:
    """Mean |x_hat - x|^POWER of each candidate, (ranges, candidates).

    values: (ranges, elements). weights: the same, or None. lower, upper: (ranges, candidates).
    """
    x, low, high = values[:, None, :], lower[..., None], upper[..., None]
    rounded = dequantize(
        quantize(x, low, high, levels, Form.AFFINE), low, high, levels, Form.AFFINE
    )
    error = rounded.sub_(x).abs_().pow_(POWER)
    return error.mean(-1) if weights is None else (error * weights[:, None, :]).sum(-1)


def _best(
    rows: Tensor, levels: int, tables: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The best of candidate bounds, which come in tables of (ranges, candidates)."""
    values, weights = _condense(rows)
    best = torch.full_like(rows[:, :1], torch.inf)
    lower, upper = torch.zeros_like(best), torch.zeros_like(best)
    height, width = _block(values)
    for table in tables:
        for low_i, high_i, values_i, best_i, lower_i, upper_i in zip(
            *(t.split(height) for t in (*table, values, best, lower, upper)), strict=True
        ):
            for low, high in zip(low_i.split(width, 1), high_i.split(width, 1), strict=True):
                score, index = _score(values_i, weights, low, high, levels).min(1, keepdim=True)
                better = score < best_i
                best_i.copy_(torch.where(better, score, best_i))
                lower_i.copy_(torch.where(better, low.gather(1, index), lower_i))
                upper_i.copy_(torch.where(better, high.gather(1, index), upper_i))
    low, high = torch.aminmax(rows, dim=1, keepdim=True)
    found = best.isfinite()
    return torch.where(found, lower, low)[:, 0], torch.where(found, upper, high)[:, 0]


def _block(values: Tensor) -> tuple[int, int]:
    """(ranges, candidates) to score at a time: with their elements about one piece."""
    ranges, elements = values.shape
    size = max(1, piece_size(values) // elements)
    height = min(ranges, size)
    return height, max(1, size // height)


def shrink_search(rows: Tensor, spec: QuantSpec, from_zero: bool = False) -> tuple[Tensor, Tensor]:
    """The search of Q-Diffusion's and EfficientDM's code: (min, max) times 1 - 0.01 i, i = 0..79.

    from_zero: the range starts at 0, for softmax outputs (`always_zero`).
    """
    factors = 1 - 0.01 * torch.arange(80, dtype=rows.dtype, device=rows.device)
    low = torch.zeros_like(rows[:, 0]) if from_zero else rows.amin(1)
    lower, upper = low[:, None] * factors, rows.amax(1)[:, None] * factors
    return _best(rows, spec.levels, [(lower, upper)])


def symmetric_search(rows: Tensor, spec: QuantSpec, candidates: int = 100) -> tuple[Tensor, Tensor]:
    """PTQ4DM's 1-D search: [-t, t] with t = max|x| i / candidates, i = 1..candidates.

    It is [0, t] where no value of the whole tensor is negative, and [-t, 0] where none is positive.
    """
    # In this order: the zero point -t / scale is an exact half, and float rounding decides its
    # side.
    steps = torch.arange(1, candidates + 1, dtype=rows.dtype, device=rows.device)
    t = rows.abs().amax(1)[:, None] / candidates * steps
    zero = torch.zeros_like(t)
    lower = zero if rows.amin() >= 0 else -t
    upper = zero if rows.amax() <= 0 else t
    return _best(rows, spec.levels, [(lower, upper)])


def two_sided_search(rows: Tensor, spec: QuantSpec, candidates: int = 100) -> tuple[Tensor, Tensor]:
    """PTQ4DM's 2-D search: each width (max - min) i / candidates with each zero point.

    Of a one-sided tensor it is the 1-D search.
    """
    if rows.amin() >= 0 or rows.amax() <= 0:
        return symmetric_search(rows, spec, candidates)
    low, high = rows.amin(1), rows.amax(1)
    zero_points = torch.arange(spec.levels + 1, dtype=rows.dtype, device=rows.device)

    def tables() -> Iterable[tuple[Tensor, Tensor]]:
        for i in range(1, candidates + 1):
            width = ((high - low) / candidates * i)[:, None]
            shift = zero_points * (width / spec.levels)
            yield -shift, width - shift

    return _best(rows, spec.levels, tables())
