"""Model folders <-> OneStepSR. Local files only here; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from passionsr.models.one_step import OneStepSR, alpha_bar
from passionsr.utils.files import UserError, check_sha256, read_json, sha256_file, write_json

MANIFEST = "manifest.json"


def _check_finite(module: nn.Module, name: str) -> None:
    for key, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{name}: weight {key} holds NaN or infinite values; fetch it again")


def load_model(folder: str | Path) -> OneStepSR:
    """Load `folder` (vae/, unet/, scheduler/, context.safetensors, manifest.json) in eval mode, float32.

    Every file named in manifest.json is checked against its sha256.
    Raises UserError for a missing folder or file, a wrong hash, or weights that are not finite.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder}: no model here (manifest.json is missing); give the folder of a model saved "
            "by passionsr, for example models/mini"
        )
    for name, digest in read_json(folder / MANIFEST).items():
        check_sha256(folder / name, digest)
    vae = AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    if scheduler.config.prediction_type != "epsilon":
        raise UserError(
            f"{folder}/scheduler: prediction_type is {scheduler.config.prediction_type}, expected epsilon"
        )
    config = scheduler.config
    alpha = alpha_bar(
        beta_start=config.beta_start, beta_end=config.beta_end, steps=config.num_train_timesteps
    )
    context = load_file(folder / "context.safetensors")["context"]
    model = OneStepSR(vae.float(), unet.float(), context, alpha).eval().requires_grad_(False)
    # Out of the memory-mapped file: kernels are chosen by alignment, so results would depend on it.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    _check_finite(model, str(folder))
    return model


def save_model(model: OneStepSR, folder: str | Path) -> None:
    """Write a model folder that `load_model` reads; the manifest is written last."""
    from diffusers import DDPMScheduler
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    model.vae.save_pretrained(folder / "vae", safe_serialization=True)
    model.unet.save_pretrained(folder / "unet", safe_serialization=True)
    DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
    ).save_pretrained(folder / "scheduler")
    save_file({"context": model.context.contiguous()}, folder / "context.safetensors")
    # tokenizer/ and text_encoder/ where the model keeps a prompt branch
    kept = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
    parts = [
        p for part in kept if (folder / part).is_dir() for p in sorted((folder / part).iterdir())
    ]
    names = ["context.safetensors", *(p.relative_to(folder).as_posix() for p in parts)]
    write_json(folder / MANIFEST, {name: sha256_file(folder / name) for name in names})
