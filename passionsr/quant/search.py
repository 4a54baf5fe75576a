"""Range searches: the bounds that minimise mean |x_hat - x|^2.4 over a list of candidates.

Each takes rows (ranges, elements) and a spec, and returns (lower, upper), each (ranges,). The first of equal
candidates wins. A single long row is condensed to a histogram first; its minimum and maximum stay exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from passionsr.quant.primitives import dequantize, quantize
from passionsr.quant.spec import Form, QuantSpec

RangeSearch = Callable[[Tensor, QuantSpec], tuple[Tensor, Tensor]]
POWER = 2.4
BINS = 8192
CHUNK = 1 << 22  # elements x candidates held at once


def _condense(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Values and their weights; a histogram in place of one row longer than BINS."""
    if rows.shape[0] > 1 or rows.shape[1] <= BINS:
        return rows, None
    low, high = torch.aminmax(rows)
    if low == high:
        return rows[:, :1], None
    counts = torch.histc(rows.float(), BINS, float(low), float(high))
    edges = torch.linspace(float(low), float(high), BINS + 1, dtype=rows.dtype)
    used = counts > 0
    centres = ((edges[1:] + edges[:-1]) / 2)[used]
    return centres[None], counts[used].to(rows.dtype)[None] / rows.shape[1]


def _score(
    values: Tensor, weights: Tensor | None, lower: Tensor, upper: Tensor, levels: int
) -> Tensor:
    """Mean |x_hat - x|^POWER, (ranges, candidates); values (ranges, elements), bounds (ranges, candidates)."""
    x, low, high = values[:, None, :], lower[..., None], upper[..., None]
    rounded = dequantize(
        quantize(x, low, high, levels, Form.AFFINE), low, high, levels, Form.AFFINE
    )
    error = rounded.sub_(x).abs_().pow_(POWER)
    return error.mean(-1) if weights is None else (error * weights[:, None, :]).sum(-1)


def _best(
    rows: Tensor, levels: int, candidates: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The best of candidate bounds, which come in chunks of (ranges, candidates)."""
    values, weights = _condense(rows)
    best = torch.full((rows.shape[0], 1), torch.inf, dtype=rows.dtype)
    lower, upper = torch.zeros_like(best), torch.zeros_like(best)
    for low, high in candidates:
        score, index = _score(values, weights, low, high, levels).min(1, keepdim=True)
        better = score < best
        best = torch.where(better, score, best)
        lower = torch.where(better, low.gather(1, index), lower)
        upper = torch.where(better, high.gather(1, index), upper)
    return lower[:, 0], upper[:, 0]


def _chunked(rows: Tensor, lower: Tensor, upper: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Split candidates (ranges, candidates) so that a chunk times the elements stays below CHUNK."""
    elements = rows.shape[0] * min(rows.shape[1], BINS if rows.shape[0] == 1 else rows.shape[1])
    size = max(1, CHUNK // elements)
    return zip(lower.split(size, 1), upper.split(size, 1), strict=True)


def shrink_search(rows: Tensor, spec: QuantSpec, from_zero: bool = False) -> tuple[Tensor, Tensor]:
    """Q-Diffusion and EfficientDM: (min, max) shrunk by 1 - 0.01 i, i = 0..79 (methods.md 6.2).

    from_zero: the range starts at 0, for softmax outputs (`always_zero`).
    """
    factors = 1 - 0.01 * torch.arange(80, dtype=rows.dtype)
    low = torch.zeros_like(rows[:, 0]) if from_zero else rows.amin(1)
    lower, upper = low[:, None] * factors, rows.amax(1)[:, None] * factors
    return _best(rows, spec.levels, _chunked(rows, lower, upper))


def symmetric_search(rows: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """PTQ4DM's 1-D search: [-t, t], t = T i / 100; one-sided where the whole tensor is (methods.md 5.2)."""
    # In this order: the zero point -t / scale is an exact half, and float rounding decides its side (13.2).
    t = rows.abs().amax(1)[:, None] / 100 * torch.arange(1, 101, dtype=rows.dtype)
    zero = torch.zeros_like(t)
    lower = zero if rows.amin() >= 0 else -t
    upper = zero if rows.amax() <= 0 else t
    return _best(rows, spec.levels, _chunked(rows, lower, upper))


def two_sided_search(rows: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """PTQ4DM's 2-D search: widths (max - min) i / 100 times every zero point; one-sided as above (5.2)."""
    if rows.amin() >= 0 or rows.amax() <= 0:
        return symmetric_search(rows, spec)
    low, high = rows.amin(1), rows.amax(1)
    zero_points = torch.arange(spec.levels + 1, dtype=rows.dtype)

    def candidates() -> Iterable[tuple[Tensor, Tensor]]:
        for i in range(1, 101):
            width = ((high - low) / 100 * i)[:, None]
            shift = zero_points * (width / spec.levels)
            yield from _chunked(rows, -shift, width - shift)

    return _best(rows, spec.levels, candidates())
