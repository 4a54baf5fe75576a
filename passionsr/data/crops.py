"""Lists of crops in git -> HR / LR image files, deterministic to the byte."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field

from passionsr.data.datasets import (
    ImagePair,
)
from passionsr.data.degrade import degrade, rng_for
from passionsr.data.image_folders import composed
from passionsr.data.images import read_uint8, write_uint8
from passionsr.utils.checked_yaml import read_table
from passionsr.utils.files import UserError
from passionsr.utils.names import FileName, ImageName, Line, Sha256

Pixels = Annotated[int, Field(ge=1)]
Corner = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Crop:
    """One row of a data list.

    source: "skimage:<file>" (comes with scikit-image) or a PNG path relative to the list.
    photo: the photograph it was cut from, which keeps the sets disjoint. x, y, size: px of that
    photograph. hr_sha256, lr_sha256: of the raw uint8 pixels, so that a change anywhere (library,
    rule, file) is noticed.
    """

    name: ImageName
    source: Line
    photo: Line
    x: Corner
    y: Corner
    size: Pixels
    hr_sha256: Sha256
    lr_sha256: Sha256


def pixels_sha256(array: np.ndarray) -> str:
    """Hex sha256 of shape and raw bytes."""
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()


def read_list(path: str | Path) -> list[Crop]:
    """Read a tab-separated data list.

    Raises UserError for a missing file, wrong columns or values, or a repeated name.
    """
    rows = read_table(Crop, path)
    if not rows:
        raise UserError(f"{path}: expected at least one row, found none")
    lines: dict[str, tuple[int, str]] = {}
    for line, crop in rows:
        first, name = lines.setdefault(crop.name.casefold(), (line, crop.name))
        if first != line:
            same = "stands twice" if name == crop.name else f"is {name} of line {first} in capitals"
            raise UserError(f"{path} line {line}: the name {crop.name} {same}: give another")
    return [crop for _, crop in rows]


def _source_file(source: str, base: Path) -> Path:
    kind, _, name = source.partition(":")
    if kind == "skimage":
        package = importlib.util.find_spec("skimage")
        if package is None or package.origin is None:
            raise UserError(f"{source}: scikit-image is not installed")
        return Path(package.origin).parent / "data" / name
    return base / source


def check_source(crop: Crop, path: Path, scale: int) -> None:
    """UserError unless a row of the list `path` can be cut out of its source and made smaller."""
    source = _source_file(crop.source, path.parent)
    if not source.is_file():
        raise UserError(f"{path}: {crop.name}: its source {source} is not there")
    if crop.size % scale:
        raise UserError(
            f"{path}: {crop.name}: size {crop.size} is not a multiple of the model's scale {scale}"
        )
    try:
        with Image.open(source) as image:
            width, height = image.size
    except (OSError, ValueError, Image.DecompressionBombError) as err:
        raise UserError(f"{source}: cannot be read as an image ({err})") from None
    if crop.x + crop.size > width or crop.y + crop.size > height:
        raise UserError(f"{path}: {crop.name}: the crop leaves its {width}x{height} photo")


def read_hr(crop: Crop, base: Path) -> np.ndarray:
    """Cut the HR crop out of its source: (size, size, 3) uint8."""
    photo = read_uint8(_source_file(crop.source, base))
    hr = photo[crop.y : crop.y + crop.size, crop.x : crop.x + crop.size]
    if hr.shape != (crop.size, crop.size, 3):
        raise UserError(f"{crop.name}: the crop leaves its {photo.shape[1]}x{photo.shape[0]} photo")
    return hr


def make_pair(crop: Crop, base: Path, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """(HR, LR) uint8 of one row; the degradation is drawn from the crop's name."""
    hr = read_hr(crop, base)
    return hr, degrade(hr, rng_for("degrade", crop.name), scale)


def write_pairs(
    list_path: str | Path, folder: str | Path, scale: int, limit: int | None = None
) -> list[ImagePair]:
    """Write folder/{HR,LR}/<name>.png for every row, checked against its hashes.

    scale: HR pixels per LR pixel and axis, the one that the list was made with. limit: only the
    first rows.

    Raises UserError naming the first row whose pixels differ from the list.
    """
    list_path, folder = Path(list_path), Path(folder)
    for crop in read_list(list_path)[:limit]:
        hr, lr = make_pair(crop, list_path.parent, scale)
        for kind, array, expected in (("HR", hr, crop.hr_sha256), ("LR", lr, crop.lr_sha256)):
            if pixels_sha256(array) != expected:
                raise UserError(
                    f"{crop.name}: {kind} pixels differ from {list_path} "
                    f"({pixels_sha256(array)[:12]}, expected {expected[:12]}); use the locked "
                    "environment"
                )
            write_uint8(folder / kind / f"{crop.name}.png", array)
    return pairs_in(list_path, folder)[:limit]


def pairs_in(list_path: str | Path, folder: str | Path) -> list[ImagePair]:
    """The pairs that `write_pairs` writes."""
    folder = Path(folder)
    return [
        ImagePair(c.name, folder / "LR" / f"{c.name}.png", folder / "HR" / f"{c.name}.png")
        for c in read_list(list_path)
    ]


@dataclass(frozen=True)
class RelativeCrop:
    """One calibration crop. fx, fy in [0, 1): position as a share of what the crop leaves free."""

    image: FileName
    fx: Share
    fy: Share
    size: Pixels

    def corner(self, width: int, height: int) -> tuple[int, int]:
        """(x, y) in a photograph of that size; UserError if the crop does not fit."""
        if min(width, height) < self.size:
            raise UserError(f"{self.image} is {width}x{height}, smaller than the crop {self.size}")
        return int(self.fx * (width - self.size + 1)), int(self.fy * (height - self.size + 1))


CROP_COLUMNS = [f.name for f in fields(RelativeCrop)]


def draw_crops(images: Sequence[str], count: int, size: int, seed: int) -> list[RelativeCrop]:
    """`count` different photographs by a seeded draw, one crop of `size` px each.

    A crop's position is drawn from the seed and the name of its file.
    """
    order = rng_for("calibration", seed).permutation(len(images))[:count]
    crops = []
    for index in sorted(order.tolist()):
        fx, fy = rng_for("crop", seed, images[index]).random(2).round(6).tolist()
        crops.append(RelativeCrop(images[index], min(fx, 0.999999), min(fy, 0.999999), size))
    return crops


def read_crops(path: Path) -> list[RelativeCrop]:
    """Read a list of relative crops; UserError for a missing file, other columns or values."""
    crops = [crop for _, crop in read_table(RelativeCrop, path)]
    if not crops:
        raise UserError(f"{path}: expected at least one row, found none")
    return crops


def write_crops(
    crops: Sequence[RelativeCrop], photos: dict[str, Path], folder: Path, scale: int
) -> list[ImagePair]:
    """Cut HR crops, make LR by bicubic downscaling, write folder/{HR,LR}; returns the pairs.

    Raises UserError if a photograph is missing or smaller than its crop.
    """
    absent = [c.image for c in crops if composed(c.image) not in photos]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(crops)} photographs are missing, first: {absent[0]}"
        )
    pairs = []
    for crop in crops:
        name = f"{Path(crop.image).stem}.png"
        pair = ImagePair(
            f"calibration/{Path(name).stem}",
            folder / "LR" / name,
            folder / "HR" / name,
            "calibration",
        )
        pairs.append(pair)
        photo = read_uint8(photos[composed(crop.image)])
        x, y = crop.corner(photo.shape[1], photo.shape[0])
        hr = photo[y : y + crop.size, x : x + crop.size]
        small = Image.fromarray(hr).resize(
            (crop.size // scale, crop.size // scale), Image.Resampling.BICUBIC
        )
        write_uint8(pair.hr, hr)
        write_uint8(pair.lr, np.asarray(small))
    return pairs
