"""Calibration batches: images and what the float model makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from passionsr.models.one_step import OneStepSR
from passionsr.utils.files import UserError, atomic_path
from passionsr.utils.finite import NonFiniteError, is_finite, where_it_begins


@dataclass(frozen=True)
class CalibrationBatch:
    """One batch of images and the float model's outputs for it.

    image: upscaled LR (N, 3, H, W) in [0, 1].
    latent, latent_std: mean and standard deviation of the posterior, scaled, (N, 4, h, w) each.
    x0: the float UNet's, (N, 4, h, w).
    output: the float decoder's image (N, 3, H, W), not clamped.
    hr: ground truth (N, 3, H, W) in [0, 1], where given.
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
    """Shuffle the images, batch them and run the float model on each batch.

    Args:
        teacher: the float model.
        images: upscaled LR (1, 3, H, W) in [0, 1] each, of one size.
        batch_size: images per batch; the last batch has the rest.
        seed: of the order of the images.
        targets: their ground truth (1, 3, H, W), for options that ask for it.
        folder: keep the batches in files there, mapped into memory: same values, read when used, on
            the CPU.
    Raises UserError if there are no images or their sizes differ, for a model of half precision,
    and if pixels or the float model's outputs are not finite.
    """
    if not images:
        raise UserError("no calibration images")
    if len({tuple(i.shape) for i in images}) > 1:
        raise UserError("calibration images differ in size; crop them to one size")
    _check_precision(teacher)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    batches: list[CalibrationBatch] = []
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        image = _pixels(images, chosen, "calibration image").to(teacher.context.device)
        latent, std = teacher.encode_distribution(image)
        x0 = teacher.denoise(latent)
        hr = None
        if targets is not None:
            hr = _pixels(targets, chosen, "ground truth of calibration image").to(image.device)
        batch = CalibrationBatch(image, latent, x0, teacher.decode(x0), std, hr)
        _check_outputs(teacher, batch)
        batches.append(batch if folder is None else _on_disk(batch, folder, len(batches)))
    return batches


def _check_precision(teacher: OneStepSR) -> None:
    """UserError for weights of half precision, in which ranges and losses overflow at 65504."""
    given = {t.dtype for t in teacher.state_dict().values() if t.is_floating_point()}
    half = sorted(str(t) for t in given - {torch.float32, torch.float64})
    if half:
        raise UserError(
            f"the float model has {', '.join(half)} weights: calibrate it in torch.float32 "
            "(model.float())"
        )


def _pixels(images: Sequence[Tensor], chosen: Sequence[int], what: str) -> Tensor:
    """The chosen images as one tensor; UserError for pixels that are not finite."""
    loaded = [images[i] for i in chosen]
    for index, image in zip(chosen, loaded, strict=True):
        if not is_finite(image):
            raise NonFiniteError(
                f"{what} {index + 1} of {len(images)} holds NaN or infinite values: "
                "give pixels in [0, 1]"
            )
    return torch.cat(loaded)


def _check_outputs(teacher: OneStepSR, batch: CalibrationBatch) -> None:
    """UserError, which says where it begins, where an output of the float model is not finite."""
    outputs = {"latent": batch.latent, "x0": batch.x0, "output image": batch.output}
    if batch.latent_std is not None:
        outputs["latent's deviation"] = batch.latent_std
    for name, tensor in outputs.items():
        if not is_finite(tensor):
            begins = where_it_begins(teacher, lambda: teacher(batch.image))
            raise NonFiniteError(
                f"the float model's {name} of the calibration images holds NaN or infinite values: "
                f"{begins}; correct that layer, or make or fetch the model again"
            )


def _on_disk(batch: CalibrationBatch, folder: Path, number: int) -> CalibrationBatch:
    """The batch with each tensor mapped from a file of its own.

    A mapping begins at a page of memory, so kernels see the alignment of ordinary tensors.
    """

    def mapped(name: str, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        path = folder / f"{number:05d}.{name}"
        with atomic_path(path) as tmp:
            tensor.cpu().contiguous().numpy().tofile(tmp)
        flat = torch.from_file(str(path), shared=False, size=tensor.numel(), dtype=tensor.dtype)
        return flat.view(tensor.shape)

    files: dict[str, Any] = {name: mapped(name, t) for name, t in vars(batch).items()}
    return CalibrationBatch(**files)
