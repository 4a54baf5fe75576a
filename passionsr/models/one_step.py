"""OneStepSR: VAE encoder -> UNet at one timestep -> x0 -> VAE decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from passionsr.models.family import Family

Posterior = Literal["mean", "sample"]
SAMPLE_SEED = 42  # as in OSEDiff's released inference script


class OneStepSR(nn.Module):
    """One-step diffusion super-resolution with a constant context.

    Args:
        vae: diffusers AutoencoderKL.
        unet: diffusers UNet2DConditionModel.
        context: (1, tokens, dim) constant cross-attention input.
        family: gives the timestep, the x0 rule, the upscaling factor and the names of the parts.
        alpha: alphas_cumprod at the timestep; None for the family's.

    Networks of other classes: inherit this class and override `encode_distribution`, `predict_eps`,
    `decode` and the properties that read a configuration.
    """

    # "mean", or "sample" to draw latents as OSEDiff does at inference. The noise is the same for
    # every image of one size, and it cannot be the released scripts', which draw it on the GPU.
    posterior: Posterior = "mean"
    # Memory before speed, for models of the paper's size: a method may quantize this very model in
    # place of a copy, its blocks are recomputed in the backward pass, and quantized weights are not
    # kept between forwards (see methods.base.quantized_copy).
    low_memory: bool = False
    context: Tensor

    def __init__(
        self,
        vae: Any,
        unet: Any,
        context: Tensor,
        *,
        family: Family,
        alpha: float | None = None,
    ):
        super().__init__()
        self.vae = vae
        self.unet = unet
        self.register_buffer("context", context)
        self.family = family
        self.alpha = family.alpha() if alpha is None else alpha
        self.latent_gain, self.eps_gain = family.x0_gains(self.alpha)

    @property
    def scaling_factor(self) -> float:
        """Latent scale: model latents have unit variance."""
        return float(self.vae.config.scaling_factor)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.unet.config.in_channels)

    @property
    def latent_factor(self) -> int:
        """Image pixels per latent pixel and axis."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size_multiple(self) -> int:
        """Image sides must be multiples of this (latent factor times the UNet's downsampling)."""
        return self.latent_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def encode(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 4, h, w) scaled latent: the mean, or a sample."""
        mean, std = self.encode_distribution(image)
        return mean if self.posterior == "mean" else self.sample(mean, std)

    def sample(self, mean: Tensor, std: Tensor) -> Tensor:
        """Mean + std * noise; noise seeded on the CPU: the same for equal shapes, on any device."""
        generator = torch.Generator().manual_seed(SAMPLE_SEED)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        return mean + std * noise.to(mean.device)

    def encode_distribution(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior, scaled, each (N, 4, h, w)."""
        posterior = self.vae.encode(image.to(self.context.device) * 2 - 1).latent_dist
        return posterior.mode() * self.scaling_factor, posterior.std * self.scaling_factor

    def predict_eps(self, latent: Tensor) -> Tensor:
        """(N, 4, h, w) -> (N, 4, h, w): the UNet's output, in most families the noise eps."""
        context = self.context.expand(latent.shape[0], -1, -1)
        return self.unet(latent, self.family.timestep, encoder_hidden_states=context).sample

    def x0(self, latent: Tensor, eps: Tensor) -> Tensor:
        """The one-step estimate from the UNet's output, by the family's rule (`x0_gains`)."""
        return self.latent_gain * latent - self.eps_gain * eps

    def denoise(self, latent: Tensor) -> Tensor:
        """(N, 4, h, w) -> x0 (N, 4, h, w)."""
        return self.x0(latent, self.predict_eps(latent))

    def decode(self, latent: Tensor) -> Tensor:
        """(N, 4, h, w) scaled latent -> (N, 3, H, W) in [0, 1] units, not clamped."""
        return self.vae.decode(latent / self.scaling_factor).sample * 0.5 + 0.5

    def forward(self, image: Tensor) -> Tensor:
        """Upscaled LR (N, 3, H, W) in [0, 1] -> SR (N, 3, H, W), clamped to [0, 1]."""
        return self.decode(self.denoise(self.encode(image))).clamp(0, 1)
