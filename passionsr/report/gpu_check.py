"""`make gpu-check`: does all work on this machine's GPU, and what would the paper's scale take?

Four parts, in at most eight minutes, written as one Markdown table:

- contract: every method of config/methods.yaml calibrates the random tiny model there; nothing of
  it stays on the CPU, losses are finite, a second calibration gives the same bytes, and the saved
  artifact computes what the model did;
- full size: one calibration of PassionSR through all its fit stages on random weights of the
  paper's architecture, with seconds and GPU memory of every part;
- hours: what 500 images would take, extrapolated from that;
- fidelity: the W6A6 runs of config/mini.yaml through the workflow's own jobs, beside the CPU's
  numbers (config/expected.tsv).

A part that has used up its time leaves the rest out and says so. Every function takes the device,
so that tests run them on a CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passionsr.report.measured_parts import (
    IMAGES,
    PAPER_EPOCHS,
    PAPER_IMAGES,
    PASSIONSR,
    Meter,
    hours,
    one_calibration,
)
from passionsr.utils.files import UserError, write_text

if TYPE_CHECKING:
    from passionsr.benchmark.config import Config, MethodEntry, Run
    from passionsr.models.one_step import OneStepSR

log = logging.getLogger(__name__)

SECONDS = 480.0
# Shares of it after which a part begins nothing new; fidelity has the rest.
CONTRACT_UNTIL, FIDELITY_UNTIL = 0.3, 0.94
METHODS, MINI, BANDS = "config/methods.yaml", "config/mini.yaml", Path("config/expected.tsv")
SCHEME, SCOPE = "W6A6", "UV"
# Few, visible steps.
QUICK: dict[str, dict[str, Any]] = {
    PASSIONSR: {"epochs": 1, "let_lr": 1e-3, "lbq_lr": 1e-3},
    "passionsr.baselines.lsq:LSQ": {"epochs": 1, "act_lr": 1e-3, "weight_lr": 1e-4},
    "passionsr.baselines.qdiffusion:QDiffusion": {"weight_steps": 2, "act_steps": 2, "vae_crop": 4},
    "passionsr.baselines.efficientdm:EfficientDM": {"steps": 2, "lora_lr": 0.01},
}


@dataclass(frozen=True)
class Row:
    """One line of the table. memory: MiB of the device. failed: counts for the exit status."""

    part: str
    what: str
    result: str
    on_cpu: str = ""
    seconds: float | None = None
    memory: float | None = None
    failed: bool = False

    def cells(self) -> list[str]:
        """Texts of the columns."""
        seconds = "" if self.seconds is None else f"{self.seconds:.1f}"
        memory = "" if self.memory is None else f"{self.memory:.0f}"
        return [self.part, self.what, self.result, self.on_cpu, seconds, memory]


HEAD = ["part", "what", "result", "on a CPU", "seconds", "peak MiB"]


def attempt(part: str, what: str, check: Callable[[], Row]) -> Row:
    """The row of a check; one that raises is a row, too, and the others go on."""
    try:
        return check()
    except Exception as err:
        log.exception("%s, %s", part, what)
        reason = str(err).strip().splitlines() or [""]
        return Row(part, what, f"failed: {type(err).__name__}: {reason[0][:120]}", failed=True)


# -- contract -----------------------------------------------------------------------------------


def tiny_batches(model: OneStepSR) -> list[Any]:
    """Four random images of 32 px in two batches, with ground truth."""
    import torch

    from passionsr.calibration.batches import make_batches

    generator = torch.Generator().manual_seed(3)
    images, targets = torch.rand(2, 4, 1, 3, 32, 32, generator=generator)
    return make_batches(model, list(images), 2, 0, list(targets))


def contract(entry: MethodEntry, model: OneStepSR, batches: Sequence[Any], device: str) -> Row:
    """One method on the tiny model, twice; `model` and `batches` are on the device."""
    import torch

    from passionsr.methods.base import load_method, quantize_model
    from passionsr.quantization.artifact import load_quantized, save_quantized
    from passionsr.quantization.spec import Scheme
    from passionsr.utils.files import sha256_file

    method = load_method(entry.target, {**QUICK.get(entry.target, {}), **entry.options})
    meter = Meter(device)
    problems, digests = [], []
    image = torch.rand(2, 3, 48, 32, generator=torch.Generator().manual_seed(5))
    with tempfile.TemporaryDirectory(prefix="passionsr-gpu-check-") as name, torch.no_grad():
        for attempt_folder in (Path(name) / "first", Path(name) / "second"):
            with torch.enable_grad():
                made, fits, _ = quantize_model(method, model, Scheme.parse("W4A4"), SCOPE, batches)
            save_quantized(made, attempt_folder, {"name": entry.name})
            digests.append(sha256_file(attempt_folder / "model.safetensors"))
        tensors = {**dict(made.named_parameters()), **dict(made.named_buffers())}
        kind = torch.device(device).type
        stray = [key for key, tensor in tensors.items() if tensor.device.type != kind]
        if stray:
            problems.append(f"{len(stray)} tensors are elsewhere, first: {stray[0]}")
        if not all(math.isfinite(row["loss"]) for row in fits.rows):
            problems.append("a loss is not finite")
        loaded = load_quantized(attempt_folder).to(device)
        if not torch.equal(loaded(image), made(image)):
            problems.append("the loaded artifact computes something else")
    if len(set(digests)) > 1:
        problems.append("a second calibration gives other bytes")
    seconds, memory = meter.read()
    result = "; ".join(problems) or "ok"
    return Row("contract", entry.name, result, "", seconds, memory, bool(problems))


def contract_rows(device: str, left: Callable[[], float]) -> Iterator[Row]:
    """`contract` of every method, until `left` says that no seconds are left."""
    from passionsr.benchmark.method_registry import load_methods
    from passionsr.models.tiny import tiny_model

    model = tiny_model().to(device)
    batches = tiny_batches(model)
    entries = load_methods(METHODS)
    for place, entry in enumerate(entries.values()):
        if left() <= 0:
            rest = list(entries)[place:]
            yield Row("contract", f"{len(rest)} more", f"not reached: {', '.join(rest)}")
            return
        yield attempt("contract", entry.name, partial(contract, entry, model, batches, device))


# -- full size ----------------------------------------------------------------------------------


def full_size_rows(
    model: OneStepSR, device: str, side: int, options: dict[str, Any]
) -> Iterator[Row]:
    """A row per part, and the extrapolated hours; low_memory where the memory is too small."""
    import torch

    mode, too_large = "", ""
    try:
        parts = one_calibration(model, device, side, options)
    except torch.OutOfMemoryError as err:  # it holds on to what did not fit, so: out of here first
        too_large = str(err).splitlines()[0][:120]
    if too_large:
        yield Row("full size", "as configured", f"does not fit: {too_large}")
        torch.cuda.empty_cache()
        model.low_memory, mode = True, ", low_memory"
        parts = one_calibration(model, device, side, options)
    for part in parts:
        text = f"{part.steps} steps{mode}" if part.steps else f"{IMAGES} images{mode}"
        yield Row("full size", part.name, text, "", part.seconds, part.memory)
    peak = max(part.memory for part in parts)
    what = f"PassionSR, {PAPER_IMAGES} images of {side} px, {PAPER_EPOCHS} epochs"
    yield Row("hours", what, f"{hours(parts):.2f} h{mode}, extrapolated", "", None, peak)


# -- fidelity -----------------------------------------------------------------------------------


def mini_runs(config: Config) -> list[Run]:
    """The W6A6 runs of UNet and VAE."""
    return [run for run in config.runs if (run.scheme, run.scope) == (SCHEME, SCOPE)]


def psnr_to_float(config: Config, run: Run) -> float:
    """Mean PSNR (dB, RGB) of a run's images to the float model's."""
    import numpy as np

    from passionsr.benchmark.config import FP32
    from passionsr.benchmark.paths import image_folder, pairs_to_test
    from passionsr.data.images import read_uint8

    values = []
    for pair in pairs_to_test(config):
        ours, floats = (
            read_uint8(image_folder(config, name) / f"{pair.name}.png").astype(np.float64)
            for name in (run.run_id, FP32)
        )
        error = max(float(np.square(ours - floats).mean()), 1e-8)
        values.append(10 * math.log10(255**2 / error))
    return sum(values) / len(values)


def cpu_band(config: Config, run: Run, results: str) -> tuple[float, float] | None:
    """The CPU's PSNR to FP32 of a run, as its band in config/expected.tsv; None if unknown."""
    from passionsr.report.bands import read_bands

    title = config.entries[run.method].title
    for (table, _, bits, method, metric), band in read_bands(BANDS).get(results, {}).items():
        row = table in ("table2", "table4"), bits, method, metric
        if row == (True, run.scheme, title, "psnr_fp"):
            return band
    return None


def fidelity(config: Config, run: Run, results: str) -> Row:
    """Calibrate, infer and compare one run, with the workflow's own jobs.

    results: the CPU's results that it stands beside.
    """
    from passionsr.benchmark.jobs.calibrate import calibrate
    from passionsr.benchmark.jobs.infer import infer

    meter = Meter(config.device)
    calibrate(config, run)
    infer(config, run)
    seconds, memory = meter.read()
    value = psnr_to_float(config, run)
    band = cpu_band(config, run, results)
    if band is None:
        return Row("fidelity", run.run_id, f"{value:.2f} dB", "unknown", seconds, memory)
    inside = band[0] <= value <= band[1]
    result = f"{value:.2f} dB" + ("" if inside else ", outside its band")
    on_cpu = f"{sum(band) / 2:.2f} dB ({band[0]:.2f} to {band[1]:.2f})"
    return Row("fidelity", run.run_id, result, on_cpu, seconds, memory, not inside)


def fidelity_rows(config: Config, results: str, left: Callable[[], float]) -> Iterator[Row]:
    """`fidelity` of `mini_runs`, until `left` says that no seconds are left."""
    from passionsr.benchmark.jobs.data import make_data
    from passionsr.benchmark.jobs.infer import reference

    make_data(config)
    reference(config)
    runs = mini_runs(config)
    for place, run in enumerate(runs):
        if left() <= 0:
            rest = [other.run_id for other in runs[place:]]
            yield Row("fidelity", f"{len(rest)} more", f"not reached: {', '.join(rest)}")
            return
        yield attempt("fidelity", run.run_id, partial(fidelity, config, run, results))


# -- the command --------------------------------------------------------------------------------


def about(device: str) -> str:
    """What the numbers were measured with."""
    import platform

    import torch

    if device == "cpu":
        return f"{platform.machine()}, torch {torch.__version__}"
    total = torch.cuda.get_device_properties(device).total_memory / 2**30
    return (
        f"{torch.cuda.get_device_name(device)} ({total:.0f} GiB), torch {torch.__version__}, "
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    )


def write_report(rows: Sequence[Row], head: str, path: Path) -> str:
    """The table as Markdown, written to `path`."""
    from tabulate import tabulate

    table = tabulate([row.cells() for row in rows], HEAD, "pipe", disable_numparse=True)
    failed = sum(row.failed for row in rows)
    text = f"**GPU check**: {head}. {len(rows)} rows, {failed} failed.\n\n{table}\n"
    write_text(path, text)
    return text


def run_check(device: str, seconds: float, output: Path) -> int:
    """All parts on a device; 0, or 1 if a check failed."""
    from passionsr.benchmark.config import load_config
    from passionsr.benchmark.method_registry import load_budget
    from passionsr.models.osediff.sd21 import sd21_model

    began = time.perf_counter()

    def left_of(share: float) -> Callable[[], float]:
        return lambda: share * seconds - (time.perf_counter() - began)

    config = load_config(MINI)
    paper = load_budget("paper", Path(METHODS))[PASSIONSR]
    mini = dataclasses.replace(config, device=device, name="gpu-check")
    rows: list[Row] = []
    parts: tuple[Callable[[], Iterator[Row]], ...] = (
        lambda: contract_rows(device, left_of(CONTRACT_UNTIL)),
        lambda: full_size_rows(sd21_model(seed=0).to(device), device, 512, paper),
        lambda: fidelity_rows(mini, config.name, left_of(FIDELITY_UNTIL)),
    )
    for part in parts:
        try:
            for row in part():
                print(*row.cells(), sep=" | ", flush=True)
                rows.append(row)
        except Exception as err:  # the other parts are worth having
            log.exception("a part of the check ended early")
            rows.append(Row("check", "a part ended early", f"{type(err).__name__}", failed=True))
    took = time.perf_counter() - began
    print("\n" + write_report(rows, f"{about(device)}; {took:.0f} s", output) + f"\n{output}")
    return int(any(row.failed for row in rows))


def require_gpu() -> None:
    """UserError where torch finds no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"gpu-check: torch {torch.__version__} finds no GPU here: run it on a machine with "
            "one, with a torch that is built for its driver"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; exit status 0, 1 if a check failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda or cuda:<number>")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--output", type=Path, default=Path("results/gpu-check.md"))
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        from passionsr.utils.device import prepare_device

        require_gpu()
        prepare_device(args.device)
        return run_check(args.device, args.seconds, args.output)
    except UserError as err:
        message = str(err)
    except ModuleNotFoundError as err:
        message = f"gpu-check: the package {err.name} is missing: pip install -e . in the checkout"
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
