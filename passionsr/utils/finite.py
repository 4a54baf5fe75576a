"""Whether numbers are finite: decided here for weights, outputs, ranges, losses and artifacts.

A float that overflows becomes infinite, and NaN one operation later; both spread to all that
follows. The doors that numbers pass ask here: a model or an artifact that is read, calibration
batches, ranges, fit stages, what one sub-model hands to the next, an artifact that is written, an
output image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from passionsr.utils.files import UserError

if TYPE_CHECKING:  # images.py needs no torch until it meets a tensor
    from torch import Tensor, nn

NAMED = 3  # tensors that a message names


class NonFiniteError(UserError, FloatingPointError):
    """NaN or infinite values where numbers must be finite; says where, and what to do."""


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor of any type and shape holds neither NaN nor infinity; meta has no values."""
    if tensor.is_meta or not tensor.is_floating_point():
        return True
    return bool(tensor.isfinite().all())


def check_finite(named: Iterable[tuple[str, Tensor]], what: str, advice: str) -> None:
    """NonFiniteError unless every tensor is finite; it names the first ones and how many there are.

    Args:
        named: (name, tensor) of all.
        what: begins the message: whose tensors these are, such as a folder.
        advice: ends it: what to do.
    """
    count, bad = 0, []
    for name, tensor in named:
        count += 1
        if not is_finite(tensor):
            bad.append(name)
    if bad:
        rest = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        verb = "holds" if len(bad) == 1 else "hold"
        raise NonFiniteError(
            f"{what}: {', '.join(bad[:NAMED])}{rest} {verb} NaN or infinite values "
            f"({len(bad)} of {count} tensors); {advice}"
        )


def where_it_begins(model: nn.Module, run: Callable[[], Any]) -> str:
    """Where NaN or infinite values begin when `run` runs `model`, as words for a message.

    The first module whose output is not finite, and the weight that is the likely cause: one that
    is not finite itself, else the one with the largest value.
    """
    first: list[str] = []

    def watch(name: str, output: Any) -> None:
        if not first and hasattr(output, "isfinite") and not is_finite(output):
            first.append(name)

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: watch(name, output))
        for name, module in model.named_modules()
        if name  # of nested modules the innermost ends first
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    begins = f"they begin in {first[0]}" if first else "no single layer makes them"
    weights = [(n, p.detach()) for n, p in model.named_parameters() if p.is_floating_point()]
    for name, weight in weights:
        if not is_finite(weight):
            return f"{begins}, and weight {name} is not finite"
    largest, name = max((float(w.abs().max()), n) for n, w in weights if w.numel())
    return f"{begins}, and the largest weight is {largest:.3g} in {name}"
