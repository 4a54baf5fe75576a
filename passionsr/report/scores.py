"""Score files of a benchmark as one data frame, and costs of its runs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from passionsr.benchmark.config import BICUBIC, FP32, Config
from passionsr.benchmark.paths import scores_files
from passionsr.benchmark.records import RunRecord, read_record
from passionsr.metrics.registry import METRICS, NO_REFERENCE, NO_WEIGHTS, missing_note
from passionsr.report.frames import read_frame

SCORES = ("run_id", "method", "scheme", "scope", "dataset", "image", "metric", "value")


def load_scores(config: Config) -> pd.DataFrame:
    """All scores of a configuration, one row per number.

    `value` is NaN where there is none, for the `reason` beside it.

    Of external outputs, which cover their whole dataset, only the images that the runs were tested
    on.
    """
    external = [g.name for g in config.external_outputs]
    run_ids = [BICUBIC, FP32, *external, *(run.run_id for run in config.runs)]
    frames = [read_scores(config, run_id) for run_id in run_ids]
    tested = set(zip(frames[1].dataset, frames[1].image, strict=True))
    scores = pd.concat(frames, ignore_index=True)
    keys = pd.Series(zip(scores.dataset, scores.image, strict=True), index=scores.index)
    return scores[~scores.run_id.isin(external) | keys.isin(tested)]


def read_scores(config: Config, run_id: str) -> pd.DataFrame:
    """The score rows of one run: of every metric of the configuration, image by image."""
    files = scores_files(config, run_id)
    frames = [read_frame(path, SCORES, ("value",)) for path in files]
    return pd.concat(frames, ignore_index=True)


def mean_scores(scores: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Mean over images and seeds: index (scheme, scope, method), one column per metric."""
    keys = ["scheme", "scope", "method"]
    table = scores.groupby([*keys, "metric"], sort=False)["value"].mean().unstack("metric")
    return table.reindex(columns=list(metrics))


def score_shares(scores: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Which part of a method's scores is there: index method, one column per metric."""
    there = scores.assign(there=scores.value.notna())
    shares = there.groupby(["method", "metric"], sort=False).there.mean().unstack("metric")
    return shares.reindex(columns=list(metrics))


def notes(config: Config, scores: pd.DataFrame) -> dict[str, str]:
    """<metric>_note -> on how many scores a cell stands and why not on all of them.

    Only of metrics that could not score some image; what a whole column or row lacks (weights, a
    float output to compare with) is said in the legend.

    Args:
        config: for the metrics.
        scores: the score rows behind the cells of one table row.
    """
    found: dict[str, str] = {}
    absent = scores[scores.value.isna()]
    if absent.empty or "reason" not in absent:
        return found
    absent = absent[absent.reason.notna() & ~absent.reason.isin((NO_WEIGHTS, NO_REFERENCE))]
    runs = len(scores[["method", "seed"]].drop_duplicates())
    for name in config.metrics:
        reasons = absent.reason[absent.metric == name]
        if len(reasons):
            scored = int(scores.value[scores.metric == name].count())
            note = missing_note(scored, list(reasons), "images" if runs == 1 else "scores")
            found[f"{name}_note"] = f"{METRICS[name].title}: {note}"
    return found


def run_costs(config: Config) -> pd.DataFrame:
    """One row per run: run, bits, method (title), scope, and what its calibration took.

    That is seconds, and of the process peak MiB and mib: MiB above those of the loaded float model;
    of a run on a GPU, whose published costs are whole ones, gpu_mib: all that it took there.
    """
    rows = []
    for run in config.runs:
        made = read_record(config, run.run_id)
        rows.append(
            {
                "run": run.run_id,
                "bits": run.scheme,
                "method": config.entries[run.method].title,
                "scope": run.scope,
                "seconds": made.seconds,
                **_memory(made),
            }
        )
    return pd.DataFrame(rows)


def _memory(made: RunRecord) -> dict[str, int]:
    """The memory columns of a run."""
    if made.memory == "gpu":
        return {"gpu_mib": made.peak_mib}
    above = made.peak_mib - made.peak_mib_before_calibration
    return {"peak MiB": made.peak_mib, "mib": above}


def with_cost(table: pd.DataFrame, costs: pd.DataFrame, scope: str) -> pd.DataFrame:
    """`table` with the mean cost of each row's runs; float rows have none."""
    columns = [name for name in ("seconds", "mib", "gpu_mib") if name in costs.columns]
    own = costs[costs.scope == scope].groupby(["bits", "method"])[columns].mean()
    return table.join(own, on=["bits", "method"])
