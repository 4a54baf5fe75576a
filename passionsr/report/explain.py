"""Where a table cell comes from: its runs, seeds, configuration, code and weights.

And whether it is right: the mean of the scores must be the cell.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

from passionsr.benchmark.config import BICUBIC, FP32, Config, ExternalOutputs, load_config
from passionsr.benchmark.paths import image_folder, run_folder, scores_file
from passionsr.benchmark.records import check_run, read_record
from passionsr.metrics.registry import missing_note
from passionsr.report.places import locate_table
from passionsr.report.rendering import EMBEDDED, MEASURED, UNQUANTIZED
from passionsr.report.table_list import TABLES, TableSpec
from passionsr.utils.files import UserError, read_rows, sha256_file

REFERENCES = {FP32: "FP32", BICUBIC: "Bicubic"}
TABLE_KEYS = ("source", "dataset", "bits", "method")
NOT_RUN = "not found; run the workflow first, or `dvc pull`"


def explained_table(table: Path) -> TableSpec:
    """The entry of a table of means; UserError names those that can be explained."""
    known = {f"{spec.name}.csv": spec for spec in TABLES if spec.minus is None}
    if table.name not in known:
        raise UserError(f"{table}: give one of {', '.join(known)}")
    return known[table.name]


def _read_csv(path: Path, *columns: str) -> list[dict[str, str]]:
    return [row for _, row in read_rows(path, columns, more=True, absent=NOT_RUN)]


def _number(path: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{path}: {text!r} given, expected a number") from None


def _external(config: Config) -> dict[str, ExternalOutputs]:
    return {outputs.name: outputs for outputs in config.external_outputs}


Row = tuple[dict[str, str], list[str]]  # a line of a table and its run ids


def table_rows(config: Config, table: Path, dataset: str | None = None) -> dict[str, Row]:
    """Row name (passionsr-W6A6, fp32) -> line and run ids, in the order of the table.

    dataset: whose rows; None: those of the only one. UserError lists what a table has.
    """
    scope = explained_table(table).scope
    names = {(title, UNQUANTIZED): (ref, [ref]) for ref, title in REFERENCES.items()}
    for name, outputs in _external(config).items():
        names.setdefault((outputs.title, UNQUANTIZED), (name, [name]))
    for run in config.runs:
        if run.scope == scope:
            key = config.entries[run.method].title, run.scheme
            names.setdefault(key, (f"{run.method}-{run.scheme}", []))[1].append(run.run_id)
    rows: dict[str, dict[str, Row]] = {}
    for line in _read_csv(table, *TABLE_KEYS):
        key = line["method"], line["bits"]
        if line["source"] == MEASURED and key in names:
            name, run_ids = names[key]
            rows.setdefault(line["dataset"], {})[name] = line, run_ids
    if dataset is None and len(rows) > 1:
        raise UserError(f"{table} has several datasets, give --dataset: {', '.join(rows)}")
    if dataset is not None and dataset not in rows:
        raise UserError(f"{table}: no dataset {dataset!r}; datasets: {', '.join(rows) or 'none'}")
    return rows[dataset] if dataset is not None else next(iter(rows.values()), {})


def _provenance(config: Config, run_id: str) -> list[str]:
    """What made a run, one fact a line."""
    if run_id in REFERENCES:
        return [f"  not quantized   its images: {image_folder(config, run_id)}"]
    if run_id in _external(config):
        return [f"  made elsewhere  its images: {_external(config)[run_id].folder}"]
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


def _scores(
    config: Config, run_id: str, metric: str, dataset: str
) -> tuple[list[float], list[str]]:
    """A run's scores of one metric on one dataset, and what is said about the run."""
    path = scores_file(config, run_id, metric)
    named = bool(config.datasets)  # the one embedded test set has another name in tables
    rows = _read_csv(path, "dataset", "image", "value")
    rows = [row for row in rows if not named or row["dataset"] == dataset]
    if run_id in _external(config):  # they cover images that no run was tested on
        reference = _read_csv(scores_file(config, FP32, metric), "dataset", "image")
        tested = {row["image"] for row in reference if row["dataset"] == dataset}
        rows = [row for row in rows if row["image"] in tested]
    values = [_number(path, row["value"]) for row in rows if row["value"]]
    absent = [row.get("reason") or "no reason is recorded" for row in rows if not row["value"]]
    mean = f"mean {sum(values) / len(values)!r} of {len(values)} images" if values else "n/a"
    text = [f"{run_id}: {mean}", f"  scores sha256   {sha256_file(path)}  {path}"]
    text += [f"  n/a             {missing_note(len(values), absent)}"] if absent else []
    return values, text + _provenance(config, run_id)


def explain(config: Config, table: Path, row: str, column: str, dataset: str | None = None) -> str:
    """Everything behind one cell of a table of means, as text.

    Args:
        config: of the results that hold the table.
        table: results/<name>/tables/<table>.csv.
        row: `method-W6A6`, `fp32`, `bicubic` or the name of external outputs.
        column: a metric.
        dataset: whose row, where the table has several datasets.

    Raises UserError for an unknown table, dataset, row or column (listing what exists), a run of
    another configuration, and a mean of the scores that differs from the cell.
    """
    rows = table_rows(config, table, dataset)
    if row not in rows:
        raise UserError(f"{table}: no row {row!r}; rows: {', '.join(rows) or 'none'}")
    line, run_ids = rows[row]
    if column not in config.metrics or column not in line:
        raise UserError(f"{table}: no column {column!r}; columns: {', '.join(config.metrics)}")
    text: list[str] = []
    values: list[float] = []
    for run_id in run_ids:
        scores, lines = _scores(config, run_id, column, line["dataset"])
        values += scores
        text += lines
    cell = _number(table, line[column]) if line[column] else math.nan
    mean = sum(values) / len(values) if values else math.nan
    # The table's mean adds in another order: equal to a few units in the last place, far below any
    # printed digit.
    if not (math.isclose(mean, cell, rel_tol=1e-12) or (math.isnan(mean) and math.isnan(cell))):
        raise UserError(
            f"{table}: {row}, {column} is {cell!r}, but the mean of its {len(values)} scores is "
            f"{mean!r}; table and scores do not belong together: run the workflow again"
        )
    where = "" if line["dataset"] == EMBEDDED else f"{line['dataset']}, "
    head = f"{table}: {where}{row}, {column} = " + ("n/a" if math.isnan(cell) else repr(cell))
    count = f"{len(values)} scores of {len(run_ids)} run(s)"
    return "\n".join([f"{head}, recomputed from {count}", *text])


def explain_table(
    table: Path,
    row: str,
    column: str,
    config: Path | None = None,
    dataset: str | None = None,
) -> str:
    """`explain` for a table of any checkout, from any folder.

    Args:
        table: path of the table; may be a link or go through one.
        row: see `explain`.
        column: see `explain`.
        config: configuration of the results; None: the one that has their name.
        dataset: see `explain`.

    Raises UserError as `explain`, and where there is no such configuration.
    """
    given = config.absolute() if config else None
    root, path = locate_table(table, config)
    with contextlib.chdir(root):  # paths in a configuration are relative to the checkout
        short = path.relative_to(root) if path.is_relative_to(root) else path
        loaded = load_config(given or Path("config") / f"{path.parent.parent.name}.yaml")
        return explain(loaded, short, row, column, dataset)
