"""OneStepSR: VAE encoder -> UNet at t = 999 -> x0 -> VAE decoder (OSEDiff; methods.md 1.1)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

TIMESTEP = 999
Posterior = Literal["mean", "sample"]
POSTERIORS = get_args(Posterior)
SAMPLE_SEED = 42  # of the official scripts (methods.md 1.4.9)


def alpha_bar(
    timestep: int = TIMESTEP,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    steps: int = 1000,
) -> float:
    """alphas_cumprod[timestep] of Stable Diffusion's scaled-linear schedule, in float64.

    >>> round(alpha_bar(), 8)
    0.0046601
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
    return float(torch.cumprod(1.0 - betas, 0)[timestep])


class OneStepSR(nn.Module):
    """One-step diffusion super-resolution with a constant context.

    Args:
        vae: diffusers AutoencoderKL. unet: diffusers UNet2DConditionModel, epsilon prediction.
        context: (1, tokens, dim) constant cross-attention input.
        alpha: alphas_cumprod at t = 999.

    posterior: "mean", or "sample" to draw latents as OSEDiff does at inference. The noise is the same for every
    image of one size, and it cannot be the official scripts', whose generators differ from each other.
    """

    posterior: Posterior = "mean"
    # Memory before speed, for models of the paper's size: a method may wrap this very model in place of a copy, its blocks
    # are recomputed in the backward pass and quantized weights are not kept (see quantized_copy).
    low_memory: bool = False

    def __init__(
        self, vae: nn.Module, unet: nn.Module, context: Tensor, alpha: float | None = None
    ):
        super().__init__()
        self.vae = vae
        self.unet = unet
        self.register_buffer("context", context)
        self.alpha = alpha_bar() if alpha is None else alpha
        # x0 = latent_gain * z - eps_gain * eps; 14.649 and 14.615 for SD at t = 999 (methods.md 1.1)
        self.latent_gain = 1.0 / math.sqrt(self.alpha)
        self.eps_gain = math.sqrt(1.0 - self.alpha) / math.sqrt(self.alpha)

    @property
    def scaling_factor(self) -> float:
        """Latent scale: model latents have unit variance."""
        return float(self.vae.config.scaling_factor)

    @property
    def latent_factor(self) -> int:
        """Image pixels per latent pixel and axis."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size_multiple(self) -> int:
        """Image sides must be multiples of this (latent factor times the UNet's downsampling)."""
        return self.latent_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def encode(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 4, h, w) scaled latent (methods.md 1.4.9)."""
        mean, std = self.encode_distribution(image)
        return mean if self.posterior == "mean" else self.sample(mean, std)

    def sample(self, mean: Tensor, std: Tensor) -> Tensor:
        """Mean + std * noise, the noise seeded on the CPU: the same for equal shapes, on any device."""
        generator = torch.Generator().manual_seed(SAMPLE_SEED)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        return mean + std * noise.to(mean.device)

    def encode_distribution(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the posterior, scaled, each (N, 4, h, w)."""
        posterior = self.vae.encode(image.to(self.context.device) * 2 - 1).latent_dist
        return posterior.mode() * self.scaling_factor, posterior.std * self.scaling_factor

    def predict_eps(self, latent: Tensor) -> Tensor:
        """(N, 4, h, w) -> (N, 4, h, w): the UNet at t = 999."""
        context = self.context.expand(latent.shape[0], -1, -1)
        return self.unet(latent, TIMESTEP, encoder_hidden_states=context).sample

    def x0(self, latent: Tensor, eps: Tensor) -> Tensor:
        """The one-step estimate (z - sqrt(1 - abar) eps) / sqrt(abar)."""
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
