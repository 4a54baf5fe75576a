"""The stages of the benchmark: one function turns files into files. The workflow calls them; so can you.

Layout under results/<name>/, one folder per stage because DVC versions whole folders: data/{test,calibration}/{HR,LR},
reference/{fp32,bicubic}/, runs/<run_id>/ (artifact/, fit.csv, stages.csv, layers.csv, ranges.csv, run.json),
runs/sensitivity.csv, images/<run_id>/, scores/<run_id>.csv, tables/, figures/; metrics.json.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passionsr.config import BICUBIC, FP32, Config, Run
from passionsr.data import pairs_in, read_pair, write_pairs
from passionsr.datasets import (
    Dataset,
    ImagePair,
    read_crops,
    read_sheet,
    write_crops,
    write_sheet,
)
from passionsr.files import (
    UserError,
    atomic_path,
    check_sha256,
    read_json,
    sha256_file,
    write_json,
    write_text,
)
from passionsr.images import read_uint8, upscale, write_uint8

if TYPE_CHECKING:
    from passionsr.model import OneStepSR
    from passionsr.surgery import SwapRow

log = logging.getLogger(__name__)

CALIBRATION = "calibration"


def write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Iterable[str]) -> None:
    """Write rows atomically; floats in full precision."""
    with atomic_path(path) as tmp, tmp.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# -- where things are ---------------------------------------------------------------------------


def run_folder(config: Config, run_id: str) -> Path:
    """results/<name>/runs/<run_id>: what calibration made."""
    return config.results / "runs" / run_id


def sheet(config: Config, dataset: str) -> Path:
    """The list of a dataset's pairs: results/<name>/data/<dataset>.tsv."""
    return config.results / "data" / f"{dataset}.tsv"


def image_folder(config: Config, run_id: str) -> Path:
    """Outputs on the test set: results/<name>/images/<run_id>, or reference/<run_id> for fp32 and bicubic."""
    return config.results / ("reference" if run_id in (FP32, BICUBIC) else "images") / run_id


def scores_file(config: Config, run_id: str) -> Path:
    """results/<name>/scores/<run_id>.csv: one row per number."""
    return config.results / "scores" / f"{run_id}.csv"


def sensitivity_file(config: Config) -> Path:
    """results/<name>/runs/sensitivity.csv."""
    return config.results / "runs" / "sensitivity.csv"


def test_pairs(config: Config) -> list[ImagePair]:
    """The test pairs of this configuration; of datasets, what the data stage found."""
    limit = config.limits.get("test")
    if config.test:
        return pairs_in(config.test, config.results / "data" / "test")[:limit]
    return [p for d in config.datasets for p in read_sheet(sheet(config, d.name))[:limit]]


def calibration_pairs(config: Config) -> list[ImagePair]:
    """The calibration pairs of this configuration."""
    if config.photos:
        return read_sheet(sheet(config, CALIBRATION))
    pairs = pairs_in(config.calibration, config.results / "data" / "calibration")
    return pairs[: config.limits.get("calibration")]


def data_files(config: Config) -> tuple[list[Path], list[Path]]:
    """What the data stage makes and others read, (test, calibration): known before any data is there."""
    if config.test:
        test = [path for pair in test_pairs(config) for path in (pair.hr, pair.lr)]
    else:
        test = [sheet(config, d.name) for d in config.datasets]
    if config.photos:
        return test, [sheet(config, CALIBRATION)]
    return test, [path for pair in calibration_pairs(config) for path in (pair.hr, pair.lr)]


def image_files(config: Config, run_id: str) -> list[Path]:
    """What tells that a run's images are there: the images, or a list of them per dataset."""
    folder = image_folder(config, run_id)
    if config.test:
        return [folder / f"{pair.name}.png" for pair in test_pairs(config)]
    return [folder / f"{d.name}.tsv" for d in config.datasets]


def datasets_of(config: Config) -> list[Dataset]:
    """Every dataset of image files that a configuration reads."""
    return [*config.datasets, *([config.photos] if config.photos else [])]


def data_sources(config: Config) -> list[Path]:
    """What the data stage reads; for a dataset that is not there, what fetching it makes."""
    lists = [path for path in (config.test, config.calibration) if path]
    found = []
    for dataset in datasets_of(config):
        found += dataset.files() or ([dataset.marker] if dataset.marker else [])
    return [*lists, *found]


def missing_inputs(config: Config) -> list[str]:
    """One line per weight or dataset that is not there: what to put where."""
    missing = []
    if config.model not in BUILT_IN and not (Path(config.model) / "manifest.json").exists():
        missing.append(
            f"model {config.model} is not there (no manifest.json in it): give the folder of a model saved by passionsr, or "
            f"make it: passionsr import-osediff {config.model} --checkpoint osediff.pkl (README: paper scale)"
        )
    missing += [problem for d in datasets_of(config) if (problem := d.missing())]
    for given in config.given:
        if not any(given.folder.glob("*.png")):
            missing.append(
                f"given {given.name}: no PNG images in {given.folder}: set its `folder:`"
            )
    return missing


def missing_report(config_file: str, missing: Sequence[str]) -> str:
    """The list for the user."""
    lines = "".join(f"\n  - {line}" for line in missing)
    return f"{config_file}: {len(missing)} inputs are missing; nothing runs before they are there:{lines}"


# -- stages -------------------------------------------------------------------------------------


def make_data(config: Config) -> None:
    """Test and calibration images: from the lists in git, or sheets of the image files found."""
    if config.test:
        made = write_pairs(config.test, config.results / "data" / "test", config.limits.get("test"))
        log.info("%s: %d pairs", config.test, len(made))
    for dataset in config.datasets:
        pairs = dataset.pairs()
        write_sheet(pairs, sheet(config, dataset.name))
        log.info("%s: %d pairs in %s", dataset.name, len(pairs), dataset.folder)
    folder = config.results / "data" / CALIBRATION
    if config.photos:
        crops = read_crops(config.calibration)[: config.limits.get("calibration")]
        made = write_crops(crops, config.photos.photos(), folder)
        write_sheet(made, sheet(config, CALIBRATION))
    else:
        made = write_pairs(config.calibration, folder, config.limits.get("calibration"))
    log.info("%s: %d pairs", config.calibration, len(made))


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


BUILT_IN = ("tiny", "sd21-random")  # models that are made, not read from a folder


def load_float_model(config: Config) -> OneStepSR:
    """The float model that a configuration names."""
    if config.model == "tiny":
        from passionsr.tiny import tiny_model

        model = tiny_model()
    elif config.model == "sd21-random":
        from passionsr.sd21 import sd21_model

        model = sd21_model(seed=0)
    else:
        from passionsr.loading import load_model

        model = load_model(config.model)
    return to_device(model, config)


def to_device(model: OneStepSR, config: Config) -> OneStepSR:
    """`model` on the configuration's device; UserError where torch has none."""
    if config.device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise UserError(
                f"device is {config.device}, but torch finds no GPU here; set device: cpu"
            )
    return model.to(config.device)


def device_name(config: Config) -> str:
    """What a job ran on, for its record."""
    if config.device == "cpu":
        return platform.processor() or platform.machine()
    import torch

    return torch.cuda.get_device_name(config.device)


def write_images(
    model: OneStepSR, pairs: Sequence[ImagePair], folder: Path, options: dict[str, Any]
) -> None:
    """Super-resolve every LR of `pairs` into folder/<name>.png; options: of InferenceOptions."""
    from passionsr.inference import InferenceOptions, super_resolve

    chosen = InferenceOptions(**options)

    for index, pair in enumerate(pairs, 1):
        lr, _ = read_pair(pair)
        started = time.perf_counter()
        write_uint8(folder / f"{pair.name}.png", super_resolve(model, lr, chosen))
        log.info("%d/%d %s (%.1f s)", index, len(pairs), pair.name, time.perf_counter() - started)


def write_image_lists(config: Config, run_id: str) -> None:
    """Per dataset, name and sha256 of each output: written last, so that it stands for all of them."""
    folder = image_folder(config, run_id)
    pairs = test_pairs(config)
    for dataset in config.datasets:
        files = {p.image: folder / f"{p.name}.png" for p in pairs if p.dataset == dataset.name}
        rows = [f"{image}\t{sha256_file(path)}\n" for image, path in files.items()]
        write_text(folder / f"{dataset.name}.tsv", "".join(rows))


def check_image_lists(config: Config, run_id: str) -> None:
    """UserError if an output on disk is not the one that `write_image_lists` saw."""
    folder = image_folder(config, run_id)
    for dataset in config.datasets:
        path = folder / f"{dataset.name}.tsv"
        for line in path.read_text().splitlines():
            image, digest = line.split("\t")
            check_sha256(folder / dataset.name / f"{image}.png", digest)


def reference(config: Config) -> None:
    """Outputs of the float model, and of plain bicubic upscaling."""
    pairs = test_pairs(config)
    for pair in pairs:
        lr, _ = read_pair(pair)
        write_uint8(image_folder(config, BICUBIC) / f"{pair.name}.png", upscale(lr))
    model = load_float_model(config)
    model.posterior = config.posterior
    write_images(model, pairs, image_folder(config, FP32), config.inference)
    for run_id in (BICUBIC, FP32):
        write_image_lists(config, run_id)


def _git_sha() -> str:
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return result.stdout.strip() or "unknown"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "diffusers", "numpy", "numba", "pillow", "safetensors")
    return {"python": platform.python_version(), **{n: version(n) for n in names}}


class Loaded(Sequence[Any]):
    """What `load` makes of each item, whenever it is asked for: nothing of it stays in memory."""

    def __init__(self, items: Sequence[Any], load: Callable[[Any], Any]):
        self.items, self.load = items, load

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.load(self.items[index])


class Phases:
    """Seconds of each part of a job, and the process's largest memory so far."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._began = time.perf_counter()

    def end(self, name: str) -> None:
        """Call when `name` is over and the next begins."""
        from passionsr.bench import peak_mib

        now = time.perf_counter()
        seconds = round(now - self._began, 2)
        self.rows.append({"phase": name, "seconds": seconds, "peak_mib": round(peak_mib())})
        log.info("%s: %.1f s, %d MiB", name, seconds, peak_mib())
        self._began = now


def check_counts(config: Config, run: Run, report: Sequence[SwapRow]) -> None:
    """UserError unless a run quantized as many layers of each part as the configuration expects."""
    from passionsr.surgery import check_scope

    for part in check_scope(run.scope):
        expected = config.expected_layers.get(part)
        got = sum(
            r.name.startswith(f"{part}.") and r.kind != "attention" and r.weight_bits is not None
            for r in report
        )
        if expected is not None and got != expected:
            raise UserError(
                f"{run.run_id}: {got} layers of {part} were quantized, expected {expected}"
            )


def calibrate(config: Config, run: Run) -> None:
    """Quantize the float model for one run: artifact, curves, layer report, run.json (written last)."""
    from passionsr.bench import peak_mib
    from passionsr.calibration import make_batches
    from passionsr.diagnostics import RANGE_COLUMNS, let_ranges, model_bytes
    from passionsr.export import save_quantized
    from passionsr.images import to_tensor
    from passionsr.memory import give_back_freed_memory
    from passionsr.method import load_method, quantize_model
    from passionsr.quant.spec import Scheme
    from passionsr.resume import calibration_key, forget, resumable

    started = time.perf_counter()
    entry, options = config.entries[run.method], config.options(run)
    method = load_method(entry.target, options)
    pairs = calibration_pairs(config)
    images = Loaded(pairs, lambda pair: to_tensor(upscale(read_pair(pair)[0])))
    targets = Loaded(pairs, lambda pair: to_tensor(read_pair(pair)[1]))
    phases = Phases()
    kept = config.results / "resume" / run.run_id
    teacher = load_float_model(config)
    imported = peak_mib()
    phases.end("load")
    # Where memory is short, the GPU's too: 500 images of 512 px and their outputs are 5 GB.
    folder = kept / "teacher" if config.lean or config.device != "cpu" else None
    batches = make_batches(teacher, images, config.batch_size, run.seed, targets, folder)
    phases.end("float outputs")
    teacher.lean = config.lean  # its outputs are in the batches; from here on it may be taken apart
    log.info("%s: %d calibration images, options %s", run.run_id, len(images), options)
    tensors = [t for batch in batches for t in vars(batch).values()]
    with resumable(kept, calibration_key(config.run_digest(run), teacher, tensors)):
        model, fit_log, report = quantize_model(
            method, teacher, Scheme.parse(run.scheme), run.scope, batches, run.seed
        )
    phases.end("quantize")
    del teacher
    give_back_freed_memory()
    check_counts(config, run, report)
    seconds = time.perf_counter() - started
    folder = run_folder(config, run.run_id)
    info = {"run": dataclasses.asdict(run), "class": entry.target, "options": options}
    save_quantized(model, folder / "artifact", info)
    write_csv(folder / "fit.csv", fit_log.rows, ("stage", "epoch", "step", "loss"))
    # Seconds and memory vary from run to run: they are in run.json.
    stage_columns = ("stage", "loss_before", "loss_after", "undone", "steps", "parameters")
    write_csv(
        folder / "stages.csv",
        [{k: row[k] for k in stage_columns} for row in fit_log.stages],
        stage_columns,
    )
    phases.end("save")
    write_csv(folder / "ranges.csv", let_ranges(model, batches[0].image), RANGE_COLUMNS)
    phases.end("ranges")
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
            "%(stage)s: loss %(loss_before).3g -> %(loss_after).3g, %(steps)d steps, %(seconds).1f s%(note)s",
            {**row, "note": ", undone: it had ended higher" if row["undone"] else ""},
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
            "device": device_name(config),
            "threads": config.threads,
            "model_bytes": model_bytes(model),
            "seconds": round(seconds, 2),
            "stage_seconds": {r["stage"]: round(r["seconds"], 2) for r in fit_log.stages},
            "stage_peak_mib": {r["stage"]: r["peak_mib"] for r in fit_log.stages},
            "phases": phases.rows,
            "peak_mib": round(peak_mib()),
            "peak_mib_before_calibration": round(imported),
        },
    )
    del batches, tensors  # mapped files: a network file system keeps what is open
    forget(kept)


def sensitivity(config: Config) -> None:
    """runs/sensitivity.csv: what quantizing each layer alone does to the float model's output.

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
    write_csv(sensitivity_file(config), rows, SENSITIVITY_COLUMNS)


def infer(config: Config, run: Run) -> None:
    """Super-resolve the test set with a run's saved artifact."""
    from passionsr.export import load_quantized
    from passionsr.layers import keep_weights

    model = to_device(load_quantized(run_folder(config, run.run_id) / "artifact"), config)
    if config.lean:
        keep_weights(model, False)
    model.posterior = config.posterior
    write_images(model, test_pairs(config), image_folder(config, run.run_id), config.inference)
    write_image_lists(config, run.run_id)


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
    """scores/<run_id>.csv of every run given: one row per number, empty where a metric is not available."""
    from passionsr.metrics import MetricSuite

    reasons = read_json(config.results / "metrics.json")
    available = [n for n in config.metrics if not reasons[n]]
    suite = MetricSuite(available)
    known = {run.run_id: run for run in config.runs}
    for run_id in run_ids:
        started = time.perf_counter()
        run = known.get(run_id) or Run(run_id, "W32A32", "UV", 0)
        rows = []
        outputs = scored_outputs(config, run_id)
        for index, (pair, path, reference) in enumerate(outputs, 1):
            _, hr = read_pair(pair)
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

    Given outputs cover their whole dataset and come from another model: there is no float output to compare with.
    Raises UserError if an output is not the one that the run made.
    """
    given = {g.name: g for g in config.given}.get(run_id)
    if given:
        pairs = read_sheet(sheet(config, given.dataset))
        return [(pair, given.folder / f"{pair.image}.png", None) for pair in pairs]
    check_image_lists(config, run_id)
    images, floats = (image_folder(config, r) for r in (run_id, FP32))
    return [
        (pair, images / f"{pair.name}.png", None if run_id == FP32 else floats / f"{pair.name}.png")
        for pair in test_pairs(config)
    ]


def check_run(config: Config, run_id: str) -> None:
    """UserError unless a run's artifact was made from this very configuration."""
    made = read_json(run_folder(config, run_id) / "run.json")["run_digest"]
    expected = config.run_digest(config.run(run_id))
    if made != expected:
        raise UserError(
            f"{run_id}: its artifact comes from another configuration ({made}, expected {expected}); "
            "delete its folder and run again"
        )
