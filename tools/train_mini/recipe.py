"""What is trained: the untrained model, the stages in order, their steps and learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from passionsr.models.one_step import OneStepSR
from passionsr.models.tiny import SmallShape, small_model

# HR crop of a stage -> side of the crops in the pool, with room to shift; px
POOL_CROP = {64: 112, 128: 176, 256: 272}
PER_PHOTO = {64: 200, 128: 64, 256: 12}  # HR crop of a stage -> crops of each photograph


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps, batch size and peak learning rate (cosine to 1 % after a short warm-up).

    horizon: steps the schedule is made for, where a stage ends before its schedule does.
    crop: side of the HR crops in pixels. colours: vary them (see vary_colours).
    """

    steps: int
    batch: int
    lr: float
    horizon: int | None = None
    crop: int = 64
    colours: bool = False


STAGES = {
    "autoencoder": Stage(steps=4000, batch=16, lr=1.5e-3),
    "latent": Stage(steps=1200, batch=16, lr=1e-3),
    "sr": Stage(steps=400, batch=16, lr=3e-4, horizon=2400),
    "sr_decay": Stage(steps=1200, batch=16, lr=2.8e-4),
    "sr_balance": Stage(steps=480, batch=16, lr=2e-4),
    "sr_fidelity": Stage(steps=160, batch=16, lr=2e-4),
    "sr_large": Stage(steps=130, batch=2, lr=2e-4, crop=256),
    "colour_autoencoder": Stage(steps=2000, batch=4, lr=8e-4, crop=128, colours=True),
    "chroma_autoencoder": Stage(steps=1100, batch=16, lr=8e-4, colours=True),
    "chroma_polish": Stage(steps=400, batch=4, lr=3e-4, crop=128, colours=True),
    "chroma_latent": Stage(steps=700, batch=4, lr=8e-4, crop=128, colours=True),
    "chroma_sr": Stage(steps=1000, batch=6, lr=3e-4, crop=128, colours=True),
    "chroma_large": Stage(steps=200, batch=2, lr=1.5e-4, crop=256, colours=True),
}
AUTOENCODERS = ("autoencoder", "colour_autoencoder", "chroma_autoencoder", "chroma_polish")
UNET_ALONE = ("latent", "chroma_latent")
IDENTITY_STEPS = 500


def build_model(seed: int) -> OneStepSR:
    """The untrained mini model: three levels, latent factor 4."""
    shape = SmallShape(
        vae_channels=(32, 48, 64),
        unet_channels=(64, 96, 128),
        heads=(2, 3, 4),
        context=(8, 64),
        vae_groups=8,
        unet_groups=16,
    )
    return small_model(shape, seed)


def trainable(model: OneStepSR, stage: str) -> list[nn.Parameter]:
    """The parameters a stage trains; all others are frozen."""
    parts: list[nn.Module] = [model.unet, model.vae.encoder, model.vae.quant_conv]
    if stage in AUTOENCODERS:
        parts = [model.vae]
    elif stage in UNET_ALONE:
        parts = [model.unet]
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    return [p for part in parts for p in part.parameters()]


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up over 2 % of the steps, then cosine to 1 % of the peak."""
    steps = stage.horizon or stage.steps
    warm = max(1, steps // 50)
    if step < warm:
        return stage.lr * (step + 1) / warm
    phase = (step - warm) / max(1, steps - warm)
    return stage.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * phase)))
