"""Score rows -> tables (csv, md, tex). Never imports the model or torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from passionsr.config import BICUBIC, FP32, Config
from passionsr.files import UserError, read_json, write_json, write_text
from passionsr.metric_table import METRICS
from passionsr.stages import check_run, scores_file

DRAWS = 2000
LEGEND = (
    "Mean over images and seeds, below it the 95 % bootstrap interval; bold: best of its bit width; ≈: the paired "
    "difference to the best is inside the noise; n/a: weights not available here (see the log)."
)
PUBLISHED = Path("published") / "passionsr_table2.csv"


def shared_folder() -> Path:
    """Published numbers and datasets: $PASSIONSR_SHARED, default ../shared."""
    return Path(os.environ.get("PASSIONSR_SHARED", "../shared"))


def load_scores(config: Config) -> pd.DataFrame:
    """All scores of a configuration, one row per number; `value` is NaN where not available."""
    run_ids = [BICUBIC, FP32, *(run.run_id for run in config.runs)]
    frames = [pd.read_csv(scores_file(config, r)) for r in run_ids]
    return pd.concat(frames, ignore_index=True)


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

    The same images are drawn for every method, so differences between columns are paired. group: score rows.
    """
    cube = group.pivot_table("value", ["method", "seed"], "image", sort=False)
    rng = np.random.default_rng(0)
    images = rng.integers(0, cube.shape[1], (draws, cube.shape[1]))
    means = {}
    for method in dict.fromkeys(cube.index.get_level_values("method")):
        values = cube.loc[method].to_numpy()  # (seeds, images)
        seeds = rng.integers(0, len(values), (draws, len(values)))
        means[method] = values[seeds[:, :, None], images[:, None, :]].mean((1, 2))
    return pd.DataFrame(means)


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
        low, high = np.percentile(means[method], [2.5, 97.5])
        noise = False
        if best and method not in best and best[0] in means:
            ends = np.percentile(means[method] - means[best[0]], [2.5, 97.5])
            noise = bool(ends[0] <= 0 <= ends[1])
        result[method] = (float(low), float(high), noise)
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
    schemes = list(dict.fromkeys(r.scheme for r in config.runs if r.scope == scope))
    titles = {BICUBIC: "Bicubic", FP32: "FP32", **{n: e.title for n, e in config.entries.items()}}
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
    bounds = [f"{n}_{end}" for n in config.metrics for end in ("lo", "hi")]
    return pd.DataFrame(rows, columns=["bits", "method", *config.metrics, "best", "noise", *bounds])


def format_rows(
    table: pd.DataFrame, metrics: Sequence[str], bold: str, interval: str | None = None
) -> list[list[str]]:
    """Strings for printing; a repeated bit width is left blank.

    bold: a format such as "**{}**". interval: a format with two places, appended to the value. "≈" marks a
    difference to the best that is inside the noise.
    """
    lines, last = [], None
    for _, row in table.iterrows():
        cells = ["" if row.bits == last else row.bits, row.method]
        last = row.bits
        for name in metrics:
            value = row[name]
            text = "n/a" if pd.isna(value) else f"{value:.{METRICS[name].digits}f}"
            if name in str(row.best).split(";"):
                text = bold.format(text)
            elif name in str(row.get("noise", "")).split(";"):
                text += " ≈"
            low, high = row.get(f"{name}_lo"), row.get(f"{name}_hi")
            if interval is not None and pd.notna(low):
                digits = METRICS[name].digits
                text += interval.format(f"{low:.{digits}f}", f"{high:.{digits}f}")
            cells.append(text)
        lines.append(cells)
    return lines


def headers(metrics: Sequence[str]) -> list[str]:
    """Column titles with the better direction."""
    arrow = {True: "↓", False: "↑"}
    return [
        "bits",
        "method",
        *(f"{METRICS[n].title} {arrow[METRICS[n].lower_better]}" for n in metrics),
    ]


def published_rows(metrics: Sequence[str]) -> pd.DataFrame | None:
    """The paper's Table 2 in our columns (fidelity columns do not exist there); None if not at hand."""
    path = shared_folder() / PUBLISHED
    if not path.is_file():
        return None
    frame = pd.read_csv(path)
    common = [m for m in metrics if m in frame.columns]
    missing = {"dataset", "bits", "method"} - set(frame.columns)
    if missing or not common:
        raise UserError(f"{path}: expected columns dataset, bits, method and metrics")
    groups = []
    for (_, bits), group in frame.groupby(["dataset", "bits"], sort=False):
        marks = mark_best(group, common)
        compete = bits != "W32A32"
        best = [";".join(n for n in common if compete and marks.loc[i, n]) for i in group.index]
        groups.append(group.assign(best=best))
    return pd.concat(groups)[["dataset", "bits", "method", *common, "best"]]


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
    published_note: str = "",
) -> None:  # fmt: skip
    """Write stem.csv, stem.md and stem.tex; the published block comes second, labelled as such."""
    measured = table.assign(source="measured here", dataset="embedded test set")
    blocks = (
        [measured]
        if published is None
        else [measured, published.assign(source="published, another model")]
    )
    extra = [c for c in measured.columns if c == "noise" or c.endswith(("_lo", "_hi"))]
    columns = ["source", "dataset", "bits", "method", *metrics, "best", *extra]
    merged = pd.concat(blocks, ignore_index=True).reindex(columns=columns)
    write_text(stem.with_suffix(".csv"), merged.to_csv(index=False, lineterminator="\n"))
    markdown = [
        f"**{title}**", "",
        tabulate(
            format_rows(table, metrics, "**{}**", "<br><sub>{} .. {}</sub>"), headers(metrics), "pipe", disable_numparse=True
        ),
        "", LEGEND,
    ]  # fmt: skip
    tex = [
        r"% needs \usepackage{booktabs}",
        f"% {title}",
        tabulate(
            [
                [_tex_safe(c) if "textbf" not in c else c for c in row]
                for row in format_rows(table, metrics, r"\textbf{{{}}}", r" [{}, {}]")
            ],
            [_tex_safe(h) for h in headers(metrics)], "latex_raw", disable_numparse=True,
        ),
    ]  # fmt: skip
    if published_note:
        markdown += ["", published_note]
        tex += ["", f"% {published_note}"]
    if published is not None:
        common = [m for m in metrics if m in published.columns]
        for dataset, block in published.groupby("dataset", sort=False):
            head = headers(common)
            rows = format_rows(block, common, "**{}**")
            markdown += [
                "",
                f"*{dataset}, published*",
                "",
                tabulate(rows, head, "pipe", disable_numparse=True),
            ]
            tex_rows = format_rows(block, common, r"\textbf{{{}}}")
            tex += ["", f"% {dataset}, published", tabulate(
                [[_tex_safe(c) for c in r] for r in tex_rows], [_tex_safe(h) for h in head], "latex_raw", disable_numparse=True,
            )]  # fmt: skip
    write_text(stem.with_suffix(".md"), "\n".join(markdown) + "\n")
    write_text(stem.with_suffix(".tex"), "\n".join(tex) + "\n")


def write_tables(config: Config) -> None:
    """table2, ablation, unet_only (where the grid has scope U), cost, and summary.json: the means as nested keys."""
    for run in config.runs:
        check_run(config, run.run_id)
    scores = load_scores(config)
    folder = config.results / "tables"
    used = list(dict.fromkeys(r.method for r in config.runs))
    main = [m for m in used if not config.entries[m].ablation]
    published = published_rows(config.metrics)
    if published is None:
        note = (
            f"The published block is left out: {shared_folder() / PUBLISHED} is not there "
            "(set PASSIONSR_SHARED to the folder that holds published/)."
        )
    else:
        note = (
            "Published numbers (PassionSR, CVPR 2025, Table 2): another model (SD2.1 / OSEDiff) on other data "
            "(full-size test sets). Compare the order of the methods, never the values."
        )
    write_table(
        build(config, scores, main, "UV", (BICUBIC, FP32)), config.metrics, folder / "table2",
        f"Table 2 ({config.name}): UNet + VAE quantized", published, note,
    )  # fmt: skip
    write_table(
        build(config, scores, used, "UV", (FP32,)), config.metrics, folder / "ablation",
        f"Ablation ({config.name}): UNet + VAE quantized",
    )  # fmt: skip
    write_table(
        build(config, scores, used, "U", (FP32,)), config.metrics, folder / "unet_only",
        f"UNet only ({config.name})",
    )  # fmt: skip
    summary: dict[str, Any] = {}
    for (scheme, scope, method), row in mean_scores(scores, config.metrics).iterrows():
        group = summary.setdefault(scheme, {}).setdefault(scope, {})
        group[method] = row.dropna().to_dict()
    write_json(folder / "summary.json", summary)
    costs = []
    for run in config.runs:
        made = read_json(config.results / "runs" / run.run_id / "run.json")
        costs.append(
            {"run": run.run_id, "seconds": made["seconds"], "peak MiB": made["peak_mib"],
             "MiB above start": made["peak_mib"] - made["peak_mib_before_calibration"]}
        )  # fmt: skip
    cost = tabulate(pd.DataFrame(costs), headers="keys", tablefmt="pipe", showindex=False)
    write_text(
        folder / "cost.md",
        f"Calibration cost with {config.threads} thread(s) per run; varies from run to run.\n\n{cost}\n",
    )
