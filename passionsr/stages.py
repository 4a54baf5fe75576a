"""The stages of the benchmark: one function turns files into files. The workflow calls them; so can you.

Layout under results/<name>/: data/{test,calibration}/{HR,LR}, runs/<run_id>/ (artifact/, fit.csv, stages.csv,
layers.csv, ranges.csv, run.json, images/, scores.csv), tables/, figures/, metrics.json.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passionsr.config import BICUBIC, FP32, Config, Run
from passionsr.data import ImagePair, pairs_in, read_list, read_pair, write_pairs
from passionsr.files import UserError, atomic_path, read_json, write_json
from passionsr.images import read_uint8, upscale, write_uint8

if TYPE_CHECKING:
    from passionsr.model import OneStepSR

log = logging.getLogger(__name__)


def write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Iterable[str]) -> None:
    """Write rows atomically; floats in full precision."""
    with atomic_path(path) as tmp, tmp.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# -- where things are ---------------------------------------------------------------------------


def run_folder(config: Config, run_id: str) -> Path:
    """results/<name>/runs/<run_id>."""
    return config.results / "runs" / run_id


def test_pairs(config: Config) -> list[ImagePair]:
    """The test pairs of this configuration."""
    return pairs_in(config.test, config.results / "data" / "test")[: config.limits.get("test")]


def calibration_pairs(config: Config) -> list[ImagePair]:
    """The calibration pairs of this configuration."""
    pairs = pairs_in(config.calibration, config.results / "data" / "calibration")
    return pairs[: config.limits.get("calibration")]


# -- stages -------------------------------------------------------------------------------------


def make_data(config: Config) -> None:
    """Test and calibration images from the lists in git."""
    write_pairs(config.test, config.results / "data" / "test")
    write_pairs(config.calibration, config.results / "data" / "calibration")
    for path in (config.test, config.calibration):
        log.info("%s: %d pairs", path, len(read_list(path)))


def probe_metrics(config: Config) -> None:
    """Fetch metric weights and record which metrics can be computed here, and why others cannot."""
    from passionsr.metric_table import METRICS, check_metrics
    from passionsr.metric_weights import ensure_weights, unavailable_reason

    check_metrics(config.metrics)
    ensure_weights()
    reasons = {n: unavailable_reason(METRICS[n].pyiqa) for n in config.metrics}
    for name, reason in reasons.items():
        if reason:
            log.warning("%s: n/a: %s", name, reason)
    write_json(config.results / "metrics.json", reasons)


def load_float_model(config: Config) -> OneStepSR:
    """The float model that a configuration names."""
    if config.model == "tiny":
        from passionsr.tiny import tiny_model

        return tiny_model()
    from passionsr.loading import load_model

    return load_model(config.model)


def write_images(model: OneStepSR, pairs: Sequence[ImagePair], folder: Path) -> None:
    """Super-resolve every LR of `pairs` into folder/<name>.png."""
    from passionsr.inference import super_resolve

    for index, pair in enumerate(pairs, 1):
        lr, _ = read_pair(pair)
        started = time.perf_counter()
        write_uint8(folder / f"{pair.name}.png", super_resolve(model, lr))
        log.info("%d/%d %s (%.1f s)", index, len(pairs), pair.name, time.perf_counter() - started)


def reference(config: Config) -> None:
    """Outputs of the float model, and of plain bicubic upscaling."""
    pairs = test_pairs(config)
    for pair in pairs:
        lr, _ = read_pair(pair)
        write_uint8(run_folder(config, BICUBIC) / "images" / f"{pair.name}.png", upscale(lr))
    write_images(load_float_model(config), pairs, run_folder(config, FP32) / "images")


def _git_sha() -> str:
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return result.stdout.strip() or "unknown"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "diffusers", "numpy", "pillow", "safetensors")
    return {"python": platform.python_version(), **{n: version(n) for n in names}}


def calibrate(config: Config, run: Run) -> None:
    """Quantize the float model for one run: artifact, curves, layer report, run.json (written last)."""
    from passionsr.bench import peak_mib
    from passionsr.calibration import make_batches
    from passionsr.diagnostics import RANGE_COLUMNS, let_ranges, model_bytes
    from passionsr.export import save_quantized
    from passionsr.images import to_tensor
    from passionsr.method import load_method, quantize_model
    from passionsr.quant.spec import Scheme
    from passionsr.resume import calibration_key, forget, resumable

    started = time.perf_counter()
    entry, options = config.entries[run.method], config.options(run)
    method = load_method(entry.target, options)
    pairs = [read_pair(p) for p in calibration_pairs(config)]
    images = [to_tensor(upscale(lr)) for lr, _ in pairs]
    targets = [to_tensor(hr) for _, hr in pairs]
    teacher = load_float_model(config)
    imported = peak_mib()
    batches = make_batches(teacher, images, config.batch_size, run.seed, targets)
    log.info("%s: %d calibration images, options %s", run.run_id, len(images), options)
    kept = config.results / "resume" / run.run_id
    tensors = [t for batch in batches for t in vars(batch).values()]
    with resumable(kept, calibration_key(config.run_digest(run), teacher, tensors)):
        model, fit_log, report = quantize_model(
            method, teacher, Scheme.parse(run.scheme), run.scope, batches, run.seed
        )
    seconds = time.perf_counter() - started
    folder = run_folder(config, run.run_id)
    info = {"run": dataclasses.asdict(run), "class": entry.target, "options": options}
    save_quantized(model, folder / "artifact", info)
    write_csv(folder / "fit.csv", fit_log.rows, ("stage", "epoch", "step", "loss"))
    stage_columns = ("stage", "loss_before", "loss_after", "steps", "parameters")
    write_csv(
        folder / "stages.csv",
        [{k: row[k] for k in stage_columns} for row in fit_log.stages],
        stage_columns,
    )
    write_csv(folder / "ranges.csv", let_ranges(model, batches[0].image), RANGE_COLUMNS)
    columns = ("name", "kind", "weight_bits", "act_bits", "split", "let")
    write_csv(folder / "layers.csv", [dataclasses.asdict(row) for row in report], columns)
    bits = sorted({(r.weight_bits, r.act_bits) for r in report if r.weight_bits})
    log.info(
        "swapped %d layers and %d attentions; (weight, activation) bits used: %s",
        sum(r.kind != "attention" for r in report),
        sum(r.kind == "attention" for r in report),
        bits,
    )
    for row in fit_log.stages:
        log.info(
            "%(stage)s: loss %(loss_before).3g -> %(loss_after).3g, %(steps)d steps, %(seconds).1f s",
            row,
        )
    write_json(
        folder / "run.json",
        {
            **info,
            "config": config.name,
            "config_digest": config.digest,
            "run_digest": config.run_digest(run),
            "git": _git_sha(),
            "versions": _versions(),
            "device": platform.processor() or platform.machine(),
            "threads": config.threads,
            "model_bytes": model_bytes(model),
            "seconds": round(seconds, 2),
            "stage_seconds": {r["stage"]: round(r["seconds"], 2) for r in fit_log.stages},
            "peak_mib": round(peak_mib()),
            "peak_mib_before_calibration": round(imported),
        },
    )
    forget(kept)


def sensitivity(config: Config) -> None:
    """sensitivity.csv: what quantizing each layer alone does to the float model's output.

    MinMax at the configuration's `sensitivity` scheme, scope UV, on two calibration images.
    """
    from baselines.minmax import MinMax
    from passionsr.calibration import make_batches
    from passionsr.diagnostics import SENSITIVITY_COLUMNS
    from passionsr.diagnostics import sensitivity as measure
    from passionsr.images import to_tensor
    from passionsr.quant.spec import Scheme

    assert config.sensitivity is not None
    teacher = load_float_model(config)
    pairs = calibration_pairs(config)
    images = [to_tensor(upscale(read_pair(p)[0])) for p in pairs]
    batches = make_batches(teacher, images, config.batch_size, 0)
    method = MinMax()
    model, _ = method.prepare(teacher, Scheme.parse(config.sensitivity), "UV")
    method.calibrate(model, batches, "UV")
    rows = measure(model, batches[0].image[:2])
    write_csv(config.results / "sensitivity.csv", rows, SENSITIVITY_COLUMNS)


def infer(config: Config, run: Run) -> None:
    """Super-resolve the test set with a run's saved artifact."""
    from passionsr.export import load_quantized

    folder = run_folder(config, run.run_id)
    write_images(load_quantized(folder / "artifact"), test_pairs(config), folder / "images")


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
    """scores.csv of every run given: one row per number, empty where a metric is not available."""
    from passionsr.metrics import MetricSuite

    reasons = read_json(config.results / "metrics.json")
    available = [n for n in config.metrics if not reasons[n]]
    suite = MetricSuite(available)
    pairs = test_pairs(config)
    known = {run.run_id: run for run in config.runs}
    for run_id in run_ids:
        started = time.perf_counter()
        run = known.get(run_id) or Run(run_id, "W32A32", "UV", 0)
        rows = []
        for pair in pairs:
            _, hr = read_pair(pair)
            sr, fp = (
                read_uint8(run_folder(config, r) / "images" / f"{pair.name}.png")
                for r in (run_id, FP32)
            )
            scores = suite.score(sr, hr, fp if run_id != FP32 else None)
            for name in config.metrics:
                value = scores.get(name)
                rows.append(
                    {
                        **dataclasses.asdict(run),
                        "run_id": run_id,
                        "dataset": config.test.stem,
                        "image": pair.name,
                        "metric": name,
                        "value": "" if value is None else repr(value),
                    }
                )
        write_csv(run_folder(config, run_id) / "scores.csv", rows, SCORE_COLUMNS)
        log.info("%s: %d images (%.1f s)", run_id, len(pairs), time.perf_counter() - started)


def check_run(config: Config, run_id: str) -> None:
    """UserError unless a run's artifact was made from this very configuration."""
    made = read_json(run_folder(config, run_id) / "run.json")["run_digest"]
    expected = config.run_digest(config.run(run_id))
    if made != expected:
        raise UserError(
            f"{run_id}: its artifact comes from another configuration ({made}, expected {expected}); "
            "delete its folder and run again"
        )
