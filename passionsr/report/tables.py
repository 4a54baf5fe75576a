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
    FALSE_DISCOVERIES,
    adjusted,
    by_seed_and_image,
    differ_in_seeds,
    estimate,
    mark_best,
    p_to_best,
    paired,
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
        Rows in print order: bits, method (title), the metrics' means, best and undecided (names of
        metrics, ';'-separated), seeds (their number), <metric>_lo, <metric>_hi: the 95 % interval,
        <metric>_p: p value of the difference to the best row, and where a mean does not stand on
        all images <metric>_note: on how many, and why. `decided` turns the p values of a whole
        table into those that are printed; until then undecided names only what cannot be paired.
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
        for label, row in group.iterrows():
            method = str(label)
            line: dict[Any, Any] = {"bits": scheme, "method": titles[method], **row.to_dict()}
            line["best"] = ";".join(n for n in config.metrics if marks.loc[method, n])
            line["seeds"] = own[own.method == method].seed.nunique()
            line |= _intervals(config, own, method, marks)
            rows.append(line | notes(config, own[own.method == method]))
    return pd.DataFrame(rows, columns=_columns(config, rows))


def _intervals(
    config: Config, scores: pd.DataFrame, method: str, marks: pd.DataFrame
) -> dict[str, Any]:
    """Undecided, <metric>_lo, <metric>_hi and <metric>_p of one row.

    scores: of a bit width, scope and dataset. marks: of `mark_best`; the first best row is compared
    with.
    """
    cells: dict[str, Any] = {}
    unpaired = []
    for name in config.metrics:
        rows = scores[scores.metric == name]
        own = rows[rows.method == method]
        values = by_seed_and_image(own).to_numpy()
        if values.size:
            found = estimate(values)
            cells |= {f"{name}_lo": found.low, f"{name}_hi": found.high}
        best = [str(m) for m in marks.index[marks[name]]]
        if not best or method in best or not values.size:
            continue
        other = rows[rows.method == best[0]]
        difference = paired(own, other)
        if difference is not None:
            cells[f"{name}_p"] = p_to_best(difference.p, len(marks))
        elif differ_in_seeds(own, other):
            unpaired.append(name)
    return {**cells, "undecided": ";".join(unpaired)}


def decided(config: Config, table: pd.DataFrame) -> pd.DataFrame:
    """`table` with p values adjusted for their number, and undecided filled in by them.

    One table is one family of comparisons: all its rows, metrics, bit widths and datasets.
    """
    columns = [f"{name}_p" for name in config.metrics]
    p_values = table.reindex(columns=columns).to_numpy(dtype=float)
    found = adjusted(p_values.ravel()).reshape(p_values.shape)
    table = table.assign(**dict(zip(columns, found.T, strict=True)))
    for index, row in table.iterrows():
        open_ones = {n for n in config.metrics if row[f"{n}_p"] > FALSE_DISCOVERIES}
        open_ones |= set(str(row.undecided).split(";"))
        table.loc[index, "undecided"] = ";".join(n for n in config.metrics if n in open_ones)
    return table


def _columns(config: Config, rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    """The columns of a table; one of notes only for metrics that have one in some row."""
    bounds = [f"{n}_{end}" for n in config.metrics for end in ("lo", "hi", "p")]
    noted = [f"{n}_note" for n in config.metrics if any(f"{n}_note" in row for row in rows)]
    return ["bits", "method", *config.metrics, "best", "undecided", "seeds", *bounds, *noted]


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

    Columns dataset, bits, method, the metrics, best (empty), undecided, seeds, <metric>_lo,
    <metric>_hi, <metric>_p, as of `means_per_dataset`; interval and p value are of the paired
    difference.
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
    """The metrics, their intervals and p values of one row; no numbers without both methods."""
    both = scores[scores.method.isin((method, other))]
    if other is None or both.method.nunique() < 2:
        return {"undecided": ""}
    cells: dict[str, Any] = {"undecided": "", "seeds": both.seed.nunique()}
    for name in config.metrics:
        rows = both[both.metric == name]
        found = paired(rows[rows.method == method], rows[rows.method == other])
        if found is not None:
            cells |= {name: found.mean, f"{name}_lo": found.low, f"{name}_hi": found.high}
            cells[f"{name}_p"] = found.p
    return {**cells, **notes(config, both)}


def build_table(
    config: Config, scores: pd.DataFrame, costs: pd.DataFrame, spec: TableSpec
) -> pd.DataFrame:
    """The measured rows of one table; costs: of `run_costs`."""
    if spec.minus is not None:
        return decided(config, differences(config, scores, spec))
    methods = spec.methods(config)
    table = means_per_dataset(config, scores, methods, spec.scope, spec.references)
    table = decided(config, table)
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
    titles = {"mib": "MiB above imports", "gpu_mib": "GPU MiB"}
    columns = ["run", "seconds", "peak MiB", "mib", "gpu_mib"]
    shown = costs[[name for name in columns if name in costs.columns]]
    per_run = shown.rename(columns=titles).to_markdown(index=False)
    return (
        f"Calibration cost with {config.threads} thread(s) per run; varies from run to run."
        f"\n\n{per_run}\n"
    )
