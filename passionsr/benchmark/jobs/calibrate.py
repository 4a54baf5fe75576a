"""The jobs `calibrate` and `sensitivity`: from the float model to artifacts."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from passionsr.benchmark.config import Config, Run
from passionsr.benchmark.float_model import device_name, load_float_model
from passionsr.benchmark.job_code import family_code, job_code, method_code
from passionsr.benchmark.paths import calibration_pairs, run_folder, sensitivity_file
from passionsr.benchmark.records import Phases, write_record
from passionsr.data.datasets import read_pair
from passionsr.data.images import upscale
from passionsr.models.family import get_family
from passionsr.utils.files import UserError, write_csv

if TYPE_CHECKING:
    from pathlib import Path

    from passionsr.calibration.batches import CalibrationBatch
    from passionsr.calibration.fit import FitLog
    from passionsr.models.one_step import OneStepSR
    from passionsr.quantization.swap import SwapRow

log = logging.getLogger(__name__)

SENSITIVITY_METHOD = "passionsr.baselines.minmax:MinMax"


class Loaded(Sequence[Any]):
    """What `load` makes of each item, whenever it is asked for: nothing of it stays in memory."""

    def __init__(self, items: Sequence[Any], load: Callable[[Any], Any]):
        self.items, self.load = items, load

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.load(self.items[index])


def check_counts(config: Config, run: Run, report: Sequence[SwapRow]) -> None:
    """UserError unless a run quantized as many layers of each part as the configuration expects."""
    for part in get_family(config.family).scope_parts(run.scope):
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
    """Quantize the float model for one run: artifact, curves, layers, run.json (written last)."""
    from passionsr.calibration.checkpoints import SavedCheckpoints, calibration_key, forget
    from passionsr.methods.base import load_method, quantize_model
    from passionsr.quantization.artifact import save_quantized
    from passionsr.quantization.diagnostics import RANGE_COLUMNS, let_ranges, model_bytes
    from passionsr.quantization.spec import Scheme
    from passionsr.utils.memory import give_back_freed_memory

    started = time.perf_counter()
    entry, options = config.entries[run.method], config.options(run)
    method = load_method(entry.target, options)
    phases = Phases(config.device)
    kept = config.results / "resume" / run.run_id
    teacher = load_float_model(config)
    phases.end("load")
    batches = _float_outputs(config, run, teacher, kept / "teacher")
    phases.end("float outputs")
    # The float outputs are in the batches: from here on the model may be taken apart.
    teacher.low_memory = config.low_memory
    count = sum(len(batch.image) for batch in batches)
    log.info("%s: %d calibration images, options %s", run.run_id, count, options)
    tensors = [t for batch in batches for t in vars(batch).values()]
    code = job_code("benchmark.jobs.calibrate") + method_code(entry.target)
    code += family_code(config.family)
    key = calibration_key(config.run_digest(run), code, teacher, tensors)
    scheme, checkpoints = Scheme.parse(run.scheme), SavedCheckpoints(kept, key)
    model, fit_log, report = quantize_model(
        method, teacher, scheme, run.scope, batches, run.seed, checkpoints
    )
    phases.end("quantize")
    del teacher
    give_back_freed_memory()
    check_counts(config, run, report)
    seconds = time.perf_counter() - started
    folder = run_folder(config, run.run_id)
    info = {"run": dataclasses.asdict(run), "class": entry.target, "options": options}
    save_quantized(model, folder / "artifact", info)
    _write_curves(folder, fit_log)
    phases.end("save")
    write_csv(folder / "ranges.csv", let_ranges(model, batches[0].image), RANGE_COLUMNS)
    phases.end("ranges")
    _write_layers(folder, report)
    _log_fits(fit_log)
    write_record(
        config,
        run,
        device=device_name(config),
        model_bytes=model_bytes(model),
        seconds=seconds,
        fits=fit_log.stages,
        phases=phases,
    )
    del batches, tensors  # mapped files: a network file system keeps what is open
    forget(kept)


def _float_outputs(
    config: Config, run: Run, teacher: OneStepSR, folder: Path
) -> list[CalibrationBatch]:
    """The calibration batches of a run; kept in files of `folder` where memory is short."""
    from passionsr.calibration.batches import make_batches
    from passionsr.data.images import to_tensor

    pairs = calibration_pairs(config)
    scale = get_family(config.family).scale
    images = Loaded(pairs, lambda pair: to_tensor(upscale(read_pair(pair, scale)[0], scale)))
    targets = Loaded(pairs, lambda pair: to_tensor(read_pair(pair, scale)[1]))
    # A GPU's memory is short, too: 500 images of 512 px and their outputs are 5 GB.
    in_files = folder if config.low_memory or config.device != "cpu" else None
    return make_batches(teacher, images, config.batch_size, run.seed, targets, in_files)


def _write_curves(folder: Path, fit_log: FitLog) -> None:
    """fit.csv, a row per step, and stages.csv, a row per fit stage."""
    write_csv(folder / "fit.csv", fit_log.rows, ("stage", "epoch", "step", "loss"))
    # Seconds and memory vary from run to run: they are in run.json.
    columns = ("stage", "loss_before", "loss_after", "undone", "steps", "parameters")
    rows = [{k: row[k] for k in columns} for row in fit_log.stages]
    write_csv(folder / "stages.csv", rows, columns)


def _write_layers(folder: Path, report: Sequence[SwapRow]) -> None:
    """layers.csv: how each module of the scope is quantized."""
    columns = ("name", "kind", "weight_bits", "act_bits", "split", "let")
    write_csv(folder / "layers.csv", [dataclasses.asdict(row) for row in report], columns)
    log.info(
        "swapped %d layers and %d attentions; (weight, activation) bits used: %s",
        sum(r.kind != "attention" for r in report),
        sum(r.kind == "attention" for r in report),
        sorted({(r.weight_bits, r.act_bits) for r in report if r.weight_bits}),
    )


def _log_fits(fit_log: FitLog) -> None:
    """One line per fit stage: what it did to its loss, and what it took."""
    for row in fit_log.stages:
        log.info(
            "%(stage)s: loss %(loss_before).3g -> %(loss_after).3g, "
            "%(steps)d steps, %(seconds).1f s%(note)s",
            {**row, "note": ", undone: it had ended higher" if row["undone"] else ""},
        )


def sensitivity(config: Config) -> None:
    """runs/sensitivity.csv: what quantizing each layer alone does to the float model's output.

    MinMax at the configuration's `sensitivity` scheme, scope UV, on two calibration images.
    """
    from passionsr.calibration.batches import make_batches
    from passionsr.calibration.checkpoints import NoCheckpoints
    from passionsr.data.images import to_tensor
    from passionsr.methods.base import load_method
    from passionsr.quantization.diagnostics import SENSITIVITY_COLUMNS
    from passionsr.quantization.diagnostics import sensitivity as measure
    from passionsr.quantization.spec import Scheme

    assert config.sensitivity is not None
    teacher = load_float_model(config)
    pairs = calibration_pairs(config)
    scale = teacher.family.scale
    images = [to_tensor(upscale(read_pair(p, scale)[0], scale)) for p in pairs]
    batches = make_batches(teacher, images, config.batch_size, 0)
    method = load_method(SENSITIVITY_METHOD)
    model, _ = method.prepare(teacher, Scheme.parse(config.sensitivity), "UV")
    method.calibrate(model, batches, "UV", NoCheckpoints())
    rows = measure(model, batches[0].image[:2])
    write_csv(sensitivity_file(config), rows, SENSITIVITY_COLUMNS)
