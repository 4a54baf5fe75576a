"""Where a table cell comes from: its runs, seeds, configuration, code and weights, and whether its mean is right."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from passionsr.benchmark.config import BICUBIC, FP32, Config
from passionsr.benchmark.paths import image_folder, run_folder, scores_file
from passionsr.benchmark.records import check_run
from passionsr.utils.files import UserError, read_json, sha256_file

# Which runs a table shows.
SCOPES = {"table2": "UV", "ablation": "UV", "table4": "UV", "released": "UV", "unet_only": "U"}
REFERENCES = {FP32: "FP32", BICUBIC: "Bicubic"}


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise UserError(f"{path}: not found; run the workflow first, or `dvc pull`")
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def table_rows(config: Config, table: Path) -> dict[str, tuple[dict[str, str], list[str]]]:
    """Row name (passionsr-W6A6, fp32) -> (its line in the table, its run ids), in the table's order."""
    names = {(title, "W32A32"): (ref, [ref]) for ref, title in REFERENCES.items()}
    for run in config.runs:
        if run.scope == SCOPES[table.stem]:
            key = config.entries[run.method].title, run.scheme
            names.setdefault(key, (f"{run.method}-{run.scheme}", []))[1].append(run.run_id)
    rows = {}
    for line in _read_csv(table):
        key = line["method"], line["bits"]
        if line["source"] == "measured here" and key in names:
            name, run_ids = names[key]
            rows[name] = line, run_ids
    return rows


def _provenance(config: Config, run_id: str) -> list[str]:
    if run_id in REFERENCES:
        return [f"  not quantized   its images: {image_folder(config, run_id)}"]
    check_run(config, run_id)
    made: dict[str, Any] = read_json(run_folder(config, run_id) / "run.json")
    weights = run_folder(config, run_id) / "artifact" / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights}: not found; its sha256 is part of the answer (`dvc pull`)")
    versions = ", ".join(f"{k} {v}" for k, v in made["versions"].items())
    return [
        f"  seed            {made['run']['seed']}",
        f"  configuration   {made['config']}, config hash {made['config_digest']}, run hash {made['run_digest']}",
        f"  method          {made['class']} {made['options'] or ''}".rstrip(),
        f"  git sha         {made['git']}",
        f"  weights sha256  {sha256_file(weights)}  {weights}",
        f"  environment     {versions}; {made['device']}, {made['threads']} thread(s)",
    ]


def explain(config: Config, table: Path, row: str, column: str) -> str:
    """Everything behind one cell of table2.csv, ablation.csv, table4.csv, released.csv or unet_only.csv, as text.

    row: `method-W6A6`, `fp32` or `bicubic`; column: a metric. Raises UserError for an unknown table, row or column
    (listing what exists), a run of another configuration, and a mean of the scores that differs from the cell.
    """
    if table.suffix != ".csv" or table.stem not in SCOPES:
        raise UserError(f"{table}: give one of {', '.join(f'{name}.csv' for name in SCOPES)}")
    rows = table_rows(config, table)
    if row not in rows:
        raise UserError(f"{table}: no row {row!r}; rows: {', '.join(rows) or 'none'}")
    line, run_ids = rows[row]
    if column not in config.metrics or column not in line:
        raise UserError(f"{table}: no column {column!r}; columns: {', '.join(config.metrics)}")
    text: list[str] = []
    values: list[float] = []
    for run_id in run_ids:
        path = scores_file(config, run_id)
        scores = [r["value"] for r in _read_csv(path) if r["metric"] == column]
        here = [float(value) for value in scores if value]
        values += here
        mean = f"mean {sum(here) / len(here)!r} of {len(here)} images" if here else "n/a"
        text += [f"{run_id}: {mean}", f"  scores sha256   {sha256_file(path)}  {path}"]
        text += _provenance(config, run_id)
    cell = float(line[column]) if line[column] else math.nan
    mean = sum(values) / len(values) if values else math.nan
    # The table's mean adds in another order: equal to a few units in the last place, far below any printed digit.
    if not (math.isclose(mean, cell, rel_tol=1e-12) or (math.isnan(mean) and math.isnan(cell))):
        raise UserError(
            f"{table}: {row}, {column} is {cell!r}, but the mean of its {len(values)} scores is {mean!r}; "
            "table and scores do not belong together: run the workflow again"
        )
    head = f"{table}: {row}, {column} = " + ("n/a" if math.isnan(cell) else repr(cell))
    return "\n".join(
        [f"{head}, recomputed from {len(values)} scores of {len(run_ids)} run(s)", *text]
    )
