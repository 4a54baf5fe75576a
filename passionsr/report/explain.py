"""Where a table cell comes from: its runs, seeds, configuration, code and weights.

And whether it is right: the mean of the scores must be the cell.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from passionsr.benchmark.config import BICUBIC, FP32, Config
from passionsr.benchmark.paths import image_folder, run_folder, scores_file
from passionsr.benchmark.records import check_run, read_record
from passionsr.report.rendering import MEASURED
from passionsr.report.table_list import TABLES, TableSpec
from passionsr.utils.files import UserError, sha256_file

REFERENCES = {FP32: "FP32", BICUBIC: "Bicubic"}


def explained_table(table: Path) -> TableSpec:
    """The entry of a table of means; UserError names those that can be explained."""
    known = {f"{spec.name}.csv": spec for spec in TABLES if spec.minus is None}
    if table.name not in known:
        raise UserError(f"{table}: give one of {', '.join(known)}")
    return known[table.name]


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise UserError(f"{path}: not found; run the workflow first, or `dvc pull`")
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def table_rows(config: Config, table: Path) -> dict[str, tuple[dict[str, str], list[str]]]:
    """Row name (passionsr-W6A6, fp32) -> (its line in the table, its run ids), in their order."""
    scope = explained_table(table).scope
    names = {(title, "W32A32"): (ref, [ref]) for ref, title in REFERENCES.items()}
    for run in config.runs:
        if run.scope == scope:
            key = config.entries[run.method].title, run.scheme
            names.setdefault(key, (f"{run.method}-{run.scheme}", []))[1].append(run.run_id)
    rows = {}
    for line in _read_csv(table):
        key = line["method"], line["bits"]
        if line["source"] == MEASURED and key in names:
            name, run_ids = names[key]
            rows[name] = line, run_ids
    return rows


def _provenance(config: Config, run_id: str) -> list[str]:
    """What made a run, one fact a line."""
    if run_id in REFERENCES:
        return [f"  not quantized   its images: {image_folder(config, run_id)}"]
    check_run(config, run_id)
    made = read_record(config, run_id)
    weights = run_folder(config, run_id) / "artifact" / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights}: not found; its sha256 is part of the answer (`dvc pull`)")
    versions = ", ".join(f"{k} {v}" for k, v in made.versions.items())
    configured = f"config hash {made.config_digest}, run hash {made.run_digest}"
    return [
        f"  seed            {made.run['seed']}",
        f"  configuration   {made.config}, {configured}",
        f"  method          {made.method_class} {made.options or ''}".rstrip(),
        f"  git sha         {made.git}",
        f"  weights sha256  {sha256_file(weights)}  {weights}",
        f"  environment     {versions}; {made.device}, {made.threads} thread(s)",
    ]


def _scores(config: Config, run_id: str, metric: str) -> tuple[list[float], list[str]]:
    """A run's scores of one metric, and what is said about the run."""
    path = scores_file(config, run_id, metric)
    values = [float(row["value"]) for row in _read_csv(path) if row["value"]]
    mean = f"mean {sum(values) / len(values)!r} of {len(values)} images" if values else "n/a"
    text = [f"{run_id}: {mean}", f"  scores sha256   {sha256_file(path)}  {path}"]
    return values, text + _provenance(config, run_id)


def explain(config: Config, table: Path, row: str, column: str) -> str:
    """Everything behind one cell of a table of means, as text.

    Args:
        config: of the results that hold the table.
        table: results/<name>/tables/<table>.csv.
        row: `method-W6A6`, `fp32` or `bicubic`.
        column: a metric.

    Raises UserError for an unknown table, row or column (listing what exists), a run of another
    configuration, and a mean of the scores that differs from the cell.
    """
    rows = table_rows(config, table)
    if row not in rows:
        raise UserError(f"{table}: no row {row!r}; rows: {', '.join(rows) or 'none'}")
    line, run_ids = rows[row]
    if column not in config.metrics or column not in line:
        raise UserError(f"{table}: no column {column!r}; columns: {', '.join(config.metrics)}")
    text: list[str] = []
    values: list[float] = []
    for run_id in run_ids:
        scores, lines = _scores(config, run_id, column)
        values += scores
        text += lines
    cell = float(line[column]) if line[column] else math.nan
    mean = sum(values) / len(values) if values else math.nan
    # The table's mean adds in another order: equal to a few units in the last place, far below any
    # printed digit.
    if not (math.isclose(mean, cell, rel_tol=1e-12) or (math.isnan(mean) and math.isnan(cell))):
        raise UserError(
            f"{table}: {row}, {column} is {cell!r}, but the mean of its {len(values)} scores is "
            f"{mean!r}; table and scores do not belong together: run the workflow again"
        )
    head = f"{table}: {row}, {column} = " + ("n/a" if math.isnan(cell) else repr(cell))
    count = f"{len(values)} scores of {len(run_ids)} run(s)"
    return "\n".join([f"{head}, recomputed from {count}", *text])
