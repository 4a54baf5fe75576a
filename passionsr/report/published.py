"""Published numbers beside ours."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from passionsr.benchmark.config import Config, ExternalOutputs
from passionsr.report.parity import compare, to_markdown
from passionsr.report.rendering import PublishedBlock
from passionsr.report.scores import read_scores
from passionsr.report.statistics import mark_best
from passionsr.report.table_list import ANOTHER_MODEL, TABLE2, Column, Published, TableSpec
from passionsr.utils.files import UserError, write_text
from passionsr.utils.text_files import read_text

PARITY_NOTE = (
    "The published log was written by another program on a GPU with TF32 convolutions: LPIPS and "
    "DISTS of single images differ by up to 3e-4 from float32 (tests/metrics/test_metrics.py "
    "repeats those images with TF32's rounding and gets within 1e-4). NIQE picks its shape "
    "parameters from a grid, where float noise now and then flips a choice."
)
PARITY_COLUMNS = (
    "outputs",
    "dataset",
    "metric",
    "images",
    "published",
    "measured",
    "largest_difference",
    "relative",
    "tolerance",
    "beyond",
)


def published_rows(published: Published, metrics: Sequence[str]) -> pd.DataFrame | None:
    """The paper's rows in our columns (no fidelity to FP32 there); None if not at hand."""
    file = published.file()
    return marked(file, metrics, published.cost) if file.is_file() else None


def marked(file: Path, metrics: Sequence[str], cost: Sequence[Column] = ()) -> pd.DataFrame:
    """Published rows of a CSV with the best of every dataset and bit width marked.

    Columns dataset, bits, method, the cost columns, the metrics of the file among `metrics`, best.
    Raises UserError if columns are missing.
    """
    frame = pd.read_csv(io.StringIO(read_text(file)), comment="#")
    common = [m for m in metrics if m in frame.columns]
    extra = [c.name for c in cost]
    missing = {"dataset", "bits", "method", *extra} - set(frame.columns)
    if missing or not common:
        raise UserError(f"{file}: expected columns dataset, bits, method and metrics")
    groups = []
    for (_, bits), group in frame.groupby(["dataset", "bits"], sort=False):
        marks = mark_best(group, common)
        compete = bits != "W32A32"
        best = [";".join(n for n in common if compete and marks.loc[i, n]) for i in group.index]
        groups.append(group.assign(best=best))
    return pd.concat(groups)[["dataset", "bits", "method", *extra, *common, "best"]]


def published_block(config: Config, spec: TableSpec) -> PublishedBlock:
    """The published rows that go below a table, and what must be said about them."""
    published = spec.published
    if published is None:
        return PublishedBlock()
    rows = published_rows(published, config.metrics)
    if rows is None:
        return PublishedBlock(
            None,
            f"The published block is left out: {published.file()} is not there "
            "(set PASSIONSR_SHARED to the folder that holds published/).",
        )
    tested = [d.name for d in config.datasets]
    if published.tested_only and tested:
        rows = rows[rows.dataset.isin({full_set(name) for name in tested})]
    return PublishedBlock(rows, published_note(published, tested, set(rows.dataset)))


def published_note(published: Published, tested: Collection[str], shown: Collection[str]) -> str:
    """What a published block is about. tested: our datasets; shown: those of the block."""
    source = f"Published numbers ({published.source})"
    if published.tested_only and tested and set(tested) <= set(shown):
        note = f"{source} on the full-size test sets of these names."
    else:
        note = f"{source}: {ANOTHER_MODEL}"
    return f"{published.remark} {note}".lstrip()


def full_set(dataset: str) -> str:
    """The test set that a set of its crops (RealSR_crop128) was cut from."""
    return dataset.split("_crop")[0]


def write_parity(config: Config, folder: Path) -> None:
    """parity.csv, parity.md: our scores of external outputs next to published ones, per image."""
    table2 = published_rows(TABLE2, config.metrics)
    frames, markdown = [], []
    for outputs in config.external_outputs:
        markdown += [f"**Metric parity ({config.name}): {outputs.title}, {outputs.dataset}**", ""]
        if outputs.published is None or not outputs.published.is_file():
            markdown += [f"No published scores to compare with ({outputs.published}).", ""]
            continue
        own = compare(read_scores(config, outputs.name), outputs.published, config.metrics)
        frames.append(own.assign(outputs=outputs.name, dataset=outputs.dataset))
        reference, title = _paper_means(table2, outputs)
        markdown += [to_markdown(own, reference, title), "", PARITY_NOTE, ""]
    merged = pd.concat(frames) if frames else pd.DataFrame()
    write_text(
        folder / "parity.csv",
        merged.reindex(columns=PARITY_COLUMNS).to_csv(index=False, lineterminator="\n"),
    )
    write_text(folder / "parity.md", "\n".join(markdown))


def _paper_means(
    table2: pd.DataFrame | None, outputs: ExternalOutputs
) -> tuple[dict[str, Any], str]:
    """OSEDiff's row of the paper's Table 2 on the full test set, and its title; {} if not there."""
    full = full_set(outputs.dataset)
    title = f"PassionSR's Table 2: OSEDiff on {full}, full-size images (other data)"
    if table2 is None:
        return {}, title
    match = table2[(table2.dataset == full) & (table2.method == "OSEDiff")]
    rows = match.head(1).to_dict("records")
    return {str(column): value for row in rows for column, value in row.items()}, title
