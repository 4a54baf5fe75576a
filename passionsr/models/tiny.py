"""Small models of OSEDiff's architecture, untrained; tests use `tiny_model` and need no weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from passionsr.models.family import Family
from passionsr.models.one_step import OneStepSR
from passionsr.models.osediff.family import OSEDIFF


@dataclass(frozen=True, kw_only=True)
class SmallShape:
    """Widths of a small model.

    Attributes:
        vae_channels: of the VAE's levels; the latent factor is 2^(levels - 1).
        unet_channels: of the UNet's levels.
        heads: attention heads of the UNet's levels.
        context: (tokens, dim) of the constant context.
        vae_groups: groups of the VAE's GroupNorms.
        unet_groups: groups of the UNet's GroupNorms.
        scaling_factor: latents are scaled by this to unit variance.
    """

    vae_channels: tuple[int, ...]
    unet_channels: tuple[int, ...]
    heads: tuple[int, ...]
    context: tuple[int, int]
    vae_groups: int
    unet_groups: int
    scaling_factor: float = 1.0


def small_model(shape: SmallShape, seed: int, family: Family = OSEDIFF) -> OneStepSR:
    """A random OneStepSR with Stable Diffusion's block types, one layer per block.

    The UNet has self- and cross-attention at every level but the lowest, and shortcut convolutions
    behind its skip connections.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(seed)
    levels = len(shape.vae_channels)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=shape.vae_channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=shape.vae_groups,
        scaling_factor=shape.scaling_factor,
    )
    attending = len(shape.unet_channels) - 1
    unet = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
        block_out_channels=shape.unet_channels,
        layers_per_block=1,
        attention_head_dim=shape.heads,  # diffusers reads this as the number of heads (SD 2.1)
        cross_attention_dim=shape.context[1],
        norm_num_groups=shape.unet_groups,
        use_linear_projection=True,
    )
    return OneStepSR(vae, unet, torch.randn(1, *shape.context), family=family)


TINY = SmallShape(
    vae_channels=(8, 8, 16),
    unet_channels=(8, 16),
    heads=(1, 2),
    context=(5, 8),
    vae_groups=4,
    unet_groups=4,
    scaling_factor=0.8,
)


def tiny_model(seed: int = 0) -> OneStepSR:
    """About 100 k random weights: two UNet levels, latent factor 4.

    Random normalisation weights and biases, so that no layer is trivially zero-centred.
    """
    model = small_model(TINY, seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False)
