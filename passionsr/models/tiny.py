"""Small models of OSEDiff's architecture, untrained; `tiny_model` is the random one, so that tests need no weights."""

from __future__ import annotations

import torch

from passionsr.models.one_step import OneStepSR


def small_model(
    *,
    seed: int,
    vae_channels: tuple[int, ...],
    unet_channels: tuple[int, ...],
    heads: tuple[int, ...],
    context: tuple[int, int],
    vae_groups: int,
    unet_groups: int,
    scaling_factor: float = 1.0,
) -> OneStepSR:
    """A random OneStepSR with Stable Diffusion's block types, one layer per block.

    The UNet has self- and cross-attention at every level but the lowest, and shortcut convolutions behind
    its skip connections. The latent factor is 2^(len(vae_channels) - 1).

    `heads` counts attention heads per UNet level, `context` is (tokens, dim) of the constant context,
    `vae_groups` and `unet_groups` are GroupNorm groups.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(vae_channels),
        up_block_types=("UpDecoderBlock2D",) * len(vae_channels),
        block_out_channels=vae_channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=vae_groups,
        scaling_factor=scaling_factor,
    )
    attending = len(unet_channels) - 1
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
        block_out_channels=unet_channels,
        layers_per_block=1,
        attention_head_dim=heads,  # diffusers reads this as the number of heads (as in SD 2.1)
        cross_attention_dim=context[1],
        norm_num_groups=unet_groups,
        use_linear_projection=True,
    )
    return OneStepSR(vae, unet, torch.randn(1, *context))


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
