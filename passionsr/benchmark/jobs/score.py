"""The jobs `probe` and `score`: which metrics can be computed here, and the scores of every run.

Scores are kept per run and metric, and each with a digest of what it was computed from. A score
whose digest is still right is kept, so that a new metric, a changed image or a changed setting
costs only its own scores; Snakemake leaves the files in place for that (`update` in report.smk).
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from passionsr.benchmark.config import FP32, Config, Run
from passionsr.benchmark.image_lists import check_image_lists
from passionsr.benchmark.job_code import metric_code
from passionsr.benchmark.paths import image_folder, pairs_to_test, scores_file, sheet
from passionsr.data.datasets import ImagePair, read_pair, read_sheet
from passionsr.data.image_folders import composed, images_by_name
from passionsr.data.images import check_image_file, read_uint8
from passionsr.metrics.registry import METRICS, NO_REFERENCE, NO_WEIGHTS, check_metrics
from passionsr.metrics.weights import fetch_problems, unavailable_reason
from passionsr.models.family import get_family
from passionsr.utils.files import (
    UserError,
    read_json,
    read_rows,
    sha256_file,
    write_csv,
    write_json,
)
from passionsr.utils.yaml_files import located

if TYPE_CHECKING:  # torch takes seconds to import
    from passionsr.metrics.suite import MetricSuite

log = logging.getLogger(__name__)

NO_OUTPUT = "the folder has no output of this name"

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
    "reason",
    "digest",  # last: a row that was cut has no whole digest, and does not count
)


def probe_metrics(config: Config) -> None:
    """Fetch metric weights and record which metrics can be computed here, and why others cannot."""
    check_metrics(config.metrics)
    models = {name: METRICS[name].pyiqa for name in config.metrics}
    unfetched = fetch_problems(models.values())
    reasons = {n: unfetched.get(m) or unavailable_reason(m) for n, m in models.items()}
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
        required: False if the output may be absent; then it has no scores.
    """

    pair: ImagePair
    output: Path
    reference: Path | None
    required: bool = True

    def compared_with(self, kind: str) -> Path | None:
        """The image that metrics of a kind (`passionsr.metrics.registry.Kind`) compare with."""
        return {"FR": self.pair.hr, "FP": self.reference}.get(kind)

    def lacks(self, metric: str, unavailable: str | None) -> str:
        """Why a metric has no score here before anything is computed; "" if it can be tried.

        unavailable: why this machine cannot compute the metric at all, None if it can.
        """
        if not self.output.is_file():
            return NO_OUTPUT
        if METRICS[metric].kind == "FP" and self.reference is None:
            return NO_REFERENCE
        return NO_WEIGHTS if unavailable else ""


def scored_outputs(config: Config, run_id: str) -> list[ScoredImage]:
    """Everything that is scored for a run.

    External outputs cover their whole dataset and come from another model: there is no float output
    to compare with, and what their folder lacks is n/a. Raises UserError if an output is not what
    the run made.
    """
    external = {g.name: g for g in config.external_outputs}.get(run_id)
    if external:
        pairs = read_sheet(sheet(config, external.dataset))
        given = images_by_name(external.folder)
        outputs = [
            given.get(composed(pair.image), external.folder / f"{pair.image}.png") for pair in pairs
        ]
        return [
            ScoredImage(pair, output, None, required=False)
            for pair, output in zip(pairs, outputs, strict=True)
        ]
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
    """Sha256 of every image that scores depend on; UserError if a required one is not there."""
    paths: dict[Path, None] = {}
    for image in images:
        output = [image.output] if image.required or image.output.is_file() else []
        reference = [image.reference] if image.reference else []
        paths |= dict.fromkeys([*output, image.pair.hr, *reference])
    for path in paths:
        check_image_file(path)
    return {path: sha256_file(path) for path in paths}


def score_digest(
    image: ScoredImage, metric: str, computation: str, hashes: Mapping[Path, str]
) -> str:
    """Digest of all that a score depends on: the images compared, and `computation`.

    Args:
        image: what is scored.
        metric: its name.
        computation: what else decides the score: `metric_code`, whether sizes may differ, the GPU.
        hashes: of `image_hashes`.
    """
    other = image.compared_with(METRICS[metric].kind)
    parts = [computation, hashes.get(image.output, ""), hashes[other] if other else ""]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class Cell(NamedTuple):
    """One row of a score file. value: the score as text, "" where there is none for `reason`."""

    digest: str
    value: str = ""
    reason: str = ""

    @property
    def final(self) -> bool:
        """Whether computing it again would give the same; weights can still come."""
        return bool(self.value or self.reason) and self.reason != NO_WEIGHTS


def known_scores(path: Path) -> dict[str, Cell]:
    """Digest -> what an earlier file says for good; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        rows = read_rows(path, ("digest", "value"), more=True)
    except UserError:  # cut off, or of an older version: everything is scored again
        return {}
    cells = [Cell(*(row.get(key) or "" for key in Cell._fields)) for _, row in rows]
    return {cell.digest: cell for cell in cells if cell.digest and cell.final}


def read_reasons(config: Config) -> dict[str, str | None]:
    """What `probe_metrics` wrote; UserError for a file that does not tell of every metric."""
    path = config.results / "metrics.json"
    reasons = read_json(path)
    absent = [n for n in config.metrics if not isinstance(reasons, dict) or n not in reasons]
    if absent:
        raise UserError(
            f"{path}: does not say whether {absent[0]} can be computed: remove it, then give your "
            "command again"
        )
    return dict(reasons)


def score(config: Config, run_ids: Sequence[str]) -> None:
    """scores/<run_id>/<metric>.csv of every run: one row per image, with a reason where it is n/a.

    Only what no earlier score stands for is computed, and only the metrics for that are built.
    """
    reasons = read_reasons(config)
    images = {run_id: scored_outputs(config, run_id) for run_id in run_ids}
    hashes = image_hashes(image for group in images.values() for image in group)
    tables: dict[str, dict[str, list[Cell]]] = {run_id: {} for run_id in run_ids}
    for name in config.metrics:
        computation = f"{metric_code(name)} resize={config.resize_mismatch}"
        computation += "" if config.device == "cpu" else f" device={config.device}"
        for run_id, group in images.items():
            known = known_scores(scores_file(config, run_id, name))
            cells = [Cell(score_digest(image, name, computation, hashes)) for image in group]
            tables[run_id][name] = [
                known.get(cell.digest) or cell._replace(reason=image.lacks(name, reasons[name]))
                for cell, image in zip(cells, group, strict=True)
            ]
    missing = [
        name
        for name in config.metrics
        if any(not cell.value and not cell.reason for r in run_ids for cell in tables[r][name])
    ]
    suite = None
    if missing:
        from passionsr.metrics.suite import MetricSuite

        suite = MetricSuite(missing, device=config.device)
    for run_id, group in images.items():
        started = time.perf_counter()
        if suite is not None:
            _fill(config, suite, group, tables[run_id])
        _write(config, run_id, group, tables[run_id])
        log.info("%s: %d images (%.1f s)", run_id, len(group), time.perf_counter() - started)


def _fill(
    config: Config,
    suite: MetricSuite,
    images: Sequence[ScoredImage],
    table: Mapping[str, list[Cell]],
) -> None:
    """Compute the missing scores of the suite's metrics and put them into `table`."""
    for index, image in enumerate(images):
        cells = {name: table[name][index] for name in suite.names}
        names = [name for name, cell in cells.items() if not cell.value and not cell.reason]
        if names:
            _, hr = read_pair(image.pair, get_family(config.family).scale)
            output = read_uint8(image.output)
            reference = read_uint8(image.reference) if image.reference else None
            with located(image.output):
                scores = suite.measure(output, hr, reference, config.resize_mismatch, only=names)
            for name, (value, reason) in scores.items():
                text = "" if value is None else repr(value)
                table[name][index] = cells[name]._replace(value=text, reason=reason)
                if value is None:
                    log.warning("%s: %s is n/a: %s", image.output, name, reason)
        if (index + 1) % 10 == 0:
            log.info("%d/%d", index + 1, len(images))


def _write(
    config: Config, run_id: str, images: Sequence[ScoredImage], table: Mapping[str, list[Cell]]
) -> None:
    known = {run.run_id: run for run in config.runs}
    run = known.get(run_id) or Run(run_id, "W32A32", "UV", 0)
    for name, cells in table.items():
        rows = [
            {
                **dataclasses.asdict(run),
                "run_id": run_id,
                "dataset": image.pair.dataset or (config.test.stem if config.test else ""),
                "image": image.pair.image,
                "metric": name,
                **cell._asdict(),
            }
            for image, cell in zip(images, cells, strict=True)
        ]
        write_csv(scores_file(config, run_id, name), rows, SCORE_COLUMNS)
