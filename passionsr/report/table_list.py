"""The tables of a benchmark, one entry each: which rows, which columns, what is said about them.

The workflow's outputs, `write_tables`, `explain`, the bands and the pages all go through TABLES; to
add a table, add an entry. No pandas here: the workflow reads this list whenever it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from passionsr.benchmark.config import BICUBIC, FP32, Config
from passionsr.data.datasets import shared_folder
from passionsr.utils.defaults import PACKAGED
from passionsr.utils.files import UserError

# Filled in by TableSpec.said. {beside}: where a page or file shows the interval, "below" or
# "beside" the value; {over}: what was sampled; {undecided}: what ≈ means, or why nothing is marked.
MEANS = (
    "Mean over {over}, {beside} it its 95 % interval; bold: best of its bit width; {undecided}; "
    "n/a: weights not available here (see the log)."
)
DIFFERENCES = (
    "Mean difference over {over}, {beside} it its 95 % interval (the same images and seeds on both "
    "sides); {undecided}; n/a: the other row, or the metric's weights, are not there."
)
UNDECIDED = (
    "≈: the difference {to} is not decided (paired over images and seeds, p above 0.05 after the "
    "correction for the number of this table's comparisons, Benjamini and Hochberg)"
)
ONE_SEED = "one seed was run, which says nothing about other seeds, so no difference is marked"
ANOTHER_MODEL = (
    "another model (SD2.1 / OSEDiff) on other data (full-size test sets). Compare the order of the "
    "methods, never the values."
)
UNTRAINED = "minmax"  # the row that the paper's ablation starts from

# Where a table appears, apart from its files.
RESULTS_PAGE = "docs/results/<name>.md"
HEADLINE = "README.md, in short"


@dataclass(frozen=True)
class Column:
    """A printed column that is no metric: what a run costs."""

    name: str
    title: str
    digits: int


@dataclass(frozen=True)
class Published:
    """Numbers of the paper that stand below ours.

    Attributes:
        source: where they were published.
        file: the CSV: dataset, bits, method, metrics; it may be absent.
        cost: its cost columns.
        remark: what else must be said about them.
        tested_only: True to show only the datasets that the configuration tests.
    """

    source: str
    file: Callable[[], Path]
    cost: tuple[Column, ...] = ()
    remark: str = ""
    tested_only: bool = False


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One table: results/<name>/tables/<table>.{csv,md,tex}.

    Attributes:
        name: of the files.
        title: {name} is the configuration's.
        scope: of the runs it shows, "U" or "UV".
        methods: the configuration -> the methods it shows, in print order.
        references: rows that are not quantized.
        minus: None for a table of means; for one of differences the configuration and a method ->
            the method that is subtracted from it, None if there is none.
        cost: cost columns before the metrics.
        published: the block below ours.
        legend: what the numbers mean; see MEANS for what is filled in.
        sign: "+" prints the sign of positive numbers.
        pages: where it appears.
        in_bands: True if config/expected.tsv holds its numbers.
        exists: whether a configuration has it; None: always.
    """

    name: str
    title: str
    scope: str
    methods: Callable[[Config], Sequence[str]]
    references: tuple[str, ...] = (FP32,)
    minus: Callable[[Config, str], str | None] | None = None
    cost: tuple[Column, ...] = ()
    published: Published | None = None
    legend: str = MEANS
    sign: str = ""
    pages: tuple[str, ...] = (RESULTS_PAGE,)
    in_bands: bool = False
    exists: Callable[[Config], bool] | None = None

    def said(self, beside: str, seeds: int) -> str:
        """The legend of a table whose quantized rows have so many seeds (the most of any row)."""
        to = "to the best" if self.minus is None else "to 0"
        return self.legend.format(
            beside=beside,
            over="images and seeds" if seeds > 1 else "images",
            undecided=UNDECIDED.format(to=to) if seeds > 1 else ONE_SEED,
        )

    @property
    def cost_columns(self) -> tuple[Column, ...]:
        """Our cost columns, then those of the published block."""
        return (*self.cost, *(self.published.cost if self.published else ()))


def every_method(config: Config) -> list[str]:
    """The methods of the run sheet, in its order."""
    return list(dict.fromkeys(run.method for run in config.runs))


def whole_methods(config: Config) -> list[str]:
    """The methods of the run sheet that are no ablation."""
    return [name for name in every_method(config) if not config.entries[name].ablation]


def ablation_rows(config: Config, kind: str) -> list[str]:
    """Methods of an ablation table: MinMax, the methods that have ablations, and these.

    kind: "parts" (a part switched off) or "released" (a behaviour of released code switched on).
    """
    targets = {e.target for e in config.entries.values() if e.ablation == kind}

    def belongs(name: str) -> bool:
        entry = config.entries[name]
        return name == UNTRAINED or (entry.target in targets and entry.ablation in (None, kind))

    return [name for name in every_method(config) if belongs(name)]


def released_switches(config: Config) -> list[str]:
    """The methods of the run sheet with a behaviour of released code switched on."""
    return [n for n in every_method(config) if config.entries[n].ablation == "released"]


def without_switch(config: Config, method: str) -> str | None:
    """The first method of the same class that is no ablation."""
    for name, entry in config.entries.items():
        if entry.ablation is None and entry.target == config.entries[method].target:
            return name
    return None


TABLE2 = Published(
    "PassionSR, CVPR 2025, Table 2",
    lambda: shared_folder() / "published" / "passionsr_table2.csv",
    tested_only=True,
)
TABLE4 = Published(
    "PassionSR, CVPR 2025, Table 4",
    lambda: PACKAGED / "published_table4.csv",
    cost=(Column("hours", "GPU time, h", 2), Column("gb", "GPU memory, GB", 0)),
    remark="w/o LET is the paper's LBQ, w/o DQC its LBQ+LET.",
)
COST = (Column("seconds", "calibration, s", 0), Column("mib", "memory above imports, MiB", 0))
GPU_COST = (COST[0], Column("gpu_mib", "GPU memory, MiB", 0))

TABLES = (
    TableSpec(
        name="table2",
        title="Table 2 ({name}): UNet + VAE quantized",
        scope="UV",
        methods=whole_methods,
        references=(BICUBIC, FP32),
        published=TABLE2,
        pages=(RESULTS_PAGE, HEADLINE),
        in_bands=True,
    ),
    TableSpec(  # in short: table4 shows the same rows with what they cost
        name="ablation",
        title="Ablation ({name}): UNet + VAE quantized",
        scope="UV",
        methods=lambda config: ablation_rows(config, "parts"),
        pages=(),
    ),
    TableSpec(
        name="table4",
        title="Table 4 ({name}): UNet + VAE quantized",
        scope="UV",
        methods=lambda config: ablation_rows(config, "parts"),
        cost=COST,
        published=TABLE4,
        in_bands=True,
    ),
    TableSpec(
        name="released",
        title="Released behaviour, one switch at a time ({name}): UNet + VAE quantized",
        scope="UV",
        methods=lambda config: ablation_rows(config, "released"),
        exists=lambda config: bool(released_switches(config)),
    ),
    TableSpec(
        name="released_cost",
        title="What each released switch changes ({name}): UNet + VAE quantized",
        scope="UV",
        methods=released_switches,
        references=(),
        minus=without_switch,
        legend=DIFFERENCES,
        sign="+",
        exists=lambda config: bool(released_switches(config)),
    ),
    TableSpec(
        name="unet_only",
        title="UNet only ({name})",
        scope="U",
        methods=every_method,
        in_bands=True,
    ),
)


def tables_of(config: Config) -> list[TableSpec]:
    """The tables that a configuration has."""
    found = [spec for spec in TABLES if spec.exists is None or spec.exists(config)]
    return found if config.device == "cpu" else [on_gpu(spec) for spec in found]


def on_gpu(spec: TableSpec) -> TableSpec:
    """The same table with the memory that runs took on a GPU."""
    return replace(spec, cost=GPU_COST) if spec.cost else spec


def table_spec(name: str) -> TableSpec:
    """The entry of that name; UserError if there is none."""
    for spec in TABLES:
        if spec.name == name:
            return spec
    raise UserError(f"table {name!r} is unknown; known: {', '.join(s.name for s in TABLES)}")


def table_files(config: Config) -> list[Path]:
    """Everything that the job `tables` writes."""
    folder = config.results / "tables"
    names = [f"{t.name}.{suffix}" for t in tables_of(config) for suffix in ("csv", "md", "tex")]
    names += ["cost.md", "summary.json"]
    if config.external_outputs:
        names += ["parity.csv", "parity.md"]
    return [folder / name for name in names]
