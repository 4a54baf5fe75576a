"""Tables as CSV, Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tabulate import LATEX_ESCAPE_RULES, tabulate

from passionsr.benchmark.config import Config
from passionsr.metrics.registry import METRICS
from passionsr.report.table_list import Column, TableSpec
from passionsr.utils.files import write_text

EMBEDDED = "embedded test set"
MEASURED, PUBLISHED = "measured here", "published, another model"
UNQUANTIZED = "W32A32"


def tex_escape(text: str) -> str:
    """Text for LaTeX: tabulate's rules, and the symbols of our headers and marks."""
    symbols = {"≈": r"$\approx$", "↓": r"$\downarrow$", "↑": r"$\uparrow$"}
    return "".join((LATEX_ESCAPE_RULES | symbols).get(c, c) for c in text)


def markdown_escape(text: str) -> str:
    """Text for Markdown, also in a table: what has a meaning there becomes an HTML entity.

    An underscore inside a word has none.

    >>> markdown_escape("a_b | *c*")
    'a_b &#124; &#42;c&#42;'
    """
    special = r"[\\`*|\[\]~$<>&]|(?<![^\W_])_|_(?![^\W_])"
    return re.sub(special, lambda match: f"&#{ord(match[0])};", text)


@dataclass(frozen=True)
class Style:
    """How cells are written.

    Attributes:
        bold: format of the best value of a bit width.
        interval: format of the interval, appended to its value; None leaves intervals out.
        escape: for all text but `bold` and `interval` themselves.
        after_value: text that belongs to the value and is bold with it.
        footnote: format of the number of a footnote, appended to its cell.
    """

    bold: str
    interval: str | None = None
    escape: Callable[[str], str] = str
    after_value: str = ""
    footnote: str = " ({})"


MARKDOWN = Style("**{}**", "<br><sub>{} .. {}</sub>", markdown_escape)
TEX = Style(r"\textbf{{{}}}", r" [{}, {}]", tex_escape, footnote=r"\textsuperscript{{{}}}")


class Footnotes:
    """The notes of a table's cells, numbered as they come; equal notes are one.

    They are text of the columns <metric>_note (`passionsr.report.scores.notes`).
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, row: pd.Series, metric: str, style: Style) -> str:
        """What a cell gets appended: the number of its note, "" if it has none."""
        note = row.get(f"{metric}_note")
        if note is None or pd.isna(note):
            return ""
        return style.footnote.format(self._numbers.setdefault(note, len(self._numbers) + 1))

    def lines(self, style: Style) -> list[str]:
        """Every note that was marked, one a line, with its number."""
        return [
            f"{style.footnote.format(number)} {style.escape(note)}".strip()
            for note, number in self._numbers.items()
        ]


def format_rows(
    table: pd.DataFrame,
    metrics: Sequence[str],
    style: Style,
    cost: Sequence[Column] = (),
    sign: str = "",
    footnotes: Footnotes | None = None,
) -> list[list[str]]:
    """Cells for printing; a repeated bit width is blank, cost columns stand before the metrics.

    "≈" marks a difference to the best that is not decided. sign: "+" prints both signs.
    footnotes: collects the notes of the cells; None leaves them out.
    """
    lines, last = [], None
    for _, row in table.iterrows():
        cells = ["" if row.bits == last else row.bits, row.method]
        last = row.bits
        cells += ["n/a" if pd.isna(row[c.name]) else f"{row[c.name]:.{c.digits}f}" for c in cost]
        cells = [style.escape(cell) for cell in cells]
        for name in metrics:
            mark = footnotes.mark(row, name, style) if footnotes is not None else ""
            cells.append(format_cell(row, name, style, sign, mark))
        lines.append(cells)
    return lines


def format_cell(row: pd.Series, metric: str, style: Style, sign: str = "", mark: str = "") -> str:
    """One metric of a row: its value, marked, and its interval if the style has one.

    mark: of a footnote, comes after the value.
    """
    digits = METRICS[metric].digits
    value = row[metric]
    text = style.escape("n/a" if pd.isna(value) else f"{value:{sign}.{digits}f}")
    text += style.after_value
    if metric in str(row.best).split(";"):
        text = style.bold.format(text)
    elif metric in str(row.get("undecided", "")).split(";"):
        text += style.escape(" ≈")
    text += mark
    bounds = [row.get(f"{metric}_{end}") for end in ("lo", "hi")]
    if style.interval is not None and pd.notna(bounds[0]):
        text += style.interval.format(*(f"{bound:{sign}.{digits}f}" for bound in bounds))
    return text


def most_seeds(table: pd.DataFrame) -> int:
    """The largest number of seeds that a row of a table has."""
    return int(table.seeds.max()) if "seeds" in table and table.seeds.notna().any() else 1


def metric_header(metric: str) -> str:
    """A metric's title with the better direction."""
    return f"{METRICS[metric].title} {'↓' if METRICS[metric].lower_better else '↑'}"


def headers(metrics: Sequence[str], cost: Sequence[Column] = ()) -> list[str]:
    """Titles of the columns of `format_rows`."""
    return ["bits", "method", *(c.title for c in cost), *map(metric_header, metrics)]


@dataclass(frozen=True)
class PublishedBlock:
    """The published rows that stand below a table (None: there are none), and what is said."""

    rows: pd.DataFrame | None = None
    note: str = ""


def write_table(
    spec: TableSpec, config: Config, table: pd.DataFrame, published: PublishedBlock, folder: Path
) -> None:
    """Write folder/<table>.csv, .md and .tex; the published block comes second, labelled as such.

    table: measured rows, of `passionsr.report.tables.build_table`.
    """
    stem = folder / spec.name
    merged = with_published(spec, config.metrics, table, published)
    write_text(stem.with_suffix(".csv"), merged.to_csv(index=False, lineterminator="\n"))
    write_text(stem.with_suffix(".md"), _markdown(spec, config, table, published))
    write_text(stem.with_suffix(".tex"), _tex(spec, config, table, published))


def with_published(
    spec: TableSpec, metrics: Sequence[str], table: pd.DataFrame, published: PublishedBlock
) -> pd.DataFrame:
    """Measured and published rows in the columns of the CSV; `source` tells them apart."""
    blocks = [table.assign(source=MEASURED)]
    if published.rows is not None:
        blocks.append(published.rows.assign(source=PUBLISHED))
    ends = ("_lo", "_hi", "_p", "_note")
    extra = [c for c in table.columns if c in ("undecided", "seeds") or c.endswith(ends)]
    costs = [c.name for c in spec.cost_columns]
    columns = ["source", "dataset", "bits", "method", *costs, *metrics, "best", *extra]
    return pd.concat(blocks, ignore_index=True).reindex(columns=columns)


def _markdown(
    spec: TableSpec, config: Config, table: pd.DataFrame, published: PublishedBlock
) -> str:
    lines = [f"**{spec.title.format(name=markdown_escape(config.name))}**", ""]
    head = headers(config.metrics, spec.cost)
    footnotes = Footnotes()
    for dataset, part in table.groupby("dataset", sort=False):
        if dataset != EMBEDDED:
            lines += [f"*{markdown_escape(str(dataset))}, measured here*", ""]
        rows = format_rows(part, config.metrics, MARKDOWN, spec.cost, spec.sign, footnotes)
        lines += [tabulate(rows, head, "pipe", disable_numparse=True), ""]
    lines.append(spec.said("below", most_seeds(table)))
    for line in footnotes.lines(MARKDOWN):
        lines += ["", line]
    if published.note:
        lines += ["", published.note]
    for dataset, head, rows in _published_tables(spec, config, published, MARKDOWN):
        lines += ["", f"*{markdown_escape(dataset)}, published*", ""]
        lines += [tabulate(rows, head, "pipe", disable_numparse=True)]
    return "\n".join(lines) + "\n"


def _tex(spec: TableSpec, config: Config, table: pd.DataFrame, published: PublishedBlock) -> str:
    lines = [r"% needs \usepackage{booktabs}", f"% {spec.title.format(name=config.name)}"]
    head = [tex_escape(title) for title in headers(config.metrics, spec.cost)]
    footnotes = Footnotes()
    for dataset, part in table.groupby("dataset", sort=False):
        if dataset != EMBEDDED:
            lines += [rf"\par\noindent\textit{{{tex_escape(str(dataset))}, measured here}}\par"]
        rows = format_rows(part, config.metrics, TEX, spec.cost, spec.sign, footnotes)
        lines += [tabulate(rows, head, "latex_raw", disable_numparse=True)]
    lines += [rf"\par\noindent {line}" for line in footnotes.lines(TEX)]
    if published.note:
        lines += ["", f"% {published.note}"]
    for dataset, titles, rows in _published_tables(spec, config, published, TEX):
        head = [tex_escape(title) for title in titles]
        lines += ["", f"% {dataset}, published"]
        lines += [tabulate(rows, head, "latex_raw", disable_numparse=True)]
    return "\n".join(lines) + "\n"


def _published_tables(
    spec: TableSpec, config: Config, published: PublishedBlock, style: Style
) -> list[tuple[str, list[str], list[list[str]]]]:
    """Per dataset its name, the titles of the columns and the cells."""
    if published.rows is None or spec.published is None:
        return []
    common = [m for m in config.metrics if m in published.rows.columns]
    head = headers(common, spec.published.cost)
    return [
        (str(dataset), head, format_rows(block, common, style, spec.published.cost))
        for dataset, block in published.rows.groupby("dataset", sort=False)
    ]
