"""Seconds and memory of each part of a calibration, and its hours at the paper's scale."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from passionsr.models.one_step import OneStepSR

PASSIONSR = "passionsr.methods.passionsr:PassionSR"
IMAGES, EVALUATED = 4, 8  # of `one_calibration`; batches that a fit's loss is measured on
PAPER_IMAGES, PAPER_EPOCHS = 500, 2
FLOAT_MODEL = "float model"


class Meter:
    """Seconds and peak memory of one piece of work on a device."""

    def __init__(self, device: str):
        self.device = device
        self.start()

    def start(self) -> None:
        """From here on."""
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self.began = time.perf_counter()

    def read(self) -> tuple[float, float]:
        """(seconds, MiB) since `start`; on a CPU the memory is the process's, from its start."""
        from passionsr.utils.system import peak_mib

        if self.device != "cpu":
            import torch

            torch.cuda.synchronize(self.device)
        return time.perf_counter() - self.began, peak_mib(self.device)


@dataclass(frozen=True)
class PartCost:
    """A range pass or fit stage, such as unet.let: seconds, MiB, and steps (0 of a pass)."""

    name: str
    seconds: float
    memory: float
    steps: int

    @property
    def sub_model(self) -> str:
        """Such as encoder; empty for what no sub-model does alone."""
        return self.name.partition(".")[0] if "." in self.name else ""


class MeasuredParts:
    """Checkpoints (`passionsr.calibration.checkpoints`) that keep nothing and measure each part."""

    def __init__(self, device: str):
        self.meter = Meter(device)
        self.parts: list[PartCost] = []

    def run(self, part: str, tensors: Sequence[Tensor], work: Callable[[], Any]) -> Any:
        """What `work` returns."""
        self.meter.start()
        notes = work()
        seconds, memory = self.meter.read()
        steps = sum(row["steps"] for row in (notes or {}).get("stages", ()))
        self.parts.append(PartCost(part, seconds, memory, steps))
        return notes


def one_calibration(
    model: OneStepSR, device: str, side: int, options: dict[str, Any]
) -> list[PartCost]:
    """PassionSR at W6A6 on IMAGES random images of `side` px, one per batch, one epoch per fit.

    options: of PassionSR. The first part is what the float model takes to make the targets.
    """
    import torch

    from passionsr.calibration.batches import make_batches
    from passionsr.methods.base import load_method, quantize_model
    from passionsr.quantization.spec import Scheme

    images = torch.rand(IMAGES, 1, 3, side, side, generator=torch.Generator().manual_seed(1))
    measured = MeasuredParts(device)
    measured.meter.start()
    batches = make_batches(model, list(images), 1, 0)
    measured.parts.append(PartCost(FLOAT_MODEL, *measured.meter.read(), 0))
    method = load_method(PASSIONSR, {**options, "epochs": 1})
    quantize_model(method, model, Scheme.parse("W6A6"), "UV", batches, 0, measured)
    return measured.parts


def hours(parts: Sequence[PartCost]) -> float:
    """What PAPER_IMAGES images and PAPER_EPOCHS epochs would take, from `one_calibration`.

    A sub-model's inputs go through it once for LET's scales, twice for ranges, once for the next
    sub-model's inputs; a fit adds its steps, and the loss of EVALUATED images before and after it.
    """
    total = PAPER_IMAGES / IMAGES * sum(p.seconds for p in parts if p.name == FLOAT_MODEL)
    for name in dict.fromkeys(p.sub_model for p in parts if p.sub_model):
        own = [p for p in parts if p.sub_model == name]
        forward = min(p.seconds for p in own if not p.steps) / IMAGES  # the first loads kernels
        total += 4 * PAPER_IMAGES * forward
        for fit in (p for p in own if p.steps):
            step = max(0.0, fit.seconds - 2 * IMAGES * forward) / fit.steps
            total += PAPER_IMAGES * PAPER_EPOCHS * step + 2 * EVALUATED * forward
    return total / 3600
