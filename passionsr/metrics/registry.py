"""The metrics, one entry each: all that is known about a metric. No torch, no pyiqa.

To add one, add an entry to `_ALL`; if pyiqa reads weights for it, name their files in
`passionsr.metrics.weights.WEIGHTS`. Runs that are already scored get the new metric only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from passionsr.utils.files import UserError

# FR: full reference, against the HR image. NR: no reference, the output alone. FP: fidelity,
# against the output of the float model.
Kind = Literal["FR", "NR", "FP"]

# Why a score is missing where that concerns a whole metric or run; whatever else is written as the
# reason of a missing score concerns its image.
NO_WEIGHTS = "weights not available (metrics.json says why; delete it to look for them again)"
NO_REFERENCE = "no output of the float model to compare with"


@dataclass(frozen=True)
class Tolerance:
    """How far our score of one image may be from a published score of the same image.

    relative: `value` is a fraction of the published score, not in the metric's unit.
    """

    value: float
    relative: bool = False


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: how it is computed, how it is printed, and how exactly it must be reproduced.

    Attributes:
        name: column of every table and file of scores.
        pyiqa, settings: name in pyiqa and keyword arguments of `pyiqa.create_metric`.
        kind: what an output is compared with, see `Kind`.
        seed: torch seed set before each image, for metrics that draw random crops.
        min_side: px; the metric cannot score an image with a shorter side (a test tries one less).
        title, digits: printed name and digits after the point.
        lower_better: True if a lower score is a better image.
        headline: True for the metrics of the short table in README.md.
        float_margin, margin: half the width of the band in config/expected.tsv, for rows of the
            float model and bicubic, and for quantized rows (see `passionsr.report.bands`).
        tolerance: against published scores per image; None if nobody publishes this metric.
    """

    name: str
    pyiqa: str
    kind: Kind
    title: str
    digits: int
    lower_better: bool
    float_margin: float
    margin: float
    tolerance: Tolerance | None = None
    min_side: int = 1
    headline: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None

    def computation(self) -> dict[str, Any]:
        """What decides the score of an image; where it changes, the metric is scored again."""
        return {
            "pyiqa": self.pyiqa,
            "settings": self.settings,
            "kind": self.kind,
            "seed": self.seed,
            "min_side": self.min_side,
        }

    def presentation(self) -> dict[str, Any]:
        """What decides how scores are shown; where it changes, tables are written again."""
        tolerance = self.tolerance and (self.tolerance.value, self.tolerance.relative)
        return {
            "title": self.title,
            "digits": self.digits,
            "lower_better": self.lower_better,
            "tolerance": tolerance,
        }


# PSNR and SSIM on the Y channel of YCbCr, as the super-resolution literature reports them.
_Y = {"test_y_channel": True, "color_space": "ycbcr"}

_ALL = (
    Metric(name="psnr", pyiqa="psnr", settings=_Y, kind="FR", title="PSNR-Y", digits=2,
           lower_better=False, headline=True, tolerance=Tolerance(1e-3),
           float_margin=0.05, margin=1.6),
    Metric(name="ssim", pyiqa="ssim", settings=_Y, kind="FR", min_side=11, title="SSIM-Y", digits=4,
           lower_better=False, tolerance=Tolerance(1e-5), float_margin=0.002, margin=0.04),
    Metric(name="lpips", pyiqa="lpips", kind="FR", min_side=31, title="LPIPS", digits=4,
           lower_better=True, headline=True, tolerance=Tolerance(1e-4),
           float_margin=0.002, margin=0.04),
    Metric(name="dists", pyiqa="dists", kind="FR", title="DISTS", digits=4,
           lower_better=True, tolerance=Tolerance(1e-4), float_margin=0.002, margin=0.02),
    Metric(name="niqe", pyiqa="niqe", kind="NR", min_side=96, title="NIQE", digits=3,
           lower_better=True, tolerance=Tolerance(1e-3, relative=True),
           float_margin=0.05, margin=1.4),
    Metric(name="musiq", pyiqa="musiq", kind="NR", title="MUSIQ", digits=2,
           lower_better=False, tolerance=Tolerance(1e-3, relative=True),
           float_margin=0.5, margin=4.0),
    # Random crops of the image: 123 is the seed pyiqa itself has set where it builds the metric.
    Metric(name="maniqa", pyiqa="maniqa", kind="NR", seed=123, title="MANIQA", digits=4,
           lower_better=False, tolerance=Tolerance(2e-2, relative=True),
           float_margin=0.005, margin=0.04),
    Metric(name="clipiqa", pyiqa="clipiqa", kind="NR", min_side=31, title="CLIP-IQA", digits=4,
           lower_better=False, tolerance=Tolerance(1e-3, relative=True),
           float_margin=0.005, margin=0.06),
    # Over RGB, not Y: a colour shift against the float model's output must count.
    Metric(name="psnr_fp", pyiqa="psnr", kind="FP", title="PSNR to FP32", digits=2,
           lower_better=False, headline=True, float_margin=0.05, margin=2.1),
    Metric(name="lpips_fp", pyiqa="lpips", kind="FP", min_side=31, title="LPIPS to FP32", digits=4,
           lower_better=True, float_margin=0.002, margin=0.05),
)  # fmt: skip
METRICS = {m.name: m for m in _ALL}


def missing_note(scored: int, reasons: Sequence[str], what: str = "images") -> str:
    """What is said about a mean that does not stand on everything.

    scored: how many have a score; reasons: of those that have none. Each reason stands once, the
    most frequent first.

    >>> missing_note(10, ["too small", "too small"])
    '10 of 12 images; the others: too small'
    """
    counts = Counter(reasons).most_common()
    named = "; ".join(reason for reason, _ in counts[:3])
    more = f"; and {len(counts) - 3} more reasons" if len(counts) > 3 else ""
    share = f"{scored} of {scored + len(reasons)} {what}"
    return f"{share}{'; the others' if scored else ''}: {named}{more}"


def metric_names(text: str) -> list[str]:
    """Names separated by commas or spaces, in any case; UserError for none or an unknown one."""
    names = [name.lower() for name in re.split(r"[,\s]+", text) if name]
    if not names:
        raise UserError(f"no metric given; known: {', '.join(METRICS)}")
    return check_metrics(names)


def check_metrics(names: Sequence[str]) -> list[str]:
    """The names, or UserError for an unknown one."""
    unknown = sorted(set(names) - set(METRICS))
    if unknown:
        raise UserError(f"unknown metric {', '.join(unknown)}; known: {', '.join(METRICS)}")
    return list(names)
