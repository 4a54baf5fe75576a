"""How an image goes through the model: the options, their defaults and checks. No torch import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from passionsr.inference.limits import LIMITS
from passionsr.utils.checked_yaml import STRICT
from passionsr.utils.files import UserError
from passionsr.utils.limits import check_limits

Resize = Literal["pad", "official"]
TileNorm = Literal["pooled", "official"]
ColourFix = Literal["none", "adain", "wavelet"]


def _at_least(option: str) -> Any:
    return Field(ge=LIMITS[option][0])


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """How an image goes through the model; the defaults use it whole and as it is.

    These are also the keys of `inference` in a configuration, with these defaults and limits.
    Raises UserError for a value beyond its limits and for an overlap that leaves no step.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    resize: Resize = "pad"
    """Sizes that the model cannot take. `pad` reflects at the right and bottom and cuts that off
    again. `official` follows OSEDiff's test script: an LR side below process_size / scale is
    enlarged first and the output brought back; the input is squeezed to multiples of the latent
    factor, and outputs keep that size."""
    process_size: Annotated[int, _at_least("process_size")] = 512
    """With resize `official`, smaller outputs are made at this size and reduced; px."""
    latent_tile: Annotated[int, _at_least("latent_tile")] | None = None
    """Side of the UNet's square tiles, in latents; null: not tiled."""
    latent_overlap: Annotated[int, _at_least("latent_overlap")] = 32
    """Overlap of neighbouring UNet tiles, in latents; less than latent_tile."""
    encoder_tile: Annotated[int, _at_least("encoder_tile")] | None = None
    """Side of the VAE encoder's tiles, px; null: not tiled."""
    decoder_tile: Annotated[int, _at_least("decoder_tile")] | None = None
    """Side of the VAE decoder's tiles, in latents; null: not tiled."""
    tile_norm: TileNorm = "pooled"
    """Group norms of a tiled VAE: `pooled` over the whole image, so that tiles change nothing, or
    the average over tiles of OSEDiff's code (`official`)."""
    colour_fix: ColourFix = "none"
    """Colours taken over from the upscaled input, as OSEDiff does: `adain` gives the output its
    channel means and deviations, `wavelet` its low frequencies."""

    def __post_init__(self) -> None:
        for name, limits in LIMITS.items():
            value = getattr(self, name)
            if value is not None:
                check_limits(name, value, *limits)
        if self.latent_tile is not None and self.latent_overlap >= self.latent_tile:
            raise UserError(
                f"latent_overlap {self.latent_overlap}: give at least 0 and less than "
                f"latent_tile {self.latent_tile}"
            )
