"""What fake quantization costs: a training step with every layer quantized, against one in FP32.

The batch is one of the calibration's (4 x 4 x 32 x 32 latents). FP32 trains all weights of the
UNet; the quantized steps train LET, LBQ, or both. Times are the minimum over repeats, FP32 and
quantized steps in turn, in one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy

import torch
from tabulate import tabulate
from torch import Tensor

from passionsr.calibration.batches import CalibrationBatch
from passionsr.calibration.range_passes import init_let, set_ranges
from passionsr.calibration.sub_models import in_sequence
from passionsr.methods.passionsr import PassionSR, lbq_groups, let_groups
from passionsr.models.one_step import OneStepSR
from passionsr.quantization.spec import Scheme
from passionsr.utils.memory import keep_freed_memory


def _seconds(run: Callable[[Tensor], Tensor], latent: Tensor) -> float:
    started = time.perf_counter()
    run(latent).square().mean().backward()
    return time.perf_counter() - started


def step_ratios(model: OneStepSR, repeats: int = 10, threads: int = 1) -> str:
    """A Markdown table: seconds of the step in FP32 and quantized, and their ratio."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as workflow jobs do
    latent = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    float_model = deepcopy(model)
    float_model.unet.requires_grad_(True)
    quantized, _ = PassionSR().prepare(model, Scheme.parse("W6A6"), "U")
    batch = CalibrationBatch(latent, latent, latent, latent)
    groups = {}
    for sub, inputs, _ in in_sequence(quantized, [batch], "U"):
        init_let(sub, inputs)
        set_ranges(sub, inputs)
        let = [p for g in let_groups(sub, 1.0) for p in g.params]
        lbq = [p for g in lbq_groups(sub, 1.0) for p in g.params]
        groups = {"LET": let, "LBQ": lbq, "LET + LBQ": let + lbq}
    rows = []
    for name, parameters in groups.items():
        for parameter in parameters:
            parameter.requires_grad_(True)
        times = []
        for _ in range(repeats):
            times.append(
                (_seconds(float_model.denoise, latent), _seconds(quantized.denoise, latent))
            )
        for parameter in parameters:
            parameter.requires_grad_(False)
        fp32, ours = (min(t) for t in zip(*times, strict=True))
        rows.append([name, f"{fp32:.3f}", f"{ours:.3f}", f"{ours / fp32:.2f}"])
    head = ["trained", "FP32 step, s", "quantized step, s", "ratio"]
    return tabulate(rows, head, "github", disable_numparse=True)
