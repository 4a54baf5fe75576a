"""Calibration that survives a kill: the result of each finished part is kept until the run is done.

A part is a fit stage or a range pass. A method hands its `Checkpoints` to every part;
`NoCheckpoints` keeps nothing. A restarted calibration runs the same parts in the same order. Those
that an earlier attempt finished get their tensors, their log rows and the random state from disk
instead of doing their work again, so the final artifact has the bytes of an undisturbed run.

There is one safetensors file per part, written atomically. It is used only if everything that the
result depends on is the same: the key (sources, configuration, weights, calibration data, machine),
the part's name and the tensors and random state that it starts from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from passionsr.utils.files import atomic_path

log = logging.getLogger(__name__)


class Checkpoints(Protocol):
    """Runs the parts of a calibration, and may keep their results."""

    def run(self, part: str, tensors: Sequence[Tensor], work: Callable[[], Any]) -> Any:
        """Do `work`, or restore its result where an earlier attempt finished it.

        part: its name, such as "unet.let". tensors: everything lasting that `work` changes, in
        place; besides these it may only draw random numbers. work: returns JSON values, which are
        kept and returned, too.
        """
        ...


class NoCheckpoints:
    """Keeps nothing: every part does its work."""

    def run(self, part: str, tensors: Sequence[Tensor], work: Callable[[], Any]) -> Any:
        """What `work` returns."""
        return work()


class SavedCheckpoints:
    """Keeps a calibration's parts in a folder, and uses those that an earlier attempt left there.

    folder: stays, whatever happens; `forget` it once the artifact is safe. key: see
        `calibration_key`.
    """

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key
        self.count = 0  # parts of this attempt so far

    def run(self, part: str, tensors: Sequence[Tensor], work: Callable[[], Any]) -> Any:
        """See `Checkpoints.run`; None becomes an empty dict."""
        start = self._digest_of_start(part, tensors)
        notes = self._restore(start, tensors)
        if notes is None:
            notes = work() or {}
            self._keep(part, start, tensors, notes)
        else:
            log.info("%s: finished by an earlier attempt", part)
        self.count += 1
        return notes

    def _path(self) -> Path:
        return self.folder / f"{self.count:05d}.safetensors"

    def _digest_of_start(self, part: str, tensors: Sequence[Tensor]) -> str:
        digest = hashlib.sha256(f"{self.key} {self.count} {part}".encode())
        hash_tensors(digest, [*tensors, *_random_states().values()])
        return digest.hexdigest()

    def _restore(self, start: str, tensors: Sequence[Tensor]) -> Any:
        """Put a finished part's result into `tensors`; its notes, or None if no file fits."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path(), "pt") as stream:
                about = stream.metadata()
                kept = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return None
        if about.get("start") != start or about.get("result") != _digest_by_name(kept):
            return None
        with torch.no_grad():
            for index, tensor in enumerate(tensors):
                tensor.copy_(kept[f"tensor.{index}"])
        torch.set_rng_state(kept["random.cpu"])
        if "random.cuda" in kept:
            torch.cuda.set_rng_state(kept["random.cuda"])
        return json.loads(about["notes"])

    def _keep(self, part: str, start: str, tensors: Sequence[Tensor], notes: Any) -> None:
        """Write a part's result; a disk that refuses it costs the resume, not the run."""
        from safetensors.torch import save_file

        result = {f"tensor.{i}": t.detach().cpu().clone() for i, t in enumerate(tensors)}
        result |= _random_states()
        about = {"start": start, "result": _digest_by_name(result), "notes": json.dumps(notes)}
        try:
            with atomic_path(self._path()) as tmp:
                save_file(result, tmp, about)
        except OSError as err:
            log.warning("%s: not kept for a restart (%s)", part, err)


def hash_tensors(digest: Any, tensors: Iterable[Tensor | None]) -> None:
    """Feed shapes, types and bytes of `tensors` to a hashlib object."""
    for tensor in tensors:
        if tensor is None:
            digest.update(b"none")
            continue
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{flat.dtype}{tuple(flat.shape)}".encode())
        digest.update(flat.flatten().view(torch.uint8).numpy())


def _digest_by_name(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    hash_tensors(digest, (tensors[name] for name in sorted(tensors)))
    return digest.hexdigest()


def _random_states() -> dict[str, Tensor]:
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def calibration_key(
    run_digest: str, code: str, model: nn.Module, tensors: Iterable[Tensor | None]
) -> str:
    """Digest of all that a calibration depends on.

    run_digest: of the configuration. code: of the sources (`code_digest`). model: the float model.
    tensors: the calibration data. Torch's and numba's versions, the kind of CPU and the GPU that
    the model is on are included, because another one may choose other kernels.
    """
    digest = hashlib.sha256(f"{run_digest} {code}".encode())
    # The CPU's capabilities and the threads decide in which order numbers are summed.
    versions = torch.__version__, version("numba")
    cpu = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    machine = (*versions, *cpu, *_gpu(next(model.parameters()).device))
    digest.update(repr(machine).encode())
    hash_tensors(digest, model.state_dict().values())
    hash_tensors(digest, tensors)
    return digest.hexdigest()


def _gpu(device: torch.device) -> tuple[Any, ...]:
    """What decides the kernels of a GPU; nothing of a CPU."""
    if device.type != "cuda":
        return ()
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    return name, capability, torch.version.cuda, torch.backends.cudnn.version()


def forget(folder: Path) -> None:
    """Delete what `SavedCheckpoints` kept; the folder above it too, where it was the last."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()
