"""Two rows of a benchmark against each other: `passionsr compare`. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from tabulate import tabulate

from passionsr.benchmark.config import BICUBIC, FP32, Config
from passionsr.metrics.registry import METRICS
from passionsr.report.rendering import UNQUANTIZED, metric_header
from passionsr.report.scores import load_scores
from passionsr.report.statistics import (
    FALSE_DISCOVERIES,
    Estimate,
    adjusted,
    differ_in_seeds,
    paired,
)
from passionsr.utils.files import UserError

NOTHING = "n/a"


@dataclass(frozen=True)
class Row:
    """What is compared: a method at a bit width in a scope, or a reference such as fp32.

    Attributes:
        name: as given, such as passionsr-W6A6.
        scores: its score rows.
        quantized: False for fp32, bicubic and outputs made elsewhere, which have no seeds.
    """

    name: str
    scores: pd.DataFrame
    quantized: bool


def find_row(config: Config, scores: pd.DataFrame, name: str, scope: str) -> Row:
    """The row of that name: method-W6A6, fp32, bicubic, or the name of outputs made elsewhere.

    Raises UserError, which lists the rows there are.
    """
    references = [FP32, BICUBIC, *(e.name for e in config.external_outputs)]
    if name in references:
        chosen = scores[(scores.scheme == UNQUANTIZED) & (scores.method == name)]
        return Row(name, chosen, quantized=False)
    runs = {f"{run.method}-{run.scheme}": run for run in config.runs if run.scope == scope}
    if name not in runs:
        known = ", ".join([*runs, *references])
        raise UserError(f"row {name!r} is not in {config.results} (scope {scope}); rows: {known}")
    run = runs[name]
    chosen = scores[
        (scores.method == run.method) & (scores.scheme == run.scheme) & (scores.scope == scope)
    ]
    return Row(name, chosen, quantized=True)


def _differences(one: Row, other: Row, metric: str) -> Estimate | None:
    """The difference one - other in a metric; None where no image has both numbers."""
    ours, theirs = (row.scores[row.scores.metric == metric] for row in (one, other))
    if ours.value.notna().sum() == 0 or theirs.value.notna().sum() == 0:
        return None
    if one.quantized != other.quantized:  # the reference is the same whatever the seed
        seeds = (ours if one.quantized else theirs).seed.unique()
        ours, theirs = (
            rows if row.quantized else pd.concat([rows.assign(seed=s) for s in seeds])
            for rows, row in ((ours, one), (theirs, other))
        )
    if differ_in_seeds(ours, theirs):
        raise UserError(
            f"{one.name} has seeds {sorted(set(ours.seed))}, {other.name} "
            f"{sorted(set(theirs.seed))}: rows of different seeds cannot be paired; run the same "
            "seeds for both"
        )
    return paired(ours, theirs)


def compare(
    config: Config, name: str, other: str, scope: str = "UV", dataset: str | None = None
) -> str:
    """All metrics of two rows as Markdown: means, paired difference, its interval and p value.

    Args:
        config: of finished results.
        name: a row, see `find_row`.
        other: the row that is subtracted.
        scope: what is quantized, "U" or "UV".
        dataset: which of several; None for the only one.

    Raises UserError for an unknown row or dataset, or rows of different seeds.
    """
    scores = _of_dataset(config, load_scores(config), dataset)
    rows = (find_row(config, scores, name, scope), find_row(config, scores, other, scope))
    found = {m: _differences(*rows, m) for m in config.metrics}
    p_values = adjusted([e.p if e else float("nan") for e in found.values()])
    lines = []
    for (metric, estimate), p in zip(found.items(), p_values, strict=True):
        lines.append([metric_header(metric), *_cells(rows, metric, estimate, float(p))])
    head = ["", name, other, "difference", "95 %", "p", "ahead"]
    return f"{tabulate(lines, head, 'pipe', disable_numparse=True)}\n\n{_legend(found)}"


def _of_dataset(config: Config, scores: pd.DataFrame, dataset: str | None) -> pd.DataFrame:
    names = [d.name for d in config.datasets]
    if dataset is None and len(names) <= 1:
        return scores
    if dataset not in names:
        known = ", ".join(names) or "none, its test set is embedded"
        raise UserError(f"dataset {dataset!r}: give --dataset; {config.name} has {known}")
    return scores[scores.dataset == dataset]


def _cells(rows: tuple[Row, Row], metric: str, estimate: Estimate | None, p: float) -> list[str]:
    digits = METRICS[metric].digits
    means = [row.scores[row.scores.metric == metric].value.mean() for row in rows]
    cells = [NOTHING if pd.isna(m) else f"{m:.{digits}f}" for m in means]
    if estimate is None:
        return [*cells, NOTHING, "", "", ""]
    signed = f"+.{digits}f"
    interval = (
        "" if pd.isna(estimate.low) else f"{estimate.low:{signed}} .. {estimate.high:{signed}}"
    )
    ahead = ""
    if p <= FALSE_DISCOVERIES:
        better = (estimate.mean < 0) == METRICS[metric].lower_better
        ahead = rows[0 if better else 1].name
    elif not pd.isna(p):
        ahead = "not decided"
    return [*cells, f"{estimate.mean:{signed}}", interval, "" if pd.isna(p) else f"{p:.2g}", ahead]


def _legend(found: dict[str, Estimate | None]) -> str:
    counts = {(e.seeds, e.images) for e in found.values() if e}
    if not counts:
        return "No image has numbers of both rows."
    seeds, images = max(counts)
    what = f"Paired differences over {images} images and {seeds} seed(s)"
    if seeds == 1:
        return (
            f"{what}; with one seed the interval is over images only, and nothing is said about "
            "significance."
        )
    return (
        f"{what}; p: two-sided, adjusted for the number of metrics (Benjamini and Hochberg); "
        f"decided where p is at most {FALSE_DISCOVERIES}."
    )
