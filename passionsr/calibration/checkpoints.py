"""Calibration that survives a kill: the result of every finished stage is kept until the run is done.

A stage (a fit, a range pass) is a call of `checkpointed`. A restarted calibration makes the same calls in the same order; those
that an earlier attempt finished get their tensors, their log rows and the random state from disk instead of work, so
the final artifact has the bytes of an undisturbed run. Outside `resumable` nothing is kept.

One safetensors file per stage, written atomically. It is used only if everything that the result depends on is the same:
the key (sources, configuration, weights, calibration data, machine), the stage's name and what it starts from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from passionsr.quantization.quantizer import Quantizer
from passionsr.utils.files import atomic_path

log = logging.getLogger(__name__)


def hash_tensors(digest: Any, tensors: Iterable[Tensor | None]) -> None:
    """Feed shapes, types and bytes of `tensors` to a hashlib object."""
    for tensor in tensors:
        if tensor is None:
            digest.update(b"none")
            continue
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{flat.dtype}{tuple(flat.shape)}".encode())
        digest.update(flat.flatten().view(torch.uint8).numpy())


def calibration_key(
    run_digest: str, code: str, model: nn.Module, tensors: Iterable[Tensor | None]
) -> str:
    """Digest of all that a calibration depends on.

    run_digest: of the configuration; code: of the sources (`code_digest`); model: the float model; tensors: calibration data.
    Besides these, torch's and numba's versions and the kind of CPU, because another one may choose other kernels.
    """
    digest = hashlib.sha256(f"{run_digest} {code}".encode())
    # Both decide in which order numbers are summed.
    versions = torch.__version__, version("numba")
    machine = (*versions, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    digest.update(repr(machine).encode())
    hash_tensors(digest, model.state_dict().values())
    hash_tensors(digest, tensors)
    return digest.hexdigest()


def _random_states() -> dict[str, Tensor]:
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


class _Finished:
    """The stages of one calibration on disk."""

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key
        self.count = 0
        self.model: nn.Module | None = None

    def _stale_scales(self) -> dict[str, Quantizer]:
        """Quantizers, the one kind of module whose forward pass changes it (the form INT_ZP_STALE)."""
        if self.model is None:
            return {}
        return {n: m for n, m in self.model.named_modules() if isinstance(m, Quantizer)}

    def start_of(self, stage: str, tensors: Sequence[Tensor]) -> str:
        digest = hashlib.sha256(f"{self.key} {self.count} {stage}".encode())
        hash_tensors(digest, [*tensors, *_random_states().values()])
        return digest.hexdigest()

    def path(self) -> Path:
        return self.folder / f"{self.count:05d}.safetensors"

    def restore(self, start: str, tensors: Sequence[Tensor]) -> Any:
        """Put a finished stage's result into `tensors`; its notes, or None if there is none that fits."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path(), "pt") as stream:
                about = stream.metadata()
                kept = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError):
            return None
        digest = hashlib.sha256()
        hash_tensors(digest, (kept[name] for name in sorted(kept)))
        if about.get("start") != start or about.get("result") != digest.hexdigest():
            return None
        with torch.no_grad():
            for index, tensor in enumerate(tensors):
                tensor.copy_(kept[f"tensor.{index}"])
        for name, quantizer in self._stale_scales().items():
            quantizer._previous_scale = kept.get(f"stale.{name}")
        torch.set_rng_state(kept["random.cpu"])
        if "random.cuda" in kept:
            torch.cuda.set_rng_state(kept["random.cuda"])
        return json.loads(about["notes"])

    def keep(self, stage: str, start: str, tensors: Sequence[Tensor], notes: Any) -> None:
        """Write a stage's result; a disk that refuses it costs the resume, not the run."""
        from safetensors.torch import save_file

        result = {f"tensor.{i}": t.detach().cpu().clone() for i, t in enumerate(tensors)}
        for name, quantizer in self._stale_scales().items():
            if quantizer._previous_scale is not None:
                result[f"stale.{name}"] = quantizer._previous_scale.clone()
        result |= _random_states()
        digest = hashlib.sha256()
        hash_tensors(digest, (result[name] for name in sorted(result)))
        about = {"start": start, "result": digest.hexdigest(), "notes": json.dumps(notes)}
        try:
            with atomic_path(self.path()) as tmp:
                save_file(result, tmp, about)
        except OSError as err:
            log.warning("%s: not kept for a restart (%s)", stage, err)


_current: ContextVar[_Finished | None] = ContextVar("finished stages", default=None)


@contextlib.contextmanager
def resumable(folder: Path, key: str) -> Iterator[None]:
    """Keep the stages that end inside in `folder`, and use those that an earlier attempt left there.

    key: see `calibration_key`. The folder stays, whatever happens: `forget` it once the result is safe.
    """
    token = _current.set(_Finished(folder, key))
    try:
        yield
    finally:
        _current.reset(token)


def watch(model: nn.Module) -> None:
    """The prepared model whose stages follow: what its forward passes change is kept with them."""
    finished = _current.get()
    if finished is not None:
        finished.model = model


def forget(folder: Path) -> None:
    """Delete what `resumable` kept; the folder above it too, where it was the last."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def checkpointed(stage: str, tensors: Sequence[Tensor], work: Callable[[], Any]) -> Any:
    """Run `work`, unless an earlier attempt finished it; what it returns (JSON values).

    work: changes `tensors` in place, and nothing else that lasts but random state.
    """
    finished = _current.get()
    if finished is None:
        return work()
    start = finished.start_of(stage, tensors)
    notes = finished.restore(start, tensors)
    if notes is None:
        notes = work() or {}
        finished.keep(stage, start, tensors, notes)
    else:
        log.info("%s: finished by an earlier attempt", stage)
    finished.count += 1
    return notes
