"""Our scores of given images next to published scores of the same images, image by image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from passionsr.metrics.registry import METRICS
from passionsr.utils.files import UserError
from passionsr.utils.text_files import read_text


def compare(ours: pd.DataFrame, published: Path, metrics: Sequence[str]) -> pd.DataFrame:
    """One row per metric that both have: means, largest difference, tolerance, images beyond it.

    Args:
        ours: score rows (image, metric, value).
        published: CSV with a column `image` (file names) and a column per metric.
        metrics: to compare; one without a tolerance or without any score is left out, and so is an
            image without a score of it.

    Raises UserError for a malformed file or one about other images.
    """
    log = pd.read_csv(io.StringIO(read_text(published)))
    if "image" not in log.columns:
        raise UserError(f"{published}: expected a column image and one per metric")
    log = log.assign(image=log.image.str.removesuffix(".png")).set_index("image")
    mine = ours.pivot_table("value", "image", "metric", dropna=False)
    if set(log.index) != set(mine.index):
        alone = sorted(set(log.index) ^ set(mine.index))
        raise UserError(f"{published}: {len(alone)} images differ from ours, first: {alone[0]}")
    rows = []
    for name in metrics:
        tolerance = METRICS[name].tolerance
        if tolerance is None or name not in log.columns or name not in mine.columns:
            continue
        scores = mine[name].dropna()
        if scores.empty:
            continue
        theirs = log[name].reindex(scores.index)
        difference = (scores - theirs).abs()
        deviation = difference / theirs.abs() if tolerance.relative else difference
        rows.append(
            {
                "metric": name,
                "images": len(scores),
                "published": theirs.mean(),
                "measured": scores.mean(),
                "largest_difference": deviation.max(),
                "relative": tolerance.relative,
                "tolerance": tolerance.value,
                "beyond": int((deviation > tolerance.value).sum()),
            }
        )
    return pd.DataFrame(rows)


def to_markdown(table: pd.DataFrame, reference: dict[str, float], reference_title: str) -> str:
    """The comparison, one column per metric.

    reference: metric -> mean on other data, printed last under `reference_title`; may be empty.
    """
    unit = ["relative" if r else "" for r in table.relative]

    def row(title: str, values: Sequence[str]) -> list[str]:
        return [title, *values]

    lines = [
        row("published per-image log, mean", [f"{v:.6f}" for v in table.published]),
        row("measured here, mean", [f"{v:.6f}" for v in table.measured]),
        row(
            "difference of the means",
            [f"{v:+.1e}" for v in table.measured - table.published],
        ),
        row(
            "largest difference of one image",
            [f"{v:.1e} {u}".strip() for v, u in zip(table.largest_difference, unit, strict=True)],
        ),
        row(
            "tolerance per image",
            [f"{v:.0e} {u}".strip() for v, u in zip(table.tolerance, unit, strict=True)],
        ),
        row(
            "images beyond it",
            [f"{b} of {n}" for b, n in zip(table.beyond, table.images, strict=True)],
        ),
    ]
    if reference:
        shown = [
            f"{reference[m]:.{METRICS[m].digits}f}" if m in reference else "" for m in table.metric
        ]
        lines.append(row(reference_title, shown))
    return tabulate(
        lines, ["", *(METRICS[m].title for m in table.metric)], "pipe", disable_numparse=True
    )
