"""super_resolve: LR array in, SR array out, at any size."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from passionsr.data.images import to_tensor, to_uint8, upscale
from passionsr.inference.colour import fix_colour
from passionsr.inference.options import InferenceOptions
from passionsr.inference.tiling import blended_eps, decode_tiled, encode_tiled
from passionsr.models.one_step import OneStepSR
from passionsr.utils.files import UserError

WHOLE = InferenceOptions()


def model_input(lr: np.ndarray, scale: int, multiple: int, options: InferenceOptions) -> np.ndarray:
    """(h, w, 3) uint8 -> upscaled input by the "official" rules, sides multiples of `multiple`."""
    height, width = lr.shape[:2]
    least = options.process_size // scale
    if min(width, height) < least:
        enlarge = least / min(width, height)
        # int() of the product, as released
        size = (int(enlarge * width), int(enlarge * height))
        lr = np.asarray(Image.fromarray(lr).resize(size, Image.Resampling.BICUBIC))
    image = upscale(lr, scale)
    height, width = (side - side % multiple for side in image.shape[:2])
    if not height or not width:
        raise UserError(
            f"image of {image.shape[1]}x{image.shape[0]} px is smaller than the {multiple} px that "
            "the model can take; give a larger process size, or resize `pad`"
        )
    if (height, width) != image.shape[:2]:
        squeezed = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
        image = np.asarray(squeezed)
    return image


def _latent(model: OneStepSR, image: np.ndarray, options: InferenceOptions) -> Tensor:
    if options.encoder_tile is None:
        return model.encode(to_tensor(image))
    mean, std = encode_tiled(model, image, options.encoder_tile, options.tile_norm)
    return model.sample(mean, std) if model.posterior == "sample" else mean


def _output(model: OneStepSR, image: np.ndarray, options: InferenceOptions) -> np.ndarray:
    """(H, W, 3) uint8 input -> output of its size; sides are multiples of what the model takes.

    Not by the model's own forward pass: that clamps, which makes infinity look like white.
    """
    latent = _latent(model, image, options)
    if options.latent_tile is None:
        eps = model.predict_eps(latent)
    else:
        eps = blended_eps(model.predict_eps, latent, options.latent_tile, options.latent_overlap)
    x0 = model.x0(latent, eps)
    if options.decoder_tile is None:
        return to_uint8(model.decode(x0))
    out = np.empty_like(image)

    def emit(y: int, x: int, part: Tensor) -> None:
        out[y : y + part.shape[2], x : x + part.shape[3]] = to_uint8(part)

    decode_tiled(model, x0, options.decoder_tile, options.tile_norm, emit)
    return out


@torch.no_grad()
def super_resolve(
    model: OneStepSR, lr: np.ndarray, options: InferenceOptions = WHOLE
) -> np.ndarray:
    """(h, w, 3) uint8 -> (s h, s w, 3) uint8 by bicubic upscaling, the model, truncation to 8 bits.

    s is the scale of the model's family, 4 for OSEDiff. With resize "official", sides of the output
    that are no multiple of the latent factor are cut down to one.
    """
    scale = model.family.scale
    height, width = (side * scale for side in lr.shape[:2])
    if options.resize == "official":
        image = model_input(lr, scale, model.latent_factor, options)
        out = fix_colour(_output(model, image, options), image, options.colour_fix)
        if min(lr.shape[:2]) < options.process_size // scale:
            resized = Image.fromarray(out).resize((width, height), Image.Resampling.BICUBIC)
            out = np.asarray(resized)
        return out
    image = upscale(lr, scale)
    multiple = model.size_multiple
    if height % multiple or width % multiple:
        pads = ((0, -height % multiple), (0, -width % multiple), (0, 0))
        image = np.pad(image, pads, mode="reflect")
    out = _output(model, image, options)[:height, :width]
    return fix_colour(out, image[:height, :width], options.colour_fix)
