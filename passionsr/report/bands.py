"""What a table may say on another machine: two-sided bands per number, and the check against them.

On one machine a number is the same bytes in every run (`passionsr.benchmark.reproducibility`).
Another CPU or library sums in another order: the float model's scores move in the last digits, and
a training that starts from them goes its own way.

Half a band's width stands in the metric's entry (`passionsr.metrics.registry`) and was chosen: for
the float model and bicubic what rounding moves; for quantized rows what a training that goes
another way may do, twice that at 4 bits, where every model is broken. For scale: other kernels on
one CPU (SSE4 only) moved the small benchmark's W4A4 rows by at most 0.16 dB and 0.005 SSIM, its
float rows by 1e-5; sums in another order moved PassionSR W8A8 by 1.1 dB to FP32 and LSQ W6A6 by
1.7. No band is narrower than what another seed does to a row at W6A6 (config/mini-full.yaml, three
seeds: PSNR 1.60 dB, NIQE 0.85, PSNR to FP32 2.05, LPIPS to FP32 0.043; at W8A8 NIQE 1.34, and PSNR
to FP32 4.1, which is not granted).
"""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from passionsr.metrics.registry import METRICS
from passionsr.report.places import results_name
from passionsr.report.rendering import EMBEDDED, MEASURED, UNQUANTIZED, metric_header
from passionsr.report.table_list import TABLES
from passionsr.utils.files import UserError, read_rows, read_text, write_text
from passionsr.utils.outputs import check_output_file

COLUMNS = ("results", "table", "dataset", "bits", "method", "metric", "low", "high")
NO_DATASET = (
    "; a file of an earlier version has no dataset: make it again with `passionsr expect RESULTS`"
)
NOT_THERE = "not found; give the results folder of a finished run"


class Key(NamedTuple):
    """What names one number of a finished run."""

    table: str
    dataset: str
    bits: str
    method: str
    metric: str

    @property
    def row(self) -> tuple[str, str, str, str]:
        """The row of a table that the number stands in."""
        return self[:4]


def _label(results: str, parts: Iterable[str]) -> str:
    """For messages; the embedded test set needs no name."""
    return " ".join([results, *(part for part in parts if part != EMBEDDED)])


def margin(bits: str, metric: str) -> float:
    """Half the width of a number's band."""
    if bits == UNQUANTIZED:
        return METRICS[metric].float_margin
    return METRICS[metric].margin * (2 if bits == "W4A4" else 1)


def _banded() -> list[str]:
    """Names of the tables whose numbers have bands."""
    return [spec.name for spec in TABLES if spec.in_bands]


def _from_csv(folder: Path) -> Iterator[tuple[Key, float]]:
    for table in _banded():
        path = folder / "tables" / f"{table}.csv"
        columns = ("source", "dataset", "bits", "method")
        for line, row in read_rows(path, columns, more=True, absent=NOT_THERE):
            if row["source"] == MEASURED:
                for metric in METRICS:
                    if row.get(metric):
                        key = Key(table, row["dataset"], row["bits"], row["method"], metric)
                        yield key, _number(path, line, metric, row[metric])


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"{path} line {line}: {column}: {text!r} given, expected a number"
        ) from None


def _from_markdown(text: str) -> Iterator[tuple[Key, float]]:
    """The measured tables between each `<!-- name -->` pair, less marks and footnotes."""
    metrics = {metric_header(name): name for name in METRICS}
    for table in _banded():
        block = re.search(rf"<!-- {table} -->\n(.*?)<!-- /{table} -->", text, re.S)
        for dataset, (head, *rows) in _measured_tables(block[1] if block else ""):
            for row in rows:
                if len(row) != len(head):
                    problem = f"a row of {len(row)} cells, expected {len(head)}"
                    raise UserError(f"{table}: {problem}: {row}")
                bits, method, *cells = row
                for title, cell in zip(head[2:], cells, strict=True):
                    number = re.match(r"\**(-?\d+(?:\.\d+)?)", cell)
                    if title in metrics and number:
                        key = Key(table, dataset, bits, html.unescape(method), metrics[title])
                        yield key, float(number[1])


_TABLE = re.compile(r"(?:^\*(.+), (measured here|published)\*\n\n)?((?:^\|.*\n)+)", re.M)


def _measured_tables(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    """(dataset, cells) of the Markdown tables that are not published: titles, then rows."""
    for match in _TABLE.finditer(text):
        lines = [line.strip("|").split("|") for line in match[3].splitlines()]
        cells = [[cell.strip() for cell in line] for line in lines]
        if match[2] != "published":
            yield html.unescape(match[1] or EMBEDDED), cells[:1] + cells[2:]


def measured(source: Path) -> tuple[str, dict[Key, float]]:
    """(name, numbers) of a results folder, or of its page in docs/results/."""
    if source.suffix == ".md":
        return source.stem, dict(_from_markdown(read_text(source)))
    return results_name(source), dict(_from_csv(source))


def read_bands(path: Path) -> dict[str, dict[Key, tuple[float, float]]]:
    """Results name -> number -> (low, high); UserError for a malformed file."""
    bands: dict[str, dict[Key, tuple[float, float]]] = {}
    absent = "file not found; make it with `passionsr expect RESULTS`"
    rows = read_rows(path, COLUMNS, "\t", absent=absent, advice=NO_DATASET)
    for number, row in rows:
        low, high = (_number(path, number, end, row[end]) for end in ("low", "high"))
        if not low < high:
            raise UserError(f"{path} line {number}: low must be below high")
        key = Key(*(row[name] for name in Key._fields))
        bands.setdefault(row["results"], {})[key] = (low, high)
    return bands


def write_bands(source: Path, path: Path) -> int:
    """Put bands around a finished run's numbers in the place of its old ones; their number."""
    check_output_file(path)
    name, numbers = measured(source)
    kept = read_bands(path) if path.exists() else {}
    kept[name] = {
        key: (value - margin(key.bits, key.metric), value + margin(key.bits, key.metric))
        for key, value in numbers.items()
    }
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    for results, bands in sorted(kept.items()):
        for key, (low, high) in bands.items():
            writer.writerow([results, *key, f"{low:.4f}", f"{high:.4f}"])
    write_text(path, out.getvalue())
    return len(kept[name])


def violations(source: Path, path: Path) -> list[str]:
    """One line per number outside its band, missing, or of a row that has no band.

    Raises UserError if nothing is known about these results.
    """
    name, numbers = measured(source)
    bands = read_bands(path).get(name)
    if not bands:
        raise UserError(f"{path} has no bands for {name!r}; make them with `passionsr expect`")
    lines = []
    for key, (low, high) in bands.items():
        value = numbers.get(key)
        label = _label(name, key)
        if value is None:
            lines.append(f"{label}: missing, expected {low:.4f} .. {high:.4f}")
        elif not math.isfinite(value) or not low <= value <= high:
            lines.append(f"{label}: {value:.4f} is outside {low:.4f} .. {high:.4f}")
    known = {key.row for key in bands}
    new = dict.fromkeys(key.row for key in numbers if key.row not in known)
    lines += [f"{_label(name, row)}: a row without bands in {path}" for row in new]
    return lines
