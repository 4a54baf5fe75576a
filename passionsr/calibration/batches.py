"""Calibration batches: the float teacher's view of the calibration images, with named fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from passionsr.models.one_step import OneStepSR
from passionsr.utils.files import UserError, atomic_path


@dataclass(frozen=True)
class CalibrationBatch:
    """One batch and what the float model makes of it (methods.md 2.4).

    image: upscaled LR (N, 3, H, W) in [0, 1]. latent: (N, 4, h, w) scaled posterior mean.
    x0: (N, 4, h, w) from the float UNet. output: (N, 3, H, W) decoded, not clamped. latent_std: scaled
    posterior deviation. hr: ground truth (N, 3, H, W) in [0, 1], where given.
    """

    image: Tensor
    latent: Tensor
    x0: Tensor
    output: Tensor
    latent_std: Tensor | None = None
    hr: Tensor | None = None


@torch.no_grad()
def make_batches(
    teacher: OneStepSR,
    images: Sequence[Tensor],
    batch_size: int,
    seed: int,
    targets: Sequence[Tensor] | None = None,
    folder: Path | None = None,
) -> list[CalibrationBatch]:
    """Shuffle (seeded), batch and run the float teacher once.

    Args: images: (1, 3, H, W) each, one size. targets: their ground truth, for the switches that ask for it.
        folder: keep the batches in files there, mapped into memory: same values, read when used, on the CPU.
    Raises UserError if there are none or sizes differ.
    """
    if not images:
        raise UserError("no calibration images")
    if len({tuple(i.shape) for i in images}) > 1:
        raise UserError("calibration images differ in size; crop them to one size")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    batches = []
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        image = torch.cat([images[i] for i in chosen]).to(teacher.context.device)
        latent, std = teacher.encode_distribution(image)
        x0 = teacher.denoise(latent)
        hr = None if targets is None else torch.cat([targets[i] for i in chosen]).to(image.device)
        batch = CalibrationBatch(image, latent, x0, teacher.decode(x0), std, hr)
        batches.append(batch if folder is None else _on_disk(batch, folder, len(batches)))
    return batches


def _on_disk(batch: CalibrationBatch, folder: Path, number: int) -> CalibrationBatch:
    """The batch in one file per tensor: a page of memory begins each, so kernels see the alignment of ordinary tensors."""

    def mapped(name: str, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        path = folder / f"{number:05d}.{name}"
        with atomic_path(path) as tmp:
            tensor.cpu().contiguous().numpy().tofile(tmp)
        flat = torch.from_file(str(path), shared=False, size=tensor.numel(), dtype=tensor.dtype)
        return flat.view(tensor.shape)

    return CalibrationBatch(**{name: mapped(name, t) for name, t in vars(batch).items()})
