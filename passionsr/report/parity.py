"""Our scores of given images next to published scores of the same images, image by image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from passionsr.metrics.registry import METRICS
from passionsr.utils.files import UserError

# Per image (methods.md 9): absolute, or relative for no-reference metrics.
TOLERANCE = {"psnr": 1e-3, "ssim": 1e-5, "lpips": 1e-4, "dists": 1e-4}
RELATIVE = {"niqe": 1e-3, "musiq": 1e-3, "clipiqa": 1e-3, "maniqa": 2e-2}


def compare(ours: pd.DataFrame, published: Path, metrics: Sequence[str]) -> pd.DataFrame:
    """One row per metric that both have: means, largest difference, tolerance, images beyond it.

    Args: ours: score rows (image, metric, value). published: CSV with a column `image` (file names) and metrics.
    Raises UserError for a malformed file or one about other images.
    """
    log = pd.read_csv(published)
    if "image" not in log.columns:
        raise UserError(f"{published}: expected a column image and one per metric")
    log = log.assign(image=log.image.str.removesuffix(".png")).set_index("image")
    mine = ours.pivot_table("value", "image", "metric", dropna=False)
    if set(log.index) != set(mine.index):
        alone = sorted(set(log.index) ^ set(mine.index))
        raise UserError(f"{published}: {len(alone)} images differ from ours, first: {alone[0]}")
    rows = []
    for name in metrics:
        if name not in log.columns or name not in mine.columns or mine[name].isna().any():
            continue
        theirs = log[name].reindex(mine.index)
        difference = (mine[name] - theirs).abs()
        relative = name in RELATIVE
        deviation = difference / theirs.abs() if relative else difference
        tolerance = RELATIVE[name] if relative else TOLERANCE[name]
        rows.append(
            {
                "metric": name,
                "images": len(mine),
                "published": theirs.mean(),
                "measured": mine[name].mean(),
                "largest_difference": deviation.max(),
                "relative": relative,
                "tolerance": tolerance,
                "beyond": int((deviation > tolerance).sum()),
            }
        )
    return pd.DataFrame(rows)


def to_markdown(table: pd.DataFrame, reference: dict[str, float], reference_title: str) -> str:
    """The comparison, one column per metric; reference: a published row of other data, by metric."""
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
