"""The jobs `probe` and `score`: which metrics can be computed here, and the scores of every run.

Scores are kept per run and metric, and each with a digest of what it was computed from. A score
whose digest is still right is kept, so that a new metric, a changed image or a changed setting
costs only its own scores; Snakemake leaves the files in place for that (`update` in report.smk).
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from passionsr.benchmark.config import FP32, Config, Run
from passionsr.benchmark.image_lists import check_image_lists
from passionsr.benchmark.job_code import metric_code
from passionsr.benchmark.paths import image_folder, pairs_to_test, scores_file, sheet
from passionsr.data.datasets import ImagePair, read_pair, read_sheet
from passionsr.data.image_folders import composed, images_by_name
from passionsr.data.images import read_uint8
from passionsr.metrics.registry import METRICS, check_metrics
from passionsr.metrics.weights import ensure_weights, unavailable_reason
from passionsr.models.family import get_family
from passionsr.utils.files import UserError, read_json, sha256_file, write_csv, write_json

if TYPE_CHECKING:  # torch takes seconds to import
    from passionsr.metrics.suite import MetricSuite

log = logging.getLogger(__name__)

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
    "digest",
)


def probe_metrics(config: Config) -> None:
    """Fetch metric weights and record which metrics can be computed here, and why others cannot."""
    check_metrics(config.metrics)
    ensure_weights()
    reasons = {n: unavailable_reason(METRICS[n].pyiqa) for n in config.metrics}
    for name, reason in reasons.items():
        if reason:
            log.warning("%s: n/a: %s", name, reason)
    write_json(config.results / "metrics.json", reasons)


@dataclass(frozen=True)
class ScoredImage:
    """One output of a run and what it is compared with.

    Attributes:
        pair: its LR and HR images.
        output: the image to score.
        reference: the float model's output; None where there is none to compare with.
    """

    pair: ImagePair
    output: Path
    reference: Path | None

    def compared_with(self, kind: str) -> Path | None:
        """The image that metrics of a kind (`passionsr.metrics.registry.Kind`) compare with."""
        return {"FR": self.pair.hr, "FP": self.reference}.get(kind)


def scored_outputs(config: Config, run_id: str) -> list[ScoredImage]:
    """Everything that is scored for a run.

    External outputs cover their whole dataset and come from another model: there is no float output
    to compare with. Raises UserError if an output is not the one that the run made.
    """
    external = {g.name: g for g in config.external_outputs}.get(run_id)
    if external:
        pairs = read_sheet(sheet(config, external.dataset))
        given = images_by_name(external.folder)
        outputs = [
            given.get(composed(pair.image), external.folder / f"{pair.image}.png") for pair in pairs
        ]
        return [ScoredImage(*both, None) for both in zip(pairs, outputs, strict=True)]
    check_image_lists(config, run_id)
    images, floats = (image_folder(config, r) for r in (run_id, FP32))
    return [
        ScoredImage(
            pair,
            images / f"{pair.name}.png",
            None if run_id == FP32 else floats / f"{pair.name}.png",
        )
        for pair in pairs_to_test(config)
    ]


def image_hashes(images: Iterable[ScoredImage]) -> dict[Path, str]:
    """Sha256 of every image that the scores depend on; UserError if one is not there."""
    paths = dict.fromkeys(
        path for i in images for path in (i.output, i.pair.hr, i.reference) if path is not None
    )
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: image not found")
    return {path: sha256_file(path) for path in paths}


def score_digest(
    image: ScoredImage, metric: str, computation: str, hashes: Mapping[Path, str]
) -> str:
    """Digest of all that a score depends on: the images compared, and `computation`.

    Args:
        image: what is scored.
        metric: its name.
        computation: what else decides the score: `metric_code`, and whether sizes may differ.
        hashes: of `image_hashes`.
    """
    other = image.compared_with(METRICS[metric].kind)
    parts = [computation, hashes[image.output], hashes[other] if other else ""]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def known_scores(path: Path) -> dict[str, str]:
    """Digest -> score of an earlier file; empty where there is none. n/a is not kept."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8", errors="replace") as stream:
        rows = list(csv.DictReader(stream))
    return {row["digest"]: row["value"] for row in rows if row.get("digest") and row.get("value")}


# Of one metric, (digest, score as text or "") per image.
Scores = list[tuple[str, str]]


def score(config: Config, run_ids: Sequence[str]) -> None:
    """scores/<run_id>/<metric>.csv of every run: one row per image, no value where it is n/a.

    Only what no earlier score stands for is computed, and only the metrics for that are built.
    """
    reasons = read_json(config.results / "metrics.json")
    images = {run_id: scored_outputs(config, run_id) for run_id in run_ids}
    hashes = image_hashes(image for group in images.values() for image in group)
    tables: dict[str, dict[str, Scores]] = {run_id: {} for run_id in run_ids}
    for name in config.metrics:
        computation = f"{metric_code(name)} resize={config.resize_mismatch}"
        for run_id, group in images.items():
            known = known_scores(scores_file(config, run_id, name))
            digests = [score_digest(image, name, computation, hashes) for image in group]
            tables[run_id][name] = [(digest, known.get(digest, "")) for digest in digests]
    missing = [
        name
        for name in config.metrics
        if not reasons[name] and any(_missing(images[r], tables[r], name) for r in run_ids)
    ]
    suite = None
    if missing:
        from passionsr.metrics.suite import MetricSuite

        suite = MetricSuite(missing)
    for run_id, group in images.items():
        started = time.perf_counter()
        if suite is not None:
            _fill(config, suite, group, tables[run_id])
        _write(config, run_id, group, tables[run_id])
        log.info("%s: %d images (%.1f s)", run_id, len(group), time.perf_counter() - started)


def _missing(images: Sequence[ScoredImage], table: Mapping[str, Scores], metric: str) -> list[int]:
    """Places of the images that the metric can score and has not."""
    kind = METRICS[metric].kind
    return [
        index
        for index, (image, (_, value)) in enumerate(zip(images, table[metric], strict=True))
        if not value and (kind == "NR" or image.compared_with(kind) is not None)
    ]


def _fill(
    config: Config, suite: MetricSuite, images: Sequence[ScoredImage], table: dict[str, Scores]
) -> None:
    """Compute the missing scores of the suite's metrics and put them into `table`."""
    missing = {name: set(_missing(images, table, name)) for name in suite.names}
    for index, image in enumerate(images):
        names = [name for name in suite.names if index in missing[name]]
        if names:
            _, hr = read_pair(image.pair, get_family(config.family).scale)
            reference = read_uint8(image.reference) if image.reference else None
            scores = suite.score(
                read_uint8(image.output), hr, reference, config.resize_mismatch, only=names
            )
            for name, value in scores.items():
                digest, _ = table[name][index]
                table[name][index] = digest, "" if value is None else repr(value)
        if (index + 1) % 10 == 0:
            log.info("%d/%d", index + 1, len(images))


def _write(
    config: Config, run_id: str, images: Sequence[ScoredImage], table: Mapping[str, Scores]
) -> None:
    known = {run.run_id: run for run in config.runs}
    run = known.get(run_id) or Run(run_id, "W32A32", "UV", 0)
    for name, scores in table.items():
        rows = [
            {
                **dataclasses.asdict(run),
                "run_id": run_id,
                "dataset": image.pair.dataset or (config.test.stem if config.test else ""),
                "image": image.pair.image,
                "metric": name,
                "value": value,
                "digest": digest,
            }
            for image, (digest, value) in zip(images, scores, strict=True)
        ]
        write_csv(scores_file(config, run_id, name), rows, SCORE_COLUMNS)
