"""Embedded test and calibration sets: lists in git -> HR / LR images, deterministic to the byte."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image

from passionsr.datasets import ImagePair
from passionsr.degrade import degrade, rng_for
from passionsr.files import UserError
from passionsr.images import SCALE, read_uint8, write_uint8


@dataclass(frozen=True)
class Crop:
    """One row of a data list.

    source: "skimage:<file>" (comes with scikit-image) or a PNG path relative to the list.
    photo: the photograph it was cut from, which keeps the sets disjoint. hr_sha256, lr_sha256: of the
    raw uint8 pixels, so that a change anywhere (library, rule, file) is noticed.
    """

    name: str
    source: str
    photo: str
    x: int
    y: int
    size: int
    hr_sha256: str
    lr_sha256: str


def pixels_sha256(array: np.ndarray) -> str:
    """Hex sha256 of shape and raw bytes."""
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()


def read_list(path: str | Path) -> list[Crop]:
    """Read a tab-separated data list; UserError for a missing file, wrong columns or repeated names."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: data list not found")
    with path.open(newline="") as stream:
        rows = list(csv.DictReader((s for s in stream if not s.startswith("#")), delimiter="\t"))
    names = [f.name for f in fields(Crop)]
    if not rows or list(rows[0]) != names:
        raise UserError(f"{path}: expected tab-separated columns {', '.join(names)}")
    crops = [
        Crop(**{**row, **{k: int(row[k]) for k in ("x", "y", "size")}})  # type: ignore[arg-type]
        for row in rows
    ]
    if len({c.name for c in crops}) != len(crops):
        raise UserError(f"{path}: a name stands twice")
    return crops


def _skimage_file(name: str) -> Path:
    import skimage

    return Path(skimage.__file__).parent / "data" / name


def read_hr(crop: Crop, base: Path) -> np.ndarray:
    """Cut the HR crop out of its source: (size, size, 3) uint8."""
    kind, _, name = crop.source.partition(":")
    if kind == "skimage":
        with Image.open(_skimage_file(name)) as image:
            photo = np.asarray(image.convert("RGB"))
    else:
        photo = read_uint8(base / crop.source)
    hr = photo[crop.y : crop.y + crop.size, crop.x : crop.x + crop.size]
    if hr.shape != (crop.size, crop.size, 3):
        raise UserError(f"{crop.name}: the crop leaves its {photo.shape[1]}x{photo.shape[0]} photo")
    return hr


def make_pair(crop: Crop, base: Path) -> tuple[np.ndarray, np.ndarray]:
    """(HR, LR) uint8 of one row; the degradation is drawn from the crop's name."""
    hr = read_hr(crop, base)
    return hr, degrade(hr, rng_for("degrade", crop.name))


def write_pairs(
    list_path: str | Path, folder: str | Path, limit: int | None = None
) -> list[ImagePair]:
    """Write folder/HR/<name>.png and folder/LR/<name>.png for every row, checked against its hashes.

    limit: only the first rows.

    Raises UserError naming the first row whose pixels differ from the list.
    """
    list_path, folder = Path(list_path), Path(folder)
    for crop in read_list(list_path)[:limit]:
        hr, lr = make_pair(crop, list_path.parent)
        for kind, array, expected in (("HR", hr, crop.hr_sha256), ("LR", lr, crop.lr_sha256)):
            if pixels_sha256(array) != expected:
                raise UserError(
                    f"{crop.name}: {kind} pixels differ from {list_path} "
                    f"({pixels_sha256(array)[:12]}, expected {expected[:12]}); use the locked environment"
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


def read_pair(pair: ImagePair) -> tuple[np.ndarray, np.ndarray]:
    """(LR, HR) uint8; UserError if HR is not SCALE times LR."""
    lr, hr = read_uint8(pair.lr), read_uint8(pair.hr)
    if hr.shape[:2] != (lr.shape[0] * SCALE, lr.shape[1] * SCALE):
        raise UserError(
            f"{pair.name}: LR is {lr.shape[1]}x{lr.shape[0]} and HR {hr.shape[1]}x{hr.shape[0]}, "
            f"expected HR = {SCALE} x LR"
        )
    return lr, hr
