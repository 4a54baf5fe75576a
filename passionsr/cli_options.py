"""The options of the commands that take many, one class per group.

They import nothing of the library but limits: help needs them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from passionsr.inference.limits import LIMITS
from passionsr.utils.command_line import number

MODEL = Path("models/mini")
LARGEST_SEED = 2**63 - 1  # what torch takes


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceArguments:
    """The fields of inference.super_resolve.InferenceOptions, as options (a test compares them)."""

    colour_fix: Annotated[
        Literal["none", "adain", "wavelet"],
        Option(
            help="take colours over from the input, as OSEDiff does; the benchmark scores without"
        ),
    ] = "none"
    resize: Annotated[
        Literal["pad", "official"],
        Option(help="sizes the model cannot take: pad and cut off, or the released scripts' rules"),
    ] = "pad"
    process_size: Annotated[
        int, number("px; --resize official makes no smaller image", *LIMITS["process_size"])
    ] = 512
    latent_tile: Annotated[
        int | None, number("side of the UNet's tiles, in latents", *LIMITS["latent_tile"])
    ] = None
    latent_overlap: Annotated[
        int, number("overlap of the UNet's tiles, in latents", *LIMITS["latent_overlap"])
    ] = 32
    encoder_tile: Annotated[
        int | None, number("side of the VAE encoder's tiles, px", *LIMITS["encoder_tile"])
    ] = None
    decoder_tile: Annotated[
        int | None, number("side of the VAE decoder's tiles, in latents", *LIMITS["decoder_tile"])
    ] = None
    tile_norm: Annotated[
        Literal["pooled", "official"],
        Option(help="group norms of a tiled VAE: over the whole image, or the released average"),
    ] = "pooled"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeArguments:
    """What `quantize` does, and to what."""

    method: Annotated[str, Option(help="a name of the registry of methods, such as passionsr")]
    scheme: Annotated[str, Option(help="bits of weights and activations, such as W6A6")]
    calibration: Annotated[Path, Option(help="folder of LR PNG images of one size")]
    model: Annotated[Path, Option(help="folder of the float model")] = MODEL
    scope: Annotated[
        Literal["U", "UV"], Option(help="quantize the UNet, or the UNet and the VAE")
    ] = "UV"
    methods: Annotated[
        Path | None,
        Option(
            help="registry of methods; default: config/methods.yaml, "
            "or where there is none the one that comes with passionsr"
        ),
    ] = None
    seed: Annotated[
        int, number("of the order of images and of all random numbers", 0, LARGEST_SEED)
    ] = 0
