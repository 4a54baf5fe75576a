"""Block reconstruction: training a unit of a network at a time against the float network's.

A unit is a ResNet or transformer block, or a layer outside of both (BRECQ: Li et al., ICLR 2021,
Sec. 3). Its inputs and the float unit's outputs are captured once for a few images; then its
rounding (AdaRound: Nagel et al., ICML 2020, Sec. 3) or its activation scales are trained on random
minibatches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from passionsr.calibration.sub_models import SubModel
from passionsr.quantization.layer import QuantizedLayer
from passionsr.quantization.quantizer import Phase, Quantizer

GAMMA, ZETA = -0.1, 1.1  # the rectified sigmoid's stretch


class AdaRound(nn.Module):
    """W -> scale (clamp(floor(W / scale) + h(V) + z, 0, n) - z), as a layer's parametrization.

    h(V) = clamp(1.2 sigmoid(V) - 0.1, 0, 1), AdaRound's rectified sigmoid, starts at the fraction
    W / scale - floor(W / scale), so the soft weight is W where it is not clamped. `hard` rounds up
    where V >= 0. The weight quantizer must be in the phase FLOAT meanwhile.
    """

    def __init__(self, weight: Tensor, quantizer: Quantizer):
        super().__init__()
        self.floor: Tensor
        self.scale: Tensor
        self.zero_point: Tensor
        levels = quantizer.spec.levels
        with torch.no_grad():
            scale, zero_point = quantizer.grid(weight)
            floor = torch.floor(weight / scale)
            fraction = weight / scale - floor
            start = -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1)
        self.v = nn.Parameter(start, requires_grad=False)
        self.register_buffer("floor", floor)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.levels, self.hard = levels, False

    def share(self) -> Tensor:
        """h(V), in [0, 1]."""
        return (torch.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def forward(self, weight: Tensor) -> Tensor:
        """The soft (or hard) weight; `weight` itself enters through what was stored."""
        up = (self.v >= 0).to(weight.dtype) if self.hard else self.share()
        codes = (self.floor + up + self.zero_point).clamp(0, self.levels)
        return (codes - self.zero_point) * self.scale


@dataclass(frozen=True, kw_only=True)
class RoundingPenalty:
    """AdaRound's penalty lambda sum(1 - |2 h - 1|^beta), which pushes h to 0 or 1.

    steps: of the fit stage. weight: lambda. warmup: share of the steps without penalty, after which
    beta falls linearly from `start` to `end`.
    """

    steps: int
    weight: float = 0.01
    warmup: float = 0.2
    start: float = 20.0
    end: float = 2.0

    def beta(self, step: int) -> float:
        """The exponent at a step, counted from 1."""
        begin = self.warmup * self.steps
        if step < begin:
            return self.start
        share = (step - begin) / (self.steps - begin)
        return self.end + (self.start - self.end) * max(0.0, 1 - share)

    def __call__(self, shares: Sequence[Tensor], step: int) -> Tensor | float:
        """The penalty of several layers' h at a step, counted from 1."""
        if step < self.warmup * self.steps:
            return 0.0
        beta = self.beta(step)
        return self.weight * sum((1 - (2 * h - 1).abs().pow(beta)).sum() for h in shares)


def reconstruction_loss(
    output: Tensor, target: Tensor, power: float = 2.0, axis: int = 1
) -> Tensor:
    """Sum of |output - target|^power over `axis`, mean over the rest."""
    return (output - target).abs().pow(power).sum(axis).mean()


# -- units --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """A module that is reconstructed as a whole; name: its path in the sub-model."""

    name: str
    module: nn.Module

    def layers(self) -> list[QuantizedLayer]:
        """Its quantized layers."""
        return [m for m in self.module.modules() if isinstance(m, QuantizedLayer)]


def find_units(sub: SubModel, example: Tensor) -> list[Unit]:
    """The units of a sub-model in the order in which a forward pass calls them."""
    candidates: dict[nn.Module, str] = {}
    for root in sub.modules:
        inside: tuple[str, ...] = ()
        for name, module in root.named_modules():
            if inside and name.startswith(inside):
                continue
            if type(module).__name__ in sub.block_types:
                candidates[module] = name
                inside = (*inside, f"{name}.")
            elif isinstance(module, QuantizedLayer):
                candidates[module] = name
    order: list[nn.Module] = []

    def note(module: nn.Module, *_: Any) -> None:
        if module not in order:
            order.append(module)

    handles = [m.register_forward_pre_hook(note) for m in candidates]
    try:
        with torch.no_grad():
            sub.run(example)
    finally:
        for handle in handles:
            handle.remove()
    return [Unit(candidates[m] or type(m).__name__, m) for m in order]


class _UnitSeenError(Exception):
    """Ends a forward pass once the unit has been seen."""


@dataclass(frozen=True)
class Seen:
    """The arguments and the output of a unit's calls, with images along dim 0 of every tensor."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor

    def images(self, index: Tensor) -> Seen:
        """The same for the images of `index` only."""
        count = self.output.shape[0]

        def pick(value: Any) -> Any:
            is_batch = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == count
            return value[index] if is_batch else value

        args = tuple(pick(a) for a in self.args)
        return Seen(args, {k: pick(v) for k, v in self.kwargs.items()}, self.output[index])


@torch.no_grad()
def capture(module: nn.Module, run: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> Seen:
    """Run each input up to `module` and record the arguments and the output of its call, joined."""
    seen: list[Seen] = []

    def keep(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        seen.append(Seen(args, kwargs, output))
        raise _UnitSeenError

    handle = module.register_forward_hook(keep, with_kwargs=True)
    try:
        for x in inputs:
            try:
                run(x)
            except _UnitSeenError:
                continue
    finally:
        handle.remove()

    def join(values: list[Any]) -> Any:
        return torch.cat(values) if isinstance(values[0], Tensor) else values[0]

    return Seen(
        tuple(join([s.args[i] for s in seen]) for i in range(len(seen[0].args))),
        {k: join([s.kwargs[k] for s in seen]) for k in seen[0].kwargs},
        torch.cat([s.output for s in seen]),
    )


class Minibatches(Sequence[tuple[Seen, Tensor]]):
    """`count` random minibatches (unit inputs, target outputs), drawn by the CPU's generator."""

    def __init__(self, seen: Seen, target: Tensor, size: int, count: int):
        self.seen, self.target = seen, target
        images = target.shape[0]
        drawn = (torch.randperm(images)[:size] for _ in range(max(1, count)))
        self.chosen = [index.to(target.device) for index in drawn]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: Any) -> Any:
        index = self.chosen[i]
        return self.seen.images(index), self.target[index]


# -- AdaRound on a unit ---------------------------------------------------------------------------


def soften(layers: Sequence[QuantizedLayer]) -> list[AdaRound]:
    """Let the weights of `layers` be rounded softly, each by its own AdaRound."""
    rounders = []
    for layer in layers:
        rounder = AdaRound(layer.weight.detach(), layer.weight_quantizer)
        parametrize.register_parametrization(layer, "weight", rounder)
        layer.weight_quantizer.phase = Phase.FLOAT
        rounders.append(rounder)
    return rounders


@contextlib.contextmanager
def hard(rounders: Sequence[AdaRound]) -> Iterator[None]:
    """Context: round hard. Before any training that is rounding to the nearest."""
    for rounder in rounders:
        rounder.hard = True
    try:
        yield
    finally:
        for rounder in rounders:
            rounder.hard = False


def harden(layers: Sequence[QuantizedLayer], rounders: Sequence[AdaRound]) -> None:
    """End `soften`: weights become points of the grid, which their quantizer reproduces exactly."""
    for layer, rounder in zip(layers, rounders, strict=True):
        rounder.hard = True
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        layer.weight.requires_grad_(False)
        layer.weight_quantizer.phase = Phase.QUANTIZED
