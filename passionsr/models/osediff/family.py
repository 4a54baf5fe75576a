"""The OSEDiff family (Wu et al., NeurIPS 2024): Stable Diffusion 2.1, one step at t = 999."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passionsr.models.family import LayerSet
from passionsr.models.vae_unet import VaeUnetFamily
from passionsr.utils.files import UserError

if TYPE_CHECKING:
    from passionsr.models.one_step import OneStepSR

# Stable Diffusion's schedule: the square roots of the betas are evenly spaced.
BETA_START, BETA_END, STEPS = 0.00085, 0.012, 1000


def alpha_bar(
    timestep: int, beta_start: float = BETA_START, beta_end: float = BETA_END, steps: int = STEPS
) -> float:
    """alphas_cumprod[timestep] of Stable Diffusion's scaled-linear schedule, in float64.

    >>> round(alpha_bar(999), 8)
    0.0046601
    """
    import torch

    roots = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64, device="cpu")
    return float(torch.cumprod(1.0 - roots**2, 0)[timestep])


LAYER_SETS: dict[str, LayerSet] = {
    # PassionSR's 8-bit exceptions.
    "passionsr": {
        "unet": ("unet.time_embedding.linear_1", "unet.conv_out"),
        "vae": (
            "vae.quant_conv",
            "vae.post_quant_conv",
            "vae.encoder.conv_out",
            "vae.decoder.conv_out",
        ),
    },
    # First and last layer (LSQ), of the UNet and of the VAE's two halves.
    "first_last": {
        "unet": ("unet.conv_in", "unet.conv_out"),
        "vae": (
            "vae.encoder.conv_in",
            "vae.quant_conv",
            "vae.post_quant_conv",
            "vae.decoder.conv_out",
        ),
    },
    # First and last weight of what PTQ4DM's released code quantizes.
    "ptq4dm": {
        "unet": ("unet.time_embedding.linear_1", "unet.conv_out"),
        "vae": ("vae.encoder.conv_in", "vae.decoder.conv_out"),
    },
    "efficientdm": {
        "unet": ("unet.time_embedding.linear_*", "unet.conv_in", "unet.conv_out"),
        "vae": (
            "vae.encoder.conv_in",
            "vae.quant_conv",
            "vae.post_quant_conv",
            "vae.encoder.conv_out",
            "vae.decoder.conv_in",
            "vae.decoder.conv_out",
        ),
    },
    # Shortcut and downsampler convolutions.
    "efficientdm_float": {
        "unet": ("unet.*.conv_shortcut", "unet.*.downsamplers.0.conv"),
        "vae": ("vae.*.conv_shortcut", "vae.*.downsamplers.0.conv"),
    },
    "outputs": {"unet": ("unet.conv_out",), "vae": ("vae.decoder.conv_out",)},
}


class OSEDiff(VaeUnetFamily):
    """VAE encoder -> UNet (noise prediction) -> VAE decoder, four times the size."""

    name = "osediff"
    scale = 4
    timestep = 999
    built_in = ("tiny", "sd21-random")
    obtain = (
        "passionsr import-osediff {folder} --checkpoint osediff.pkl (docs/guides/paper-scale.md)"
    )
    layer_sets = LAYER_SETS

    def alpha(self) -> float:
        """0.0046601, of Stable Diffusion's schedule at t = 999."""
        return alpha_bar(self.timestep)

    def x0_gains(self, alpha: float) -> tuple[float, float]:
        """x0 = (z - sqrt(1 - alpha) eps) / sqrt(alpha): 14.649 and 14.615 (OSEDiff's one step)."""
        return 1.0 / math.sqrt(alpha), math.sqrt(1.0 - alpha) / math.sqrt(alpha)

    def make(self, name: str) -> OneStepSR:
        """`tiny`, the random model of the tests, or `sd21-random`, random weights at full size."""
        if name == "tiny":
            from passionsr.models.tiny import tiny_model

            return tiny_model()
        if name == "sd21-random":
            from passionsr.models.osediff.sd21 import sd21_model

            return sd21_model(seed=0)
        return super().make(name)

    def load_alpha(self, folder: Path) -> float:
        """alphas_cumprod at the timestep of scheduler/; UserError unless it predicts noise."""
        from diffusers import DDPMScheduler

        config = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True).config
        if config.prediction_type != "epsilon":
            raise UserError(
                f"{folder}/scheduler: prediction_type is {config.prediction_type}, expected epsilon"
            )
        return alpha_bar(
            self.timestep, config.beta_start, config.beta_end, config.num_train_timesteps
        )

    def save_scheduler(self, folder: Path) -> None:
        """scheduler/ with Stable Diffusion's schedule."""
        from diffusers import DDPMScheduler

        scheduler: Any = DDPMScheduler(
            num_train_timesteps=STEPS,
            beta_start=BETA_START,
            beta_end=BETA_END,
            beta_schedule="scaled_linear",
            prediction_type="epsilon",
            clip_sample=False,
        )
        scheduler.save_pretrained(folder / "scheduler")


OSEDIFF = OSEDiff()
