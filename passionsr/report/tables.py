"""Score rows -> the tables of a benchmark. Never imports the model or torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from passionsr.benchmark.config import BICUBIC, FP32, Config, parse_scheme
from passionsr.benchmark.records import check_run
from passionsr.report.published import published_block, write_parity
from passionsr.report.rendering import EMBEDDED, UNQUANTIZED, write_table
from passionsr.report.scores import (
    load_scores,
    mean_scores,
    notes,
    run_costs,
    score_shares,
    with_cost,
)
from passionsr.report.statistics import (
    interval,
    intervals,
    mark_best,
    on_shared_images,
    resampled_means,
)
from passionsr.report.table_list import TableSpec, tables_of
from passionsr.utils.files import write_json, write_text


def means(
    config: Config,
    scores: pd.DataFrame,
    methods: Sequence[str],
    scope: str,
    references: Sequence[str],
) -> pd.DataFrame:
    """One row per bit width and method, of one dataset.

    Args:
        config: for the bit widths, titles and metrics.
        scores: score rows, see `passionsr.report.scores.load_scores`.
        methods: quantized rows of every bit width.
        scope: "U" or "UV".
        references: rows that are not quantized, printed first.

    Returns:
        Rows in print order: bits, method (title), the metrics' means, best and noise (names of
        metrics, ';'-separated), <metric>_lo, <metric>_hi: the 95 % bootstrap interval, and where a
        mean does not stand on all images <metric>_note: on how many, and why.
    """
    by_row: Any = mean_scores(scores, config.metrics)
    titles = {BICUBIC: "Bicubic", FP32: "FP32", **{n: e.title for n, e in config.entries.items()}}
    titles |= {g.name: g.title for g in config.external_outputs}
    schemes = sorted(
        dict.fromkeys(r.scheme for r in config.runs if r.scope == scope),
        key=lambda scheme: -parse_scheme(scheme).weight_bits,
    )
    rows = []
    for scheme in [UNQUANTIZED, *schemes]:
        wanted = references if scheme == UNQUANTIZED else methods
        here = "UV" if scheme == UNQUANTIZED else scope
        group = pd.DataFrame(
            {m: by_row.loc[(scheme, here, m)] for m in wanted if (scheme, here, m) in by_row.index}
        ).T
        if group.empty:
            continue
        # References are no competitors: only quantized methods are marked against each other.
        compete = scheme != UNQUANTIZED and len(group) > 1
        own = scores[(scores.scheme == scheme) & (scores.scope == here)]
        own = own[own.method.isin(group.index)]
        marks = mark_best(group, config.metrics, score_shares(own, config.metrics)) & compete
        bands = {n: intervals(own, n, list(marks.index[marks[n]])) for n in config.metrics}
        for label, row in group.iterrows():
            method = str(label)
            cells = {n: b[method] for n, b in bands.items() if method in b}
            line = {"bits": scheme, "method": titles[method], **row.to_dict()}
            line["best"] = ";".join(n for n in config.metrics if marks.loc[method, n])
            line["noise"] = ";".join(n for n, (_, _, noise) in cells.items() if noise)
            for name, (low, high, _) in cells.items():
                line |= {f"{name}_lo": low, f"{name}_hi": high}
            rows.append(line | notes(config, own[own.method == method]))
    return pd.DataFrame(rows, columns=_columns(config, rows))


def _columns(config: Config, rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    """The columns of a table; one of notes only for metrics that have one in some row."""
    bounds = [f"{n}_{end}" for n in config.metrics for end in ("lo", "hi")]
    noted = [f"{n}_note" for n in config.metrics if any(f"{n}_note" in row for row in rows)]
    return ["bits", "method", *config.metrics, "best", "noise", *bounds, *noted]


def means_per_dataset(
    config: Config,
    scores: pd.DataFrame,
    methods: Sequence[str],
    scope: str,
    references: Sequence[str],
) -> pd.DataFrame:
    """`means` of each dataset, one below the other, with a column dataset."""
    if not config.datasets:
        return means(config, scores, methods, scope, references).assign(dataset=EMBEDDED)
    parts = []
    for dataset in config.datasets:
        external = [g.name for g in config.external_outputs if g.dataset == dataset.name]
        own = scores[scores.dataset == dataset.name]
        part = means(config, own, methods, scope, [*references, *external])
        parts.append(part.assign(dataset=dataset.name))
    return pd.concat(parts, ignore_index=True)


def differences(config: Config, scores: pd.DataFrame, spec: TableSpec) -> pd.DataFrame:
    """Each method of a table minus its other method (`spec.minus`), per bit width and dataset.

    Columns dataset, bits, method, the metrics, best (empty), noise, <metric>_lo, <metric>_hi, as of
    `means_per_dataset`; the interval is of the paired difference, and a difference is noise if 0
    lies in it.
    """
    assert spec.minus is not None
    pairs = {method: spec.minus(config, method) for method in spec.methods(config)}
    own = scores[scores.scope == spec.scope]
    datasets: list[str | None] = [d.name for d in config.datasets] or [None]
    rows = []
    for scheme in dict.fromkeys(r.scheme for r in config.runs if r.method in pairs):
        for dataset in datasets:
            group = own[own.scheme == scheme]
            group = group if dataset is None else group[group.dataset == dataset]
            for method, other in pairs.items():
                line = {
                    "dataset": dataset or EMBEDDED,
                    "bits": scheme,
                    "method": config.entries[method].title,
                    "best": "",
                }
                rows.append(line | _difference(config, group, method, other))
    return pd.DataFrame(rows, columns=["dataset", *_columns(config, rows)])


def _difference(
    config: Config, scores: pd.DataFrame, method: str, other: str | None
) -> dict[str, Any]:
    """The metrics, their intervals and the noise of one row; no numbers without both methods."""
    both = scores[scores.method.isin((method, other))]
    if other is None or both.method.nunique() < 2:
        return {"noise": ""}
    cells: dict[str, Any] = {}
    noise = []
    for name in config.metrics:
        part = both[(both.metric == name) & both.value.notna()]
        part = on_shared_images(part, [method, other])
        if part.empty:
            continue
        drawn = resampled_means(part)
        low, high = interval(drawn[method] - drawn[other])
        mean = part.groupby("method").value.mean()
        cells |= {name: mean[method] - mean[other], f"{name}_lo": low, f"{name}_hi": high}
        noise += [name] if low <= 0 <= high else []
    return {**cells, "noise": ";".join(noise), **notes(config, both)}


def build_table(
    config: Config, scores: pd.DataFrame, costs: pd.DataFrame, spec: TableSpec
) -> pd.DataFrame:
    """The measured rows of one table; costs: of `run_costs`."""
    if spec.minus is not None:
        return differences(config, scores, spec)
    methods = spec.methods(config)
    table = means_per_dataset(config, scores, methods, spec.scope, spec.references)
    return with_cost(table, costs, spec.scope) if spec.cost else table


def write_tables(config: Config) -> None:
    """Everything that `table_files` names: the tables of the list, cost.md, summary.json, parity.

    Raises UserError if a run was made from another configuration.
    """
    for run in config.runs:
        check_run(config, run.run_id)
    scores, costs = load_scores(config), run_costs(config)
    folder = config.results / "tables"
    for spec in tables_of(config):
        table = build_table(config, scores, costs, spec)
        write_table(spec, config, table, published_block(config, spec), folder)
    if config.external_outputs:
        write_parity(config, folder)
    write_json(folder / "summary.json", _summary(config, scores))
    write_text(folder / "cost.md", _cost_per_run(config, costs))


def _summary(config: Config, scores: pd.DataFrame) -> dict[str, Any]:
    """Bits -> scope -> method -> metric -> mean; of named datasets, dataset -> bits -> ... ."""
    if not config.datasets:
        return _nested_means(config, scores)
    named = [dataset.name for dataset in config.datasets]
    return {name: _nested_means(config, scores[scores.dataset == name]) for name in named}


def _nested_means(config: Config, scores: pd.DataFrame) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    rows: Iterable[Any] = mean_scores(scores, config.metrics).iterrows()
    for (scheme, scope, method), row in rows:
        group = summary.setdefault(scheme, {}).setdefault(scope, {})
        group[method] = row.dropna().to_dict()
    return summary


def _cost_per_run(config: Config, costs: pd.DataFrame) -> str:
    shown = costs[["run", "seconds", "peak MiB", "mib"]]
    per_run = shown.rename(columns={"mib": "MiB above imports"}).to_markdown(index=False)
    return (
        f"Calibration cost with {config.threads} thread(s) per run; varies from run to run."
        f"\n\n{per_run}\n"
    )
