"""Score rows -> tables (csv, md, tex). Never imports the model or torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from passionsr.config import BICUBIC, FP32, Config, parse_scheme
from passionsr.datasets import shared_folder
from passionsr.files import UserError, read_json, write_json, write_text
from passionsr.metric_table import METRICS
from passionsr.parity import compare, to_markdown
from passionsr.stages import check_run, scores_file

DRAWS = 2000
LEGEND = (
    "Mean over images and seeds, below it the 95 % bootstrap interval; bold: best of its bit width; ≈: the paired "
    "difference to the best is inside the noise; n/a: weights not available here (see the log)."
)
PARITY_NOTE = (
    "The published log was written by another program on a GPU with TF32 convolutions: LPIPS and DISTS of single "
    "images differ by up to 3e-4 from float32 (tests/test_metrics.py repeats those images with TF32's rounding and "
    "gets within 1e-4). NIQE picks its shape parameters from a grid, where float noise now and then flips a choice."
)
PUBLISHED = Path("published") / "passionsr_table2.csv"
PUBLISHED_TABLE4 = Path(__file__).resolve().parent.parent / "config" / "published_table4.csv"

DIFFERENCES = (
    "Mean difference over images and seeds, below it its 95 % bootstrap interval (the same images and seeds on both "
    "sides); ≈: inside the noise; n/a: the other row, or the metric's weights, are not there."
)
ANOTHER_MODEL = "another model (SD2.1 / OSEDiff) on other data (full-size test sets). Compare the order of the methods, never the values."
UNTRAINED = "minmax"  # the row that the paper's ablation starts from


@dataclass(frozen=True)
class Column:
    """A printed column that is no metric: what a run costs."""

    name: str
    title: str
    digits: int


COST = (Column("seconds", "calibration, s", 0), Column("mib", "memory above imports, MiB", 0))
PUBLISHED_COST = (Column("hours", "GPU time, h", 2), Column("gb", "GPU memory, GB", 0))


def load_scores(config: Config) -> pd.DataFrame:
    """All scores of a configuration, one row per number; `value` is NaN where not available.

    Of given outputs, which cover their whole dataset, the images that the runs were tested on.
    """
    given = [g.name for g in config.given]
    run_ids = [BICUBIC, FP32, *given, *(run.run_id for run in config.runs)]
    frames = [read_scores(config, run_id) for run_id in run_ids]
    tested = set(zip(frames[1].dataset, frames[1].image, strict=True))
    scores = pd.concat(frames, ignore_index=True)
    keys = pd.Series(zip(scores.dataset, scores.image, strict=True), index=scores.index)
    return scores[~scores.run_id.isin(given) | keys.isin(tested)]


def read_scores(config: Config, run_id: str) -> pd.DataFrame:
    """The score rows of one run."""
    return pd.read_csv(scores_file(config, run_id))


def mean_scores(scores: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Mean over images and seeds: index (scheme, scope, method), one column per metric."""
    keys = ["scheme", "scope", "method"]
    table = scores.groupby([*keys, "metric"], sort=False)["value"].mean().unstack("metric")
    return table.reindex(columns=list(metrics))


def mark_best(group: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Boolean frame: True where a row is best of its group, by the digits that are printed."""
    marks = pd.DataFrame(False, index=group.index, columns=list(metrics))
    for name in metrics:
        column = group[name].round(METRICS[name].digits)
        if column.notna().any():
            best = column.min() if METRICS[name].lower_better else column.max()
            marks[name] = column == best
    return marks


def resampled_means(group: pd.DataFrame, draws: int = DRAWS) -> pd.DataFrame:
    """Bootstrap means of one metric: (draws, methods), images and seeds drawn with replacement.

    The same images and the same seeds are drawn for every method, so differences between columns are paired: a seed means the
    same order of the calibration images for all of them. group: score rows.
    """
    cube = group.pivot_table("value", ["method", "seed"], "image", sort=False).sort_index()
    counts = cube.groupby(level="method").size()
    rng = np.random.default_rng(0)
    images = rng.integers(0, cube.shape[1], (draws, cube.shape[1]))
    drawn = {n: rng.integers(0, n, (draws, n)) for n in sorted(set(counts))}
    means = {}
    for method in dict.fromkeys(group.method):
        values = cube.loc[method].to_numpy()  # (seeds, images)
        seeds = drawn[len(values)]
        means[method] = values[seeds[:, :, None], images[:, None, :]].mean((1, 2))
    return pd.DataFrame(means)


def _band(draws: pd.Series) -> tuple[float, float]:
    """The 95 % interval of bootstrap draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def intervals(
    scores: pd.DataFrame, metric: str, best: Sequence[str]
) -> dict[str, tuple[float, float, bool]]:
    """Method -> (lower, upper, within noise) of one group of score rows.

    95 % bootstrap interval over images and seeds; within noise: the 95 % interval of the paired difference to the
    best method holds 0.
    """
    rows = scores[(scores.metric == metric) & scores.value.notna()]
    if rows.empty:
        return {}
    means = resampled_means(rows)
    result = {}
    for method in means:
        noise = False
        if best and method not in best and best[0] in means:
            low, high = _band(means[method] - means[best[0]])
            noise = low <= 0 <= high
        result[method] = (*_band(means[method]), noise)
    return result


def build(
    config: Config,
    scores: pd.DataFrame,
    methods: Sequence[str],
    scope: str,
    references: Sequence[str],
) -> pd.DataFrame:
    """Rows in print order: bits, method, metrics, best and noise (names, ';'-separated), <metric>_lo, <metric>_hi."""
    means = mean_scores(scores, config.metrics)
    rows = []
    schemes = sorted(
        dict.fromkeys(r.scheme for r in config.runs if r.scope == scope),
        key=lambda scheme: -parse_scheme(scheme).weight_bits,
    )
    titles = {BICUBIC: "Bicubic", FP32: "FP32", **{n: e.title for n, e in config.entries.items()}}
    titles |= {g.name: g.title for g in config.given}
    for scheme in ["W32A32", *schemes]:
        wanted = references if scheme == "W32A32" else methods
        here = "UV" if scheme == "W32A32" else scope
        group = pd.DataFrame(
            {m: means.loc[(scheme, here, m)] for m in wanted if (scheme, here, m) in means.index}
        ).T
        if group.empty:
            continue
        # References are no competitors: only quantized methods are marked against each other.
        compete = scheme != "W32A32" and len(group) > 1
        marks = mark_best(group, config.metrics) & compete
        own = scores[(scores.scheme == scheme) & (scores.scope == here)]
        own = own[own.method.isin(group.index)]
        bands = {n: intervals(own, n, list(marks.index[marks[n]])) for n in config.metrics}
        for method, row in group.iterrows():
            cells = {n: b[method] for n, b in bands.items() if method in b}
            line = {"bits": scheme, "method": titles[method], **row.to_dict()}
            line["best"] = ";".join(n for n in config.metrics if marks.loc[method, n])
            line["noise"] = ";".join(n for n, (_, _, noise) in cells.items() if noise)
            for name, (low, high, _) in cells.items():
                line |= {f"{name}_lo": low, f"{name}_hi": high}
            rows.append(line)
    return pd.DataFrame(rows, columns=_columns(config))


def _columns(config: Config) -> list[str]:
    bounds = [f"{n}_{end}" for n in config.metrics for end in ("lo", "hi")]
    return ["bits", "method", *config.metrics, "best", "noise", *bounds]


EMBEDDED = "embedded test set"


def build_all(
    config: Config,
    scores: pd.DataFrame,
    methods: Sequence[str],
    scope: str,
    references: Sequence[str],
) -> pd.DataFrame:
    """`build` per dataset, one below the other, with a column dataset."""
    if not config.datasets:
        return build(config, scores, methods, scope, references).assign(dataset=EMBEDDED)
    parts = []
    for dataset in config.datasets:
        given = [g.name for g in config.given if g.dataset == dataset.name]
        own = scores[scores.dataset == dataset.name]
        part = build(config, own, methods, scope, [*references, *given])
        parts.append(part.assign(dataset=dataset.name))
    return pd.concat(parts, ignore_index=True)


def format_rows(
    table: pd.DataFrame,
    metrics: Sequence[str],
    bold: str,
    interval: str | None = None,
    cost: Sequence[Column] = (),
    sign: str = "",
) -> list[list[str]]:
    """Strings for printing; a repeated bit width is left blank. `cost` columns stand before the metrics.

    bold: a format such as "**{}**". interval: a format with two places, appended to the value. "≈" marks a
    difference to the best that is inside the noise. sign: "+" prints both signs.
    """
    lines, last = [], None
    for _, row in table.iterrows():
        cells = ["" if row.bits == last else row.bits, row.method]
        last = row.bits
        cells += ["n/a" if pd.isna(row[c.name]) else f"{row[c.name]:.{c.digits}f}" for c in cost]
        for name in metrics:
            value = row[name]
            text = "n/a" if pd.isna(value) else f"{value:{sign}.{METRICS[name].digits}f}"
            if name in str(row.best).split(";"):
                text = bold.format(text)
            elif name in str(row.get("noise", "")).split(";"):
                text += " ≈"
            low, high = row.get(f"{name}_lo"), row.get(f"{name}_hi")
            if interval is not None and pd.notna(low):
                digits = METRICS[name].digits
                text += interval.format(f"{low:{sign}.{digits}f}", f"{high:{sign}.{digits}f}")
            cells.append(text)
        lines.append(cells)
    return lines


def headers(metrics: Sequence[str], cost: Sequence[Column] = ()) -> list[str]:
    """Column titles with the better direction."""
    arrow = {True: "↓", False: "↑"}
    return [
        "bits",
        "method",
        *(c.title for c in cost),
        *(f"{METRICS[n].title} {arrow[METRICS[n].lower_better]}" for n in metrics),
    ]


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


def _tex_safe(text: str) -> str:
    for old, new in (
        ("_", r"\_"),
        ("≈", r"$\approx$"),
        ("%", r"\%"),
        ("↓", r"$\downarrow$"),
        ("↑", r"$\uparrow$"),
    ):
        text = text.replace(old, new)
    return text


def write_table(
    table: pd.DataFrame, metrics: Sequence[str], stem: Path, title: str, published: pd.DataFrame | None = None,
    published_note: str = "", cost: Sequence[Column] = (), published_cost: Sequence[Column] = (),
    legend: str = LEGEND, sign: str = "",
) -> None:  # fmt: skip
    """Write stem.csv, stem.md and stem.tex; the published block comes second, labelled as such. sign: see `format_rows`."""
    measured = table.assign(source="measured here")
    blocks = (
        [measured]
        if published is None
        else [measured, published.assign(source="published, another model")]
    )
    extra = [c for c in measured.columns if c == "noise" or c.endswith(("_lo", "_hi"))]
    costs = [c.name for c in (*cost, *published_cost)]
    columns = ["source", "dataset", "bits", "method", *costs, *metrics, "best", *extra]
    merged = pd.concat(blocks, ignore_index=True).reindex(columns=columns)
    write_text(stem.with_suffix(".csv"), merged.to_csv(index=False, lineterminator="\n"))
    markdown = [f"**{title}**", ""]
    tex = [r"% needs \usepackage{booktabs}", f"% {title}"]
    for dataset, part in table.groupby("dataset", sort=False):
        if dataset != EMBEDDED:
            markdown += [f"*{dataset}, measured here*", ""]
            tex += [f"% {dataset}, measured here"]
        rows = format_rows(part, metrics, "**{}**", "<br><sub>{} .. {}</sub>", cost, sign)
        markdown += [tabulate(rows, headers(metrics, cost), "pipe", disable_numparse=True), ""]
        tex += [tabulate(
            [
                [_tex_safe(c) if "textbf" not in c else c for c in row]
                for row in format_rows(part, metrics, r"\textbf{{{}}}", r" [{}, {}]", cost, sign)
            ],
            [_tex_safe(h) for h in headers(metrics, cost)], "latex_raw", disable_numparse=True,
        )]  # fmt: skip
    markdown.append(legend)
    if published_note:
        markdown += ["", published_note]
        tex += ["", f"% {published_note}"]
    if published is not None:
        common = [m for m in metrics if m in published.columns]
        for dataset, block in published.groupby("dataset", sort=False):
            head = headers(common, published_cost)
            rows = format_rows(block, common, "**{}**", cost=published_cost)
            markdown += [
                "",
                f"*{dataset}, published*",
                "",
                tabulate(rows, head, "pipe", disable_numparse=True),
            ]
            tex_rows = format_rows(block, common, r"\textbf{{{}}}", cost=published_cost)
            tex += ["", f"% {dataset}, published", tabulate(
                [[_tex_safe(c) for c in r] for r in tex_rows], [_tex_safe(h) for h in head], "latex_raw", disable_numparse=True,
            )]  # fmt: skip
    write_text(stem.with_suffix(".md"), "\n".join(markdown) + "\n")
    write_text(stem.with_suffix(".tex"), "\n".join(tex) + "\n")


def run_costs(config: Config) -> pd.DataFrame:
    """One row per run: run, bits, method (title), scope, and its calibration's seconds, peak MiB and mib above the imports."""
    rows = []
    for run in config.runs:
        made = read_json(config.results / "runs" / run.run_id / "run.json")
        rows.append(
            {
                "run": run.run_id,
                "bits": run.scheme,
                "method": config.entries[run.method].title,
                "scope": run.scope,
                "seconds": made["seconds"],
                "peak MiB": made["peak_mib"],
                "mib": made["peak_mib"] - made["peak_mib_before_calibration"],
            }
        )
    return pd.DataFrame(rows)


def with_cost(table: pd.DataFrame, costs: pd.DataFrame, scope: str) -> pd.DataFrame:
    """`table` with the mean cost of each row's runs; float rows have none."""
    own = costs[costs.scope == scope].groupby(["bits", "method"])[["seconds", "mib"]].mean()
    return table.join(own, on=["bits", "method"])


def ablation_rows(config: Config, kind: str) -> list[str]:
    """Methods of an ablation table: MinMax, what the ablations are variants of, and the variants of `kind`."""
    used = dict.fromkeys(r.method for r in config.runs)
    targets = {e.target for e in config.entries.values() if e.ablation == kind}

    def belongs(name: str) -> bool:
        entry = config.entries[name]
        return name == UNTRAINED or (entry.target in targets and entry.ablation in (None, kind))

    return [name for name in used if belongs(name)]


def released_costs(config: Config, scores: pd.DataFrame) -> pd.DataFrame:
    """What each released switch changes (UNet + VAE): its row minus the row of the same class without it.

    Columns dataset, bits, method, the metrics, best (empty), noise, <metric>_lo, <metric>_hi, as `build_all`'s.
    """
    plain: dict[str, str] = {}
    for name, entry in config.entries.items():
        if entry.ablation is None:
            plain.setdefault(entry.target, name)
    pairs = {
        run.method: plain.get(config.entries[run.method].target)
        for run in config.runs
        if config.entries[run.method].ablation == "released"
    }
    own = scores[(scores.scope == "UV") & scores.value.notna()]
    rows = []
    for scheme in dict.fromkeys(r.scheme for r in config.runs if r.method in pairs):
        for dataset in [d.name for d in config.datasets] or [None]:
            group = own[own.scheme == scheme]
            group = group if dataset is None else group[group.dataset == dataset]
            for method, base in pairs.items():
                line = {"dataset": dataset or EMBEDDED, "bits": scheme, "best": "", "noise": []}
                line["method"] = config.entries[method].title
                both = group[group.method.isin((method, base))]
                for name in config.metrics if both.method.nunique() == 2 else ():
                    part = both[both.metric == name]
                    if part.empty:
                        continue
                    drawn = resampled_means(part)
                    low, high = _band(drawn[method] - drawn[base])
                    means = part.groupby("method").value.mean()
                    line |= {name: means[method] - means[base], f"{name}_lo": low, f"{name}_hi": high}  # fmt: skip
                    line["noise"] += [name] if low <= 0 <= high else []
                rows.append({**line, "noise": ";".join(line["noise"])})
    return pd.DataFrame(rows, columns=["dataset", *_columns(config)])


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
    """parity.csv and parity.md: our scores of given outputs next to the published ones, over all images."""
    table2 = published_rows(config.metrics)
    frames, markdown = [], []
    for given in config.given:
        markdown += [f"**Metric parity ({config.name}): {given.title}, {given.dataset}**", ""]
        if given.published is None or not given.published.is_file():
            markdown += [f"No published scores to compare with ({given.published}).", ""]
            continue
        own = compare(read_scores(config, given.name), given.published, config.metrics)
        frames.append(own.assign(given=given.name, dataset=given.dataset))
        row = {}
        full = given.dataset.split("_crop")[0]
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


def write_tables(config: Config) -> None:
    """table2, ablation, table4 (the ablation with what it cost), unet_only, cost; released and released_cost: released behaviour, and what it costs.

    And summary.json: the means as nested keys.
    """
    for run in config.runs:
        check_run(config, run.run_id)
    scores = load_scores(config)
    folder = config.results / "tables"
    used = list(dict.fromkeys(r.method for r in config.runs))
    main = [m for m in used if not config.entries[m].ablation]
    published, note = published_block(config)

    def rows(methods: Sequence[str], scope: str, *references: str) -> pd.DataFrame:
        return build_all(config, scores, methods, scope, references)

    where = f"({config.name}): UNet + VAE quantized"
    write_table(
        rows(main, "UV", BICUBIC, FP32), config.metrics, folder / "table2", f"Table 2 {where}", published, note,
    )  # fmt: skip
    parts = rows(ablation_rows(config, "parts"), "UV", FP32)
    write_table(parts, config.metrics, folder / "ablation", f"Ablation {where}")
    costs = run_costs(config)
    write_table(
        with_cost(parts, costs, "UV"), config.metrics, folder / "table4", f"Table 4 {where}",
        marked(PUBLISHED_TABLE4, config.metrics, PUBLISHED_COST),
        f"w/o LET is the paper's LBQ, w/o DQC its LBQ+LET. Published numbers (PassionSR, CVPR 2025, Table 4): {ANOTHER_MODEL}",
        COST, PUBLISHED_COST,
    )  # fmt: skip
    if "released" in config.tables:
        write_table(
            rows(ablation_rows(config, "released"), "UV", FP32), config.metrics, folder / "released",
            f"Released behaviour, one switch at a time {where}",
        )  # fmt: skip
        write_table(
            released_costs(config, scores), config.metrics, folder / "released_cost",
            f"What each released switch changes {where}", legend=DIFFERENCES, sign="+",
        )  # fmt: skip
    write_table(
        rows(used, "U", FP32), config.metrics, folder / "unet_only", f"UNet only ({config.name})"
    )
    if config.given:
        write_parity(config, folder)
    summary: dict[str, Any] = {}
    for (scheme, scope, method), row in mean_scores(scores, config.metrics).iterrows():
        group = summary.setdefault(scheme, {}).setdefault(scope, {})
        group[method] = row.dropna().to_dict()
    write_json(folder / "summary.json", summary)
    per_run = tabulate(
        costs[["run", "seconds", "peak MiB", "mib"]].rename(columns={"mib": "MiB above imports"}),
        headers="keys", tablefmt="pipe", showindex=False,
    )  # fmt: skip
    write_text(
        folder / "cost.md",
        f"Calibration cost with {config.threads} thread(s) per run; varies from run to run.\n\n{per_run}\n",
    )
