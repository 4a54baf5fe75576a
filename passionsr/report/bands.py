"""What a table may say on another machine: two-sided bands per number, and the check against them.

On one machine a number is the same bits in every run (`reproducibility`). Another CPU or library sums in another order:
the float model's scores move in the last digits, and a training that starts from them goes its own way.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable
from pathlib import Path

from passionsr.metrics.registry import METRICS
from passionsr.utils.files import UserError, write_text

TABLES = ("table2", "table4", "unet_only")
COLUMNS = ("results", "table", "bits", "method", "metric", "low", "high")
# Half a band's width, chosen: for the float model and bicubic what rounding moves; for quantized rows what a training
# that takes another turn may do, twice that at 4 bits, where every model is broken. For scale: other kernels on one CPU
# (SSE4 only) moved the small benchmark's W4A4 rows by at most 0.16 dB and 0.005 SSIM, its float rows by 1e-5; sums in another order moved
# PassionSR W8A8 by 1.1 dB to FP32 and LSQ W6A6 by 1.7. No band is narrower than what another seed does to a row at W6A6 (config/mini-full.yaml,
# three seeds: PSNR 1.60 dB, NIQE 0.85, PSNR to FP32 2.05, LPIPS to FP32 0.043; at W8A8 NIQE 1.34, and PSNR to FP32 4.1, which is not granted).
FLOAT_MARGIN = {"psnr": 0.05, "ssim": 0.002, "lpips": 0.002, "dists": 0.002, "niqe": 0.05,
                "musiq": 0.5, "maniqa": 0.005, "clipiqa": 0.005, "psnr_fp": 0.05, "lpips_fp": 0.002}  # fmt: skip
MARGIN = {"psnr": 1.6, "ssim": 0.04, "lpips": 0.04, "dists": 0.02, "niqe": 1.4,
          "musiq": 4.0, "maniqa": 0.04, "clipiqa": 0.06, "psnr_fp": 2.1, "lpips_fp": 0.05}  # fmt: skip

Key = tuple[str, str, str, str]  # table, bits, method, metric


def margin(bits: str, metric: str) -> float:
    """Half the width of a number's band."""
    if bits == "W32A32":
        return FLOAT_MARGIN[metric]
    return MARGIN[metric] * (2 if bits == "W4A4" else 1)


def _from_csv(folder: Path) -> Iterable[tuple[Key, float]]:
    for table in TABLES:
        path = folder / "tables" / f"{table}.csv"
        if not path.is_file():
            raise UserError(f"{path}: not found; give the results folder of a finished run")
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if row["source"] == "measured here":
                    for metric in METRICS:
                        if row.get(metric):
                            yield (table, row["bits"], row["method"], metric), float(row[metric])


def _from_markdown(text: str) -> Iterable[tuple[Key, float]]:
    """The first table between each `<!-- name -->` pair: values before `<br>`, `**best**`, `≈` left out."""
    titles = {m.title: m.name for m in METRICS.values()}
    for table in TABLES:
        block = re.search(rf"<!-- {table} -->\n(.*?)<!-- /{table} -->", text, re.S)
        if block is None:
            continue
        rows: list[list[str]] = []
        for line in block[1].splitlines():
            if line.startswith("|"):
                rows.append([cell.strip() for cell in line.strip("|").split("|")])
            elif rows:
                break
        head = [titles.get(re.sub(r" [↑↓]$", "", cell)) for cell in rows[0]] if rows else []
        bits = ""
        for cells in rows[2:]:
            bits = cells[0] or bits
            for metric, cell in zip(head, cells, strict=True):
                number = re.match(r"\**(-?[\d.]+)", cell)
                if metric and number:
                    yield (table, bits, cells[1], metric), float(number[1])


def measured(source: Path) -> tuple[str, dict[Key, float]]:
    """(name, numbers) of a results folder, or of its page in docs/."""
    if source.suffix == ".md":
        if not source.is_file():
            raise UserError(f"{source}: file not found")
        return source.stem, dict(_from_markdown(source.read_text(encoding="utf-8")))
    return source.resolve().name, dict(_from_csv(source))


def read_bands(path: Path) -> dict[str, dict[Key, tuple[float, float]]]:
    """Results name -> number -> (low, high); UserError for a malformed file."""
    if not path.is_file():
        raise UserError(f"{path}: file not found; make it with `passionsr expect RESULTS`")
    bands: dict[str, dict[Key, tuple[float, float]]] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream, delimiter="\t")
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"{path}: columns must be {', '.join(COLUMNS)}")
        for number, row in enumerate(reader, 2):
            try:
                low, high = float(row["low"]), float(row["high"])
            except (TypeError, ValueError):
                raise UserError(f"{path}: line {number}: low and high must be numbers") from None
            if not low < high:
                raise UserError(f"{path}: line {number}: low must be below high")
            key = (row["table"], row["bits"], row["method"], row["metric"])
            bands.setdefault(row["results"], {})[key] = (low, high)
    return bands


def write_bands(source: Path, path: Path) -> int:
    """Bands around a finished run's numbers, in the place of those of the same name; their number."""
    name, numbers = measured(source)
    kept = read_bands(path) if path.exists() else {}
    kept[name] = {
        key: (value - margin(key[1], key[3]), value + margin(key[1], key[3]))
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
    """One line per number outside its band, missing, or of a row that has no band; UserError if nothing is known."""
    name, numbers = measured(source)
    bands = read_bands(path).get(name)
    if not bands:
        raise UserError(f"{path} has no bands for {name!r}; make them with `passionsr expect`")
    lines = []
    for key, (low, high) in bands.items():
        value = numbers.get(key)
        label = f"{name} {' '.join(key)}"
        if value is None:
            lines.append(f"{label}: missing, expected {low:.4f} .. {high:.4f}")
        elif not math.isfinite(value) or not low <= value <= high:
            lines.append(f"{label}: {value:.4f} is outside {low:.4f} .. {high:.4f}")
    known = {key[:3] for key in bands}
    new = dict.fromkeys(key[:3] for key in numbers if key[:3] not in known)
    lines += [f"{name} {' '.join(row)}: a row without bands in {path}" for row in new]
    return lines
