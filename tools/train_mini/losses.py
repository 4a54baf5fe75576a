"""The loss of every stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passionsr.metrics.weights import ensure_weights, use_private_hub
from passionsr.models.one_step import OneStepSR
from train_mini.recipe import IDENTITY_STEPS


class PerceptualLoss(nn.Module):
    """LPIPS (AlexNet) on images in [0, 1], mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        ensure_weights()
        use_private_hub()
        import pyiqa

        self.lpips = pyiqa.create_metric("lpips", as_loss=True, device="cpu").requires_grad_(False)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of (N, 3, H, W) images."""
        return self.lpips(image, target)


def chroma_means(image: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 2, H/4, W/4): red - green and blue - green, mean of 4 x 4 pixels."""
    red, green, blue = F.avg_pool2d(image, 4).unbind(1)
    return torch.stack([red - green, blue - green], 1)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of the terms of `image_loss`, beside the L1 of pixels with weight 1."""

    perception: float = 0.5
    colour: float = 0.0
    chroma: float = 0.0


PLAIN = Weights()


def image_loss(image: Tensor, hr: Tensor, lpips: nn.Module, weights: Weights) -> Tensor:
    """L1 + perception * LPIPS + colour * L1 of 8 x 8 pixel means + chroma * L1 of chroma_means.

    image, hr: (N, 3, H, W) in [0, 1].
    """
    loss = F.l1_loss(image, hr) + weights.perception * lpips(image, hr)
    if weights.chroma:
        loss = loss + weights.chroma * F.l1_loss(chroma_means(image), chroma_means(hr))
    if weights.colour:
        loss = loss + weights.colour * F.l1_loss(F.avg_pool2d(image, 8), F.avg_pool2d(hr, 8))
    return loss


def autoencoder_loss(
    model: OneStepSR,
    up: Tensor,
    hr: Tensor,
    lpips: nn.Module,
    step: int,
    weights: Weights = PLAIN,
    anchor: float = 0.0,
) -> Tensor:
    """image_loss + 1e-6 KL + anchor * L1(latents 2 and 3, 5 x chroma); KL summed per image, as LDM.

    LDM: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022.
    """
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.vae.encode(hr * 2 - 1).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step))
        latent = posterior.mean + posterior.std * noise
        image = model.vae.decode(latent).sample.float() * 0.5 + 0.5
    kl = posterior.kl().float().mean()
    loss = image_loss(image, hr, lpips, weights) + 1e-6 * kl
    if anchor:
        # 5: the chroma of photographs has a standard deviation of about 0.2
        loss = loss + anchor * F.l1_loss(posterior.mean[:, 2:].float(), 5 * chroma_means(hr))
    return loss


def latent_loss(model: OneStepSR, up: Tensor, hr: Tensor, lpips: nn.Module, step: int) -> Tensor:
    """x0-space MSE: towards z itself at first, then towards the HR latent."""
    with torch.no_grad():
        z = model.encode(up)
        target = z if step < IDENTITY_STEPS else model.encode(hr)
    return F.mse_loss(model.denoise(z), target)


def super_resolved(model: OneStepSR, up: Tensor) -> Tensor:
    """The whole model, UNet and encoder in float32, the frozen decoder in bfloat16."""
    x0 = model.denoise(model.encode(up))
    with torch.autocast("cpu", torch.bfloat16):
        image = model.decode(x0)
    return image.float()


def sr_loss(
    model: OneStepSR,
    up: Tensor,
    hr: Tensor,
    lpips: nn.Module,
    step: int,
    weights: Weights = PLAIN,
) -> Tensor:
    """image_loss behind the frozen decoder."""
    return image_loss(super_resolved(model, up), hr, lpips, weights)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "autoencoder": autoencoder_loss,
    "latent": latent_loss,
    "sr": sr_loss,
    "sr_decay": sr_loss,
    "sr_balance": partial(sr_loss, weights=Weights(perception=0.12, colour=1.0)),
    "sr_fidelity": partial(sr_loss, weights=Weights(perception=0.03, colour=1.0)),
    "sr_large": partial(sr_loss, weights=Weights(perception=0.12, colour=2.0)),
    "colour_autoencoder": partial(autoencoder_loss, weights=Weights(perception=0.25, colour=1.0)),
    "chroma_autoencoder": partial(
        autoencoder_loss, weights=Weights(perception=0.25, chroma=1.0), anchor=0.2
    ),
    "chroma_polish": partial(
        autoencoder_loss, weights=Weights(perception=0.25, colour=1.0, chroma=1.0)
    ),
    "chroma_latent": latent_loss,
    "chroma_sr": partial(sr_loss, weights=Weights(perception=0.25, colour=1.0, chroma=0.5)),
    "chroma_large": partial(sr_loss, weights=Weights(perception=0.2, colour=2.0, chroma=0.5)),
}
