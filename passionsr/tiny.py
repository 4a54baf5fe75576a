"""A random model of the same types in miniature, so that tests need no weights."""

from __future__ import annotations

import torch

from passionsr.model import OneStepSR


def tiny_model(seed: int = 0) -> OneStepSR:
    """About 100 k random weights: two levels, cross-attention, shortcut convs; latent factor 4.

    Random normalisation weights and biases, so that no layer is trivially zero-centred.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.8,
    )
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=(1, 2),
        cross_attention_dim=8,
        norm_num_groups=4,
        use_linear_projection=True,
    )
    model = OneStepSR(vae, unet, torch.randn(1, 5, 8)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False)
