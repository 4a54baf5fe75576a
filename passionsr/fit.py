"""The one training loop: what to learn and what to match are arguments."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Adam over `epochs` passes; the learning rate is multiplied by `decay` in the last epoch half."""

    epochs: int
    lr: float
    decay: float = 1.0


@dataclass
class FitLog:
    """One row per step, and per stage the mean loss over a few batches before and after."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class ParamGroup:
    """Parameters with their own multiple of the learning rate."""

    params: Sequence[nn.Parameter]
    lr_scale: float = 1.0


EVALUATED = 4  # batches that the loss before and after a stage is measured on


@torch.no_grad()
def mean_loss(loss_fn: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> float:
    """Mean over the first batches, without gradient."""
    chosen = batches[:EVALUATED]
    return sum(float(loss_fn(batch)) for batch in chosen) / len(chosen)


def fit(
    groups: Sequence[ParamGroup],
    loss_fn: Callable[[Batch], Tensor],
    batches: Sequence[Batch],
    config: FitConfig,
    log: FitLog,
    stage: str,
    after_step: Callable[[], None] | None = None,
) -> None:
    """Minimise `loss_fn` over `groups`; everything else keeps its bits.

    Gradients are zeroed every step. The parameters require a gradient only inside this call.
    Batches come in the given order in every epoch (they were shuffled once, with the run's seed).
    Raises FloatingPointError, naming stage and step, if the loss is not finite.
    """
    params = [p for group in groups for p in group.params]
    if not params or config.epochs == 0:
        return
    started = time.perf_counter()
    before = mean_loss(loss_fn, batches)
    optimizer = torch.optim.Adam(
        [{"params": list(g.params), "lr": config.lr * g.lr_scale} for g in groups if g.params],
        betas=(0.9, 0.999),
    )
    for parameter in params:
        parameter.requires_grad_(True)
    try:
        step = 0
        for epoch in range(config.epochs):
            if config.epochs > 1 and epoch == (config.epochs + 1) // 2 and config.decay != 1.0:
                for group in optimizer.param_groups:
                    group["lr"] *= config.decay
            for batch in batches:
                loss = loss_fn(batch)
                value = float(loss.detach())
                if not torch.isfinite(loss.detach()):
                    raise FloatingPointError(f"{stage}: the loss is {value} at step {step}")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if after_step is not None:
                    after_step()
                log.rows.append({"stage": stage, "epoch": epoch, "step": step, "loss": value})
                step += 1
    finally:
        for parameter in params:
            parameter.requires_grad_(False)
            parameter.grad = None
    log.stages.append(
        {
            "stage": stage,
            "loss_before": before,
            "loss_after": mean_loss(loss_fn, batches),
            "steps": step,
            "parameters": sum(p.numel() for p in params),
            "seconds": time.perf_counter() - started,
        }
    )
