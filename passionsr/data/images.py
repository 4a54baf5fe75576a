"""Image files <-> arrays and tensors: the only place that reads or writes one, and knows uint8.

What a file must be is one rule for every reader; docs/guides/own-data.md has it as a table.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

from passionsr.utils.files import UserError, atomic_path
from passionsr.utils.finite import NonFiniteError, is_finite
from passionsr.utils.outputs import check_suffix

if TYPE_CHECKING:  # torch takes seconds to import; the jobs data, tables and figures do without
    from torch import Tensor

# Where Pillow says how deep the samples of a file are; of other formats it makes 8 bits unseen.
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "WEBP", "BMP", "PPM")
MAX_PIXELS = 178_956_970  # Pillow's limit for a file of others; 512 MiB of RGB
# Pillow's names of what files hold, for those that lose nothing as 8-bit RGB: BMP has a byte of
# padding or 5 bits a channel, TIFF may have a plane per channel.
_EIGHT_BIT_RGB = {"RGB", "RGB;R", "BGR", "BGRX", "XBGR", "BGR;15", "BGR;16", "R", "G", "B"}
# EXIF orientation -> what brings the image upright; ImageOps.exif_transpose does the same, but
# writes the EXIF data anew, which fails where they are damaged.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# -- reading ------------------------------------------------------------------------------------


def check_image_file(path: Path) -> None:
    """UserError unless a file with something in it is there."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected an image file")
    if not path.exists():
        raise UserError(f"{path}: image not found")
    if not path.is_file():
        raise UserError(f"{path}: is no regular file, expected an image file")
    if not path.stat().st_size:
        raise UserError(f"{path}: the file is empty, expected an image; make or fetch it again")


def _more_than_rgb(image: Image.Image) -> str | None:
    """In words, what the file holds and 8-bit RGB would lose; None if there is nothing."""
    if image.mode != "RGB":
        return f"image mode is {image.mode}"
    for tile in getattr(image, "tile", ()):
        stored, *rest = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if tile.codec_name.startswith("ppm") and rest != [255]:
            return f"the largest value is {rest[0]} instead of 255"
        if stored not in _EIGHT_BIT_RGB:
            deep = ";16" in str(stored)
            return "a channel has 16 bits" if deep else f"the channels are {stored}"
    if "transparency" in image.info:
        return "one colour is transparent (tRNS)"
    return None


def _problem(image: Image.Image) -> str | None:
    """What keeps an opened file from being one 8-bit RGB image; None if nothing does."""
    if image.format not in FORMATS:
        return f"is a {image.format} file, expected PNG, JPEG, TIFF, WebP, BMP or PPM; convert it"
    width, height = image.size
    if width * height > MAX_PIXELS:
        most = MAX_PIXELS // 10**6
        return f"{width}x{height} px are more than {most} megapixels; cut it into parts"
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        return (
            f"holds {frames} images (frames or pages), expected one; save the one that is meant "
            "as a file of its own"
        )
    found = _more_than_rgb(image)
    return found and f"{found}, expected 8-bit RGB without alpha; convert it first"


def _upright(image: Image.Image) -> Image.Image:
    """A loaded image as its EXIF or XMP orientation says; as it is where that cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data fail anywhere in Pillow's readers
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The file, opened without Pillow's own limit and warnings: `_problem` says it in one line."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def read_uint8(path: str | Path) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8, upright as its EXIF orientation says.

    Raises UserError for a missing, unreadable or truncated file and for one that is more or less
    than one 8-bit RGB image: grey, palette, alpha, a transparent colour, 16 bits, several frames.
    Silently converting any of them would change what the metrics measure.
    """
    path = Path(path)
    check_image_file(path)
    try:
        with _opened(path) as image:
            problem = _problem(image)
            if problem is None:
                image.load()
                return np.asarray(_upright(image))
    except Exception as err:  # whatever a damaged file leads Pillow's readers to
        if isinstance(err, OSError) and err.errno is not None:
            raise UserError(f"{path}: cannot be read ({err.strerror})") from None
        raise UserError(
            f"{path}: cannot be read as an image, perhaps truncated or of another kind ({err})"
        ) from None
    raise UserError(f"{path}: {problem}")


def colour_profile(path: str | Path) -> bytes | None:
    """The ICC profile of an image file that `read_uint8` takes; None if it has none."""
    with _opened(Path(path)) as image:
        return image.info.get("icc_profile")


# -- writing ------------------------------------------------------------------------------------


def check_png_name(path: Path) -> None:
    """UserError unless the name says what is written: PNG."""
    check_suffix(path, ".png", "images are written as PNG")


def write_uint8(path: str | Path, array: np.ndarray, profile: bytes | None = None) -> None:
    """Write (H, W, 3) uint8 as PNG, atomically; profile: ICC, of the image that it comes from.

    Raises UserError for a name that does not end in .png.
    """
    check_png_name(Path(path))
    with atomic_path(path) as tmp:
        Image.fromarray(array).save(tmp, format="PNG", icc_profile=profile)


# -- tensors ------------------------------------------------------------------------------------


def to_tensor(array: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [0, 1]."""
    import torch

    return torch.from_numpy(array.copy()).permute(2, 0, 1).unsqueeze(0).float().div(255)


def to_uint8(image: Tensor) -> np.ndarray:
    """(1, 3, H, W) float in [0, 1] -> (H, W, 3) uint8 by truncation, as OSEDiff's code does.

    Raises UserError if the image holds NaN or infinity: the model or its input is broken.
    """
    if not is_finite(image):
        raise NonFiniteError(
            "the output image holds NaN or infinite values; check the model's weights"
        )
    return image[0].clamp(0, 1).mul(255).byte().permute(1, 2, 0).cpu().numpy()


def upscale(lr: np.ndarray, scale: int) -> np.ndarray:
    """(h, w, 3) -> (scale*h, scale*w, 3) uint8 by PIL bicubic: the model's input."""
    height, width = lr.shape[:2]
    size = (width * scale, height * scale)
    return np.asarray(Image.fromarray(lr).resize(size, Image.Resampling.BICUBIC))
