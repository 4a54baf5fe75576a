"""The jobs `probe` and `score`: which metrics can be computed here, and the scores of every run."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from passionsr.benchmark.config import FP32, Config, Run
from passionsr.benchmark.image_lists import check_image_lists
from passionsr.benchmark.paths import image_folder, pairs_to_test, scores_file, sheet
from passionsr.data.datasets import ImagePair, read_pair, read_sheet
from passionsr.data.images import read_uint8
from passionsr.models.family import get_family
from passionsr.utils.files import (
    read_json,
    write_csv,
    write_json,
)

log = logging.getLogger(__name__)


def probe_metrics(config: Config) -> None:
    """Fetch metric weights and record which metrics can be computed here, and why others cannot."""
    from passionsr.metrics.registry import METRICS, check_metrics
    from passionsr.metrics.weights import ensure_weights, unavailable_reason

    check_metrics(config.metrics)
    ensure_weights()
    reasons = {n: unavailable_reason(METRICS[n].pyiqa) for n in config.metrics}
    for name, reason in reasons.items():
        if reason:
            log.warning("%s: n/a: %s", name, reason)
    write_json(config.results / "metrics.json", reasons)


SCORE_COLUMNS = (
    "run_id",
    "method",
    "scheme",
    "scope",
    "seed",
    "dataset",
    "image",
    "metric",
    "value",
)


def score(config: Config, run_ids: Sequence[str]) -> None:
    """scores/<run_id>.csv of every run: one row per number, empty where a metric is not available."""
    from passionsr.metrics.suite import MetricSuite

    reasons = read_json(config.results / "metrics.json")
    available = [n for n in config.metrics if not reasons[n]]
    suite = MetricSuite(available)
    known = {run.run_id: run for run in config.runs}
    for run_id in run_ids:
        started = time.perf_counter()
        run = known.get(run_id) or Run(run_id, "W32A32", "UV", 0)
        rows = []
        scale = get_family(config.family).scale
        outputs = scored_outputs(config, run_id)
        for index, (pair, path, reference) in enumerate(outputs, 1):
            _, hr = read_pair(pair, scale)
            scores = suite.score(
                read_uint8(path),
                hr,
                read_uint8(reference) if reference else None,
                resize=config.resize_mismatch,
            )
            for name in config.metrics:
                value = scores.get(name)
                rows.append(
                    {
                        **dataclasses.asdict(run),
                        "run_id": run_id,
                        "dataset": pair.dataset or config.test.stem,
                        "image": pair.image,
                        "metric": name,
                        "value": "" if value is None else repr(value),
                    }
                )
            if index % 10 == 0:
                log.info("%s: %d/%d", run_id, index, len(outputs))
        write_csv(scores_file(config, run_id), rows, SCORE_COLUMNS)
        log.info("%s: %d images (%.1f s)", run_id, len(outputs), time.perf_counter() - started)


def scored_outputs(config: Config, run_id: str) -> list[tuple[ImagePair, Path, Path | None]]:
    """(pair, output, float model's output or None) of everything that is scored for a run.

    External outputs cover their whole dataset and come from another model: there is no float output to compare with.
    Raises UserError if an output is not the one that the run made.
    """
    external = {g.name: g for g in config.external_outputs}.get(run_id)
    if external:
        pairs = read_sheet(sheet(config, external.dataset))
        return [(pair, external.folder / f"{pair.image}.png", None) for pair in pairs]
    check_image_lists(config, run_id)
    images, floats = (image_folder(config, r) for r in (run_id, FP32))
    return [
        (pair, images / f"{pair.name}.png", None if run_id == FP32 else floats / f"{pair.name}.png")
        for pair in pairs_to_test(config)
    ]
