"""Copies generated numbers and pictures into README.md, docs/ and the model card.

BLOCKS lists what is generated inside a written page: each between `<!-- name -->` and
`<!-- /name -->`. Whole pages, docs/results/<name>.md, hold every table of a run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from tabulate import tabulate

from passionsr.benchmark.config import load_config
from passionsr.benchmark.plan import plan
from passionsr.benchmark.timing import report
from passionsr.metrics.registry import METRICS
from passionsr.report.places import results_name
from passionsr.report.rendering import UNQUANTIZED
from passionsr.report.result_pages import (
    headline,
    measured_rows,
    per_dataset,
    read,
    read_table,
    results_page,
)
from passionsr.utils.files import UserError, atomic_path, write_text
from passionsr.utils.outputs import check_output_file

README = Path("README.md")
PICTURE = Path("docs/images/crops_W6A6.jpg")
RESULT_PAGES = Path("docs/results")
PARITY = Path("results/realsr-local/tables/parity.md")
PAPER = Path("config/paper.yaml")


@dataclass(frozen=True)
class Sources:
    """Finished runs: `results` of config/mini.yaml, `grid` of config/mini-full.yaml (hours)."""

    results: Path
    grid: Path


@dataclass(frozen=True)
class Block:
    """A generated part of a page.

    Attributes:
        name: of the markers.
        page: the file that holds them.
        text: makes the Markdown between them.
        source: a file without which it cannot be made; then the page keeps what it has.
    """

    name: str
    page: Path
    text: Callable[[Sources], str]
    source: Callable[[Sources], Path]


def _table2_of_results(sources: Sources) -> Path:
    return sources.results / "tables" / "table2.csv"


def _table2_of_grid(sources: Sources) -> Path:
    return sources.grid / "tables" / "table2.csv"


def paper_plan(sources: Sources) -> str:
    """What the paper's grid costs on eight GPUs."""
    return f"`passionsr plan {PAPER} --gpus 8`\n\n{plan(load_config(PAPER), 8)}"


def quality(sources: Sources) -> str:
    """Bicubic against the float model, with their ratio where lower is better; per dataset."""
    rows = measured_rows(read_table(sources.results, "table2"))
    return _tables(rows[rows.bits == UNQUANTIZED], _quality_table)


def _tables(rows: pd.DataFrame, made: Callable[[pd.DataFrame], str]) -> str:
    """What `made` makes of the rows of each dataset, below its heading if it has one."""
    return "\n\n".join(f"{heading}\n\n{made(part)}".lstrip() for heading, part in per_dataset(rows))


def _quality_table(rows: pd.DataFrame) -> str:
    """rows: of one dataset, not quantized."""
    rows = rows.set_index("method").loc[["Bicubic", "FP32"]]
    lines = []
    for name, metric in METRICS.items():
        if name not in rows or rows[name].isna().any():
            continue
        bicubic, model = map(float, rows[name])
        ratio, gain = f"x {model / bicubic:.2f}", f"{model - bicubic:+.4g}"
        values = [f"{value:.{metric.digits}f}" for value in (bicubic, model)]
        lines.append([metric.title, *values, ratio if metric.lower_better else gain])
    head = ["", "bicubic", "model (FP32)", "model / bicubic"]
    return tabulate(lines, head, "pipe", disable_numparse=True)


def difficulty(sources: Sources) -> str:
    """PSNR to FP32 of MinMax per bit width: UNet alone, UNet + VAE; per dataset."""
    tables = {"UNet only": "unet_only", "UNet + VAE": "table2"}
    read_in = {label: read_table(sources.grid, name) for label, name in tables.items()}
    rows = measured_rows(pd.concat(t.assign(label=label) for label, t in read_in.items()))
    rows = rows[rows.method == "MinMax"]
    return _tables(rows, _difficulty_table)


def _difficulty_table(rows: pd.DataFrame) -> str:
    """rows: of one dataset, with a column label; a number that nobody has is left out."""
    lines: dict[str, dict[str, str]] = {label: {} for label in dict.fromkeys(rows.label)}
    known: Iterable[Any] = rows[rows.psnr_fp.notna()].itertuples() if "psnr_fp" in rows else ()
    for row in known:
        lines[row.label][row.bits] = f"{row.psnr_fp:.1f} dB"
    return pd.DataFrame(lines).T.to_markdown(disable_numparse=True)


CARD = Path("models/mini/README.md")
PERFORMANCE = Path("docs/guides/performance.md")
PAPER_SCALE = Path("docs/guides/paper-scale.md")
BLOCKS = (
    Block("headline", README, lambda s: headline(s.grid), _table2_of_grid),
    Block("bench", PERFORMANCE, lambda s: report(s.results), _table2_of_results),
    Block("plan", PAPER_SCALE, paper_plan, lambda s: PAPER),
    Block("parity", PAPER_SCALE, lambda s: read(PARITY), lambda s: PARITY),
    Block("quality", CARD, quality, _table2_of_results),
    Block("difficulty", CARD, difficulty, _table2_of_grid),
)


def fill(text: str, name: str, block: str, page: Path = README) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`.

    Raises UserError, naming `page`, if the markers are missing.
    """
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    if not re.search(pattern, text, re.S):
        raise UserError(f"{page} has no markers <!-- {name} --> ... <!-- /{name} -->")
    return re.sub(
        pattern, lambda m: f"{m[1]}\n{block.strip()}\n\n{m[2]}", text, count=1, flags=re.S
    )


def update(readme: Path, results: Path, grid: Path) -> None:
    """Refresh the blocks of BLOCKS, docs/results/ and the picture from two finished runs.

    What cannot be made here stays as it is, and a printed line says so.

    Args:
        readme: the page of the blocks of README.md.
        results: of config/mini.yaml; must be there.
        grid: of config/mini-full.yaml.

    Raises UserError if `results` or the markers of a block are missing.
    """
    sources = Sources(results, grid)
    new = {_page_of(results): results_page(results)}
    if _table2_of_grid(sources).is_file():
        new[_page_of(grid)] = results_page(grid)
    else:
        print(f"{_page_of(grid)} stays: {grid} is not there")
    for block in BLOCKS:
        page = readme if block.page == README else block.page
        missing = [str(path) for path in (block.source(sources), page) if not path.is_file()]
        if missing:
            print(f"{page}, {block.name} stays: {missing[0]} is not there")
            continue
        new[page] = fill(new.get(page) or read(page), block.name, block.text(sources), page)
    for path in (PICTURE, *new):
        check_output_file(path)
    _copy_picture(results / "figures" / "crops_W6A6.png")
    for path, text in new.items():
        write_text(path, text)


def _copy_picture(source: Path) -> None:
    """The figure as the JPEG of the pages."""
    if not source.is_file():
        print(f"{PICTURE} stays: {source} is not there")
        return
    with Image.open(source) as image, atomic_path(PICTURE) as tmp:
        image.convert("RGB").save(tmp, quality=88)


def _page_of(results: Path) -> Path:
    return RESULT_PAGES / f"{results_name(results)}.md"
