"""Tables as csv, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from passionsr.metrics.registry import METRICS
from passionsr.utils.files import write_text

LEGEND = (
    "Mean over images and seeds, below it the 95 % bootstrap interval; bold: best of its bit width; ≈: the paired "
    "difference to the best is inside the noise; n/a: weights not available here (see the log)."
)


@dataclass(frozen=True)
class Column:
    """A printed column that is no metric: what a run costs."""

    name: str
    title: str
    digits: int


EMBEDDED = "embedded test set"


def format_rows(
    table: pd.DataFrame,
    metrics: Sequence[str],
    bold: str,
    interval: str | None = None,
    cost: Sequence[Column] = (),
    sign: str = "",
) -> list[list[str]]:
    """Strings for printing; a repeated bit width is left blank. `cost` columns stand before the metrics.

    bold: a format such as "**{}**". interval: a format with two places, appended to the value. "≈" marks a
    difference to the best that is inside the noise. sign: "+" prints both signs.
    """
    lines, last = [], None
    for _, row in table.iterrows():
        cells = ["" if row.bits == last else row.bits, row.method]
        last = row.bits
        cells += ["n/a" if pd.isna(row[c.name]) else f"{row[c.name]:.{c.digits}f}" for c in cost]
        for name in metrics:
            value = row[name]
            text = "n/a" if pd.isna(value) else f"{value:{sign}.{METRICS[name].digits}f}"
            if name in str(row.best).split(";"):
                text = bold.format(text)
            elif name in str(row.get("noise", "")).split(";"):
                text += " ≈"
            low, high = row.get(f"{name}_lo"), row.get(f"{name}_hi")
            if interval is not None and pd.notna(low):
                digits = METRICS[name].digits
                text += interval.format(f"{low:{sign}.{digits}f}", f"{high:{sign}.{digits}f}")
            cells.append(text)
        lines.append(cells)
    return lines


def headers(metrics: Sequence[str], cost: Sequence[Column] = ()) -> list[str]:
    """Column titles with the better direction."""
    arrow = {True: "↓", False: "↑"}
    return [
        "bits",
        "method",
        *(c.title for c in cost),
        *(f"{METRICS[n].title} {arrow[METRICS[n].lower_better]}" for n in metrics),
    ]


def _tex_safe(text: str) -> str:
    for old, new in (
        ("_", r"\_"),
        ("≈", r"$\approx$"),
        ("%", r"\%"),
        ("↓", r"$\downarrow$"),
        ("↑", r"$\uparrow$"),
    ):
        text = text.replace(old, new)
    return text


def write_table(
    table: pd.DataFrame, metrics: Sequence[str], stem: Path, title: str, published: pd.DataFrame | None = None,
    published_note: str = "", cost: Sequence[Column] = (), published_cost: Sequence[Column] = (),
    legend: str = LEGEND, sign: str = "",
) -> None:  # fmt: skip
    """Write stem.csv, stem.md and stem.tex; the published block comes second, labelled as such. sign: see `format_rows`."""
    measured = table.assign(source="measured here")
    blocks = (
        [measured]
        if published is None
        else [measured, published.assign(source="published, another model")]
    )
    extra = [c for c in measured.columns if c == "noise" or c.endswith(("_lo", "_hi"))]
    costs = [c.name for c in (*cost, *published_cost)]
    columns = ["source", "dataset", "bits", "method", *costs, *metrics, "best", *extra]
    merged = pd.concat(blocks, ignore_index=True).reindex(columns=columns)
    write_text(stem.with_suffix(".csv"), merged.to_csv(index=False, lineterminator="\n"))
    markdown = [f"**{title}**", ""]
    tex = [r"% needs \usepackage{booktabs}", f"% {title}"]
    for dataset, part in table.groupby("dataset", sort=False):
        if dataset != EMBEDDED:
            markdown += [f"*{dataset}, measured here*", ""]
            tex += [f"% {dataset}, measured here"]
        rows = format_rows(part, metrics, "**{}**", "<br><sub>{} .. {}</sub>", cost, sign)
        markdown += [tabulate(rows, headers(metrics, cost), "pipe", disable_numparse=True), ""]
        tex += [tabulate(
            [
                [_tex_safe(c) if "textbf" not in c else c for c in row]
                for row in format_rows(part, metrics, r"\textbf{{{}}}", r" [{}, {}]", cost, sign)
            ],
            [_tex_safe(h) for h in headers(metrics, cost)], "latex_raw", disable_numparse=True,
        )]  # fmt: skip
    markdown.append(legend)
    if published_note:
        markdown += ["", published_note]
        tex += ["", f"% {published_note}"]
    if published is not None:
        common = [m for m in metrics if m in published.columns]
        for dataset, block in published.groupby("dataset", sort=False):
            head = headers(common, published_cost)
            rows = format_rows(block, common, "**{}**", cost=published_cost)
            markdown += [
                "",
                f"*{dataset}, published*",
                "",
                tabulate(rows, head, "pipe", disable_numparse=True),
            ]
            tex_rows = format_rows(block, common, r"\textbf{{{}}}", cost=published_cost)
            tex += ["", f"% {dataset}, published", tabulate(
                [[_tex_safe(c) for c in r] for r in tex_rows], [_tex_safe(h) for h in head], "latex_raw", disable_numparse=True,
            )]  # fmt: skip
    write_text(stem.with_suffix(".md"), "\n".join(markdown) + "\n")
    write_text(stem.with_suffix(".tex"), "\n".join(tex) + "\n")
