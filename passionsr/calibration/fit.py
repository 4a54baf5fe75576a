"""The one training loop: what to learn and what to match are arguments."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from passionsr.calibration.checkpoints import checkpointed
from passionsr.utils.system import peak_mib

progress = logging.getLogger(__name__)
Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Adam (AdamW with `weight_decay`), or SGD with momentum 0.9, for `steps`, or `epochs` passes where steps is None.

    schedule: "constant"; "cosine" or "linear" to 0 over the run; "halves": times `decay` in the second
    half of the epochs. zero_grad: "epoch" lets gradients add up over an epoch, PassionSR's released bug.
    undo_worse [ours]: parameters go back to where they started if the loss ends higher; steps that are too large for
    a range then cost nothing, for any method.
    """

    lr: float = 1.0
    epochs: int = 1
    steps: int | None = None
    schedule: Literal["constant", "halves", "cosine", "linear"] = "constant"
    decay: float = 1.0
    weight_decay: float = 0.0
    optimizer: Literal["adam", "sgd"] = "adam"
    zero_grad: Literal["step", "epoch"] = "step"
    undo_worse: bool = True

    def total(self, batches: int) -> int:
        """Steps over a set of `batches`."""
        return self.epochs * batches if self.steps is None else self.steps

    def factor(self, step: int, batches: int) -> float:
        """The learning rate's factor at a step."""
        share = step / max(1, self.total(batches))
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * share))
        if self.schedule == "linear":
            return 1 - share
        late = self.epochs > 1 and step // batches >= (self.epochs + 1) // 2
        return self.decay if self.schedule == "halves" and late else 1.0


@dataclass
class FitLog:
    """One row per step, and per stage the mean loss over a few batches before and after.

    A stage's peak_mib is the process's largest so far.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class ParamGroup:
    """Parameters with their own multiple of the learning rate."""

    params: Sequence[nn.Parameter]
    lr_scale: float = 1.0


EVALUATED = 8  # batches that the loss before and after a stage is measured on


@torch.no_grad()
def mean_loss(loss_fn: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> float:
    """Mean over the first batches, without gradient."""
    chosen = [batches[i] for i in range(min(EVALUATED, len(batches)))]
    return sum(float(loss_fn(batch)) for batch in chosen) / len(chosen)


def fit(
    groups: Sequence[ParamGroup],
    loss_fn: Callable[[Batch], Tensor],
    batches: Sequence[Batch],
    config: FitConfig,
    log: FitLog,
    stage: str,
    regulariser: Callable[[int], Tensor | float] | None = None,
) -> None:
    """`train`, at most once per run: inside `resume.resumable` a stage that an earlier attempt finished is not repeated."""

    def work() -> dict[str, list[dict[str, Any]]]:
        own = FitLog()
        train(groups, loss_fn, batches, config, own, stage, regulariser)
        return {"rows": own.rows, "stages": own.stages}

    made = checkpointed(stage, [p for group in groups for p in group.params], work)
    log.rows += made["rows"]
    log.stages += made["stages"]


def _optimizer(groups: Sequence[ParamGroup], config: FitConfig) -> torch.optim.Optimizer:
    chosen = [{"params": list(g.params), "lr": config.lr * g.lr_scale} for g in groups if g.params]
    if config.optimizer == "sgd":
        return torch.optim.SGD(chosen, momentum=0.9, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    return kind(chosen, betas=(0.9, 0.999), weight_decay=config.weight_decay)


def train(
    groups: Sequence[ParamGroup],
    loss_fn: Callable[[Batch], Tensor],
    batches: Sequence[Batch],
    config: FitConfig,
    log: FitLog,
    stage: str,
    regulariser: Callable[[int], Tensor | float] | None = None,
) -> None:
    """Minimise `loss_fn` over `groups`; everything else keeps its bits.

    The parameters require a gradient only inside this call.
    Batches come in the given order, over and over (they were shuffled once, with the run's seed).
    regulariser: of the step (from 1), added to the loss that is minimised, but not to what is logged.
    Raises FloatingPointError, naming stage and step, if the loss is not finite.
    """
    params = [p for group in groups for p in group.params]
    total = config.total(len(batches))
    if not params or total == 0:
        return
    started = time.perf_counter()
    before = mean_loss(loss_fn, batches)
    start = [p.detach().clone() for p in params] if config.undo_worse else []
    optimizer = _optimizer(groups, config)
    rates = [group["lr"] for group in optimizer.param_groups]
    for parameter in params:
        parameter.requires_grad_(True)
    try:
        for step in range(total):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * config.factor(step, len(batches))
            loss = loss_fn(batches[step % len(batches)])
            value = float(loss.detach())
            if regulariser is not None:
                loss = loss + regulariser(step + 1)
            if not math.isfinite(float(loss.detach())):
                raise FloatingPointError(f"{stage}: the loss is {value} at step {step}")
            if config.zero_grad == "step" or step % len(batches) == 0:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            epoch = step // len(batches)
            log.rows.append({"stage": stage, "epoch": epoch, "step": step, "loss": value})
    finally:
        for parameter in params:
            parameter.requires_grad_(False)
            parameter.grad = None
    after = mean_loss(loss_fn, batches)
    undone = config.undo_worse and not after <= before
    if undone:
        with torch.no_grad():
            for parameter, value in zip(params, start, strict=True):
                parameter.copy_(value)
    log.stages.append(
        {
            "stage": stage,
            "loss_before": before,
            "loss_after": before if undone else after,
            "undone": undone,
            "steps": total,
            "parameters": sum(p.numel() for p in params),
            "seconds": time.perf_counter() - started,
            "peak_mib": round(peak_mib()),
        }
    )
    progress.info("%(stage)s: %(steps)d steps, %(seconds).1f s, %(peak_mib)d MiB", log.stages[-1])
