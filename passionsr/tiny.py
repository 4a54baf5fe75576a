"""A random model of the same types in miniature, so that tests need no weights."""

from __future__ import annotations

import torch

from passionsr.blueprint import small_model
from passionsr.model import OneStepSR


def tiny_model(seed: int = 0) -> OneStepSR:
    """About 100 k random weights: two UNet levels, latent factor 4.

    Random normalisation weights and biases, so that no layer is trivially zero-centred.
    """
    model = small_model(
        seed=seed,
        vae_channels=(8, 8, 16),
        unet_channels=(8, 16),
        heads=(1, 2),
        context=(5, 8),
        vae_groups=4,
        unet_groups=4,
        scaling_factor=0.8,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False)
