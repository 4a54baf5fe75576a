"""Score rows -> the tables of a benchmark. Never imports the model or torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

from passionsr.benchmark.config import BICUBIC, FP32, Config, parse_scheme
from passionsr.benchmark.records import check_run
from passionsr.report.published import (
    ANOTHER_MODEL,
    COST,
    PUBLISHED_COST,
    PUBLISHED_TABLE4,
    marked,
    published_block,
    write_parity,
)
from passionsr.report.rendering import (
    EMBEDDED,
    write_table,
)
from passionsr.report.scores import load_scores, mean_scores, run_costs, with_cost
from passionsr.report.statistics import _band, intervals, mark_best, resampled_means
from passionsr.utils.files import write_json, write_text

DIFFERENCES = (
    "Mean difference over images and seeds, below it its 95 % bootstrap interval (the same images and seeds on both "
    "sides); ≈: inside the noise; n/a: the other row, or the metric's weights, are not there."
)


UNTRAINED = "minmax"  # the row that the paper's ablation starts from


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
    titles |= {g.name: g.title for g in config.external_outputs}
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
        external = [g.name for g in config.external_outputs if g.dataset == dataset.name]
        own = scores[scores.dataset == dataset.name]
        part = build(config, own, methods, scope, [*references, *external])
        parts.append(part.assign(dataset=dataset.name))
    return pd.concat(parts, ignore_index=True)


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
    if config.external_outputs:
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
