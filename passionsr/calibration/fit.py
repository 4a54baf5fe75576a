"""The one training loop of every calibration: what to learn and what to match are arguments."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from passionsr.calibration.checkpoints import Checkpoints, NoCheckpoints
from passionsr.calibration.sub_models import SubModel, sub_quantizers
from passionsr.utils.files import UserError
from passionsr.utils.finite import NonFiniteError, is_finite
from passionsr.utils.system import peak_mib

ADVICE = "lower its learning rate, or check the weights and the calibration images"
MAX_RATE = 1e30  # of a step; Adam divides it by 0.1, and what is more overflows in float32
progress = logging.getLogger(__name__)
Batch = TypeVar("Batch")
Regulariser = Callable[[int], Tensor | float]


def every_step(step: int, batches: int) -> bool:
    """Gradients are cleared before each step, counted from 0."""
    return True


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a fit stage trains.

    lr: learning rate, multiplied by each group's own factor. epochs: passes over the batches;
        steps: their number instead, where given.
    schedule: of the learning rate: "constant"; "cosine" or "linear" to 0 over the fit stage;
        "halves": times `decay` in the second half of the epochs.
    optimizer: Adam (AdamW with `weight_decay`), or SGD with momentum 0.9.
    clears_gradients: (step, number of batches) -> whether gradients are cleared before this step.
    undo_worse [ours]: parameters go back to where they started if the loss ends higher, so that a
        learning rate that is too large for a range costs nothing.
    """

    lr: float = 1.0
    epochs: int = 1
    steps: int | None = None
    schedule: Literal["constant", "halves", "cosine", "linear"] = "constant"
    decay: float = 1.0
    weight_decay: float = 0.0
    optimizer: Literal["adam", "sgd"] = "adam"
    clears_gradients: Callable[[int, int], bool] = every_step
    undo_worse: bool = True

    def total(self, batches: int) -> int:
        """Steps over a set of `batches`."""
        return self.epochs * batches if self.steps is None else self.steps

    def factor(self, step: int, batches: int) -> float:
        """The learning rate's factor at a step, counted from 0."""
        share = step / max(1, self.total(batches))
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * share))
        if self.schedule == "linear":
            return 1 - share
        late = self.epochs > 1 and step // batches >= (self.epochs + 1) // 2
        return self.decay if self.schedule == "halves" and late else 1.0


@dataclass
class FitLog:
    """What the fit stages of a calibration report.

    rows: one per step: stage, epoch, step and the loss of its batch. stages: one per fit stage: its
    mean loss over a few batches before and after, whether it was undone, steps, parameters,
    seconds, and the largest memory so far (MiB): of the GPU that the parameters are on, else of the
    process.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class FitStage:
    """One fit of a calibration: its name, where it reports and what keeps its result.

    state: tensors besides the parameters that forward passes change; a checkpoint holds them, too.
    """

    name: str
    log: FitLog
    checkpoints: Checkpoints = NoCheckpoints()  # noqa: RUF009 (it has no state)
    state: Sequence[Tensor] = ()

    @classmethod
    def of(cls, sub: SubModel, name: str, log: FitLog, checkpoints: Checkpoints) -> FitStage:
        """The fit stage `name` of a sub-model, such as "unet.let"."""
        state = [tensor for q in sub_quantizers(sub) for tensor in q.forward_state()]
        return cls(f"{sub.name}.{name}", log, checkpoints, state)


@dataclass(frozen=True)
class ParamGroup:
    """Parameters with their own factor of the learning rate."""

    params: Sequence[nn.Parameter]
    lr_scale: float = 1.0


EVALUATED = 8  # batches that the loss before and after a fit stage is measured on


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
    stage: FitStage,
    regulariser: Regulariser | None = None,
) -> None:
    """`train`, unless the stage's checkpoints already have its result."""

    def work() -> dict[str, list[dict[str, Any]]]:
        own = FitLog()
        train(groups, loss_fn, batches, config, replace(stage, log=own), regulariser)
        return {"rows": own.rows, "stages": own.stages}

    changed = [*(p for group in groups for p in group.params), *stage.state]
    made = stage.checkpoints.run(stage.name, changed, work)
    stage.log.rows += made["rows"]
    stage.log.stages += made["stages"]


def train(
    groups: Sequence[ParamGroup],
    loss_fn: Callable[[Batch], Tensor],
    batches: Sequence[Batch],
    config: FitConfig,
    stage: FitStage,
    regulariser: Regulariser | None = None,
) -> None:
    """Minimise `loss_fn` over `groups`; every other tensor keeps its bits.

    The parameters require a gradient only inside this call. Batches come in the given order, over
    and over (they were shuffled once, with the run's seed).

    Args: regulariser: of the step (from 1), added to the loss that is minimised, but not to what is
        logged.
    Raises UserError, naming the fit stage, for a loss or a parameter that is not finite, and for a
    learning rate that no optimizer takes.
    """
    params = [p for group in groups for p in group.params]
    total = config.total(len(batches))
    if not params or total == 0:
        return
    started = time.perf_counter()
    before = mean_loss(loss_fn, batches)
    start = [p.detach().clone() for p in params] if config.undo_worse else []
    with _trainable(params):
        _check_loss(before, stage, "at step 0")
        _take_steps(groups, loss_fn, batches, config, stage, regulariser)
    after = mean_loss(loss_fn, batches)
    undone = config.undo_worse and not after <= before
    if undone:
        with torch.no_grad():
            for parameter, value in zip(params, start, strict=True):
                parameter.copy_(value)
    else:
        _check_loss(after, stage, "after the last step")
        if not all(is_finite(p) for p in params):
            raise NonFiniteError(f"{stage.name}: a parameter is not finite; {ADVICE}")
    row = {
        "stage": stage.name,
        "loss_before": before,
        "loss_after": before if undone else after,
        "undone": undone,
        "steps": total,
        "parameters": sum(p.numel() for p in params),
        "seconds": time.perf_counter() - started,
        "peak_mib": round(peak_mib(params[0].device)),
    }
    stage.log.stages.append(row)
    progress.info("%(stage)s: %(steps)d steps, %(seconds).1f s, %(peak_mib)d MiB", row)


def _take_steps(
    groups: Sequence[ParamGroup],
    loss_fn: Callable[[Batch], Tensor],
    batches: Sequence[Batch],
    config: FitConfig,
    stage: FitStage,
    regulariser: Regulariser | None,
) -> None:
    """The optimizer's steps of `train`, one logged row each."""
    count = len(batches)
    optimizer = _optimizer(groups, config, stage)
    schedule = LambdaLR(optimizer, lambda step: config.factor(step, count))
    for step in range(config.total(count)):
        loss = loss_fn(batches[step % count])
        value = float(loss.detach())
        if regulariser is not None:
            loss = loss + regulariser(step + 1)
        _check_loss(float(loss.detach()), stage, f"at step {step}")
        if config.clears_gradients(step, count):
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        row = {"stage": stage.name, "epoch": step // count, "step": step, "loss": value}
        stage.log.rows.append(row)


def _check_loss(loss: float, stage: FitStage, when: str) -> None:
    if not math.isfinite(loss):
        raise NonFiniteError(f"{stage.name}: the loss is {loss} {when}; {ADVICE}")


def _optimizer(
    groups: Sequence[ParamGroup], config: FitConfig, stage: FitStage
) -> torch.optim.Optimizer:
    chosen = [{"params": list(g.params), "lr": config.lr * g.lr_scale} for g in groups if g.params]
    for rate in (config.lr * g.lr_scale for g in groups if g.params):
        if not 0 <= rate <= MAX_RATE:
            raise UserError(
                f"{stage.name}: the learning rate is {rate}; give one from 0 to {MAX_RATE:g}"
            )
    if config.optimizer == "sgd":
        return torch.optim.SGD(chosen, momentum=0.9, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    return kind(chosen, betas=(0.9, 0.999), weight_decay=config.weight_decay)


@contextlib.contextmanager
def _trainable(params: Sequence[nn.Parameter]) -> Iterator[None]:
    """Parameters require a gradient inside, and have none afterwards."""
    for parameter in params:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in params:
            parameter.requires_grad_(False)
            parameter.grad = None
