"""Published numbers beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from passionsr.benchmark.config import Config
from passionsr.data.datasets import shared_folder
from passionsr.report.parity import compare, to_markdown
from passionsr.report.rendering import (
    Column,
)
from passionsr.report.scores import read_scores
from passionsr.report.statistics import mark_best
from passionsr.utils.defaults import PACKAGED
from passionsr.utils.files import UserError, write_text

PARITY_NOTE = (
    "The published log was written by another program on a GPU with TF32 convolutions: LPIPS and DISTS of single "
    "images differ by up to 3e-4 from float32 (tests/test_metrics.py repeats those images with TF32's rounding and "
    "gets within 1e-4). NIQE picks its shape parameters from a grid, where float noise now and then flips a choice."
)


PUBLISHED = Path("published") / "passionsr_table2.csv"


PUBLISHED_TABLE4 = PACKAGED / "published_table4.csv"


ANOTHER_MODEL = "another model (SD2.1 / OSEDiff) on other data (full-size test sets). Compare the order of the methods, never the values."


COST = (Column("seconds", "calibration, s", 0), Column("mib", "memory above imports, MiB", 0))


PUBLISHED_COST = (Column("hours", "GPU time, h", 2), Column("gb", "GPU memory, GB", 0))


def published_rows(metrics: Sequence[str]) -> pd.DataFrame | None:
    """The paper's Table 2 in our columns (fidelity columns do not exist there); None if not at hand."""
    path = shared_folder() / PUBLISHED
    return marked(path, metrics) if path.is_file() else None


def marked(path: Path, metrics: Sequence[str], cost: Sequence[Column] = ()) -> pd.DataFrame:
    """Published rows of a CSV with the best of every dataset and bit width marked."""
    frame = pd.read_csv(path, comment="#")
    common = [m for m in metrics if m in frame.columns]
    extra = [c.name for c in cost]
    missing = {"dataset", "bits", "method", *extra} - set(frame.columns)
    if missing or not common:
        raise UserError(f"{path}: expected columns dataset, bits, method and metrics")
    groups = []
    for (_, bits), group in frame.groupby(["dataset", "bits"], sort=False):
        marks = mark_best(group, common)
        compete = bits != "W32A32"
        best = [";".join(n for n in common if compete and marks.loc[i, n]) for i in group.index]
        groups.append(group.assign(best=best))
    return pd.concat(groups)[["dataset", "bits", "method", *extra, *common, "best"]]


def published_block(config: Config) -> tuple[pd.DataFrame | None, str]:
    """The published rows that go below Table 2, and what must be said about them."""
    published = published_rows(config.metrics)
    if published is None:
        return None, (
            f"The published block is left out: {shared_folder() / PUBLISHED} is not there "
            "(set PASSIONSR_SHARED to the folder that holds published/)."
        )
    names = {d.name for d in config.datasets}
    if names:
        wanted = {name.split("_crop")[0] for name in names}
        published = published[published.dataset.isin(wanted)]
    if names and names <= set(published.dataset):
        return published, (
            "Published numbers (PassionSR, CVPR 2025, Table 2) on the full-size test sets of these names."
        )
    return published, f"Published numbers (PassionSR, CVPR 2025, Table 2): {ANOTHER_MODEL}"


def write_parity(config: Config, folder: Path) -> None:
    """parity.csv and parity.md: our scores of external outputs next to the published ones, over all images."""
    table2 = published_rows(config.metrics)
    frames, markdown = [], []
    for outputs in config.external_outputs:
        markdown += [f"**Metric parity ({config.name}): {outputs.title}, {outputs.dataset}**", ""]
        if outputs.published is None or not outputs.published.is_file():
            markdown += [f"No published scores to compare with ({outputs.published}).", ""]
            continue
        own = compare(read_scores(config, outputs.name), outputs.published, config.metrics)
        frames.append(own.assign(outputs=outputs.name, dataset=outputs.dataset))
        row = {}
        full = outputs.dataset.split("_crop")[0]
        if table2 is not None:
            match = table2[(table2.dataset == full) & (table2.method == "OSEDiff")]
            row = {} if match.empty else match.iloc[0].to_dict()
        title = f"PassionSR's Table 2: OSEDiff on {full}, full-size images (other data)"
        markdown += [to_markdown(own, row, title), "", PARITY_NOTE, ""]
    columns = ["given", "dataset", "metric", "images", "published", "measured", "largest_difference", "relative",
               "tolerance", "beyond"]  # fmt: skip
    merged = pd.concat(frames) if frames else pd.DataFrame()
    write_text(
        folder / "parity.csv",
        merged.reindex(columns=columns).to_csv(index=False, lineterminator="\n"),
    )
    write_text(folder / "parity.md", "\n".join(markdown))
