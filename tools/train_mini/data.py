"""Photographs, the pools of crops cut from them, and the batches drawn from a pool."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from passionsr.data.degrade import degrade, rng_for
from passionsr.data.images import upscale
from passionsr.models.osediff.family import OSEDIFF
from passionsr.utils.files import atomic_path
from train_mini.recipe import AUTOENCODERS, STAGES

log = logging.getLogger("train_mini")

PHOTO_LIST = Path("config/mini_train_photos.txt")


def fetch_photos(folder: Path) -> Path:
    """Download and unpack the Debian packages of the photo list; nothing is installed."""
    packages = sorted({row[0] for row in read_photo_list()})
    root = folder / "unpacked"
    for package in packages:
        if (folder / f"{package}.done").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        (deb,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg", "-x", deb.name, root.name], cwd=folder, check=True)
        (folder / f"{package}.done").touch()
    return root


def read_photo_list(path: Path = PHOTO_LIST) -> list[tuple[str, str, int]]:
    """Rows (package, path inside it, downscale factor)."""
    rows = [line.split("\t") for line in path.read_text().splitlines() if line[:1] not in ("#", "")]
    return [(package, name, int(factor)) for package, name, factor in rows]


def load_photo(path: Path, factor: int) -> np.ndarray:
    """Decode and downscale by `factor` (removes the JPEG artefacts of the source)."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        size = (image.width // factor, image.height // factor)
        return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def build_pool(photos: Path, target: Path, side: int, per_photo: int, seed: int) -> np.ndarray:
    """(n, side, side, 3) uint8: from each photo, the more textured half of random candidates."""
    if target.exists():
        return np.load(target)
    crops = []
    for _, name, factor in read_photo_list():
        photo = load_photo(photos / name, factor)
        rng = rng_for(seed, "pool", name)
        height, width = photo.shape[:2]
        ys = rng.integers(0, height - side, 2 * per_photo)
        xs = rng.integers(0, width - side, 2 * per_photo)
        candidates = [photo[y : y + side, x : x + side] for y, x in zip(ys, xs, strict=True)]
        texture = [np.abs(np.diff(c.astype(np.float32), axis=0)).mean() for c in candidates]
        keep = np.argsort(texture)[-per_photo:]
        crops += [candidates[i] for i in sorted(keep)]
        log.info("%s: %d crops of %dx%d", Path(name).name, len(keep), width, height)
    pool = np.stack(crops)
    with atomic_path(target) as tmp:
        np.save(tmp, pool)
    return pool


def vary_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8, its channels permuted in every second image, saturation times 0.6 to 1.8.

    The photographs are mostly sky, leaves and stone: without this the decoder cannot even express a
    saturated red.
    """
    if rng.integers(2):
        image = image[:, :, rng.permutation(3)]
    luma = image.mean(2, dtype=np.float32, keepdims=True)
    varied = luma + np.float32(rng.uniform(0.6, 1.8)) * (image - luma)
    return np.rint(varied).clip(0, 255).astype(np.uint8)


def make_batch(pool: np.ndarray, stage: str, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """(upscaled LR, HR), (N, 3, crop, crop) float32 in [0, 1] each; a function of the arguments."""
    crop = STAGES[stage].crop
    rng, scale = rng_for(seed, stage, step), OSEDIFF.scale
    hrs, ups = [], []
    for index in rng.integers(0, len(pool), STAGES[stage].batch):
        hr = np.rot90(pool[index], int(rng.integers(4)))
        if rng.integers(2):
            hr = hr[:, ::-1]
        if STAGES[stage].colours:
            hr = vary_colours(hr, rng)
        y, x = rng.integers(0, (pool.shape[1] - crop) // scale + 1, 2) * scale
        window = np.s_[y : y + crop, x : x + crop]
        hrs.append(hr[window])
        if stage not in AUTOENCODERS:
            ups.append(upscale(degrade(np.ascontiguousarray(hr), rng, scale), scale)[window])

    def stack(images: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(images or hrs)).permute(0, 3, 1, 2).float().div(255)

    return stack(ups), stack(hrs)


def batches(
    pool: np.ndarray, stage: str, start: int, seed: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Batches of one stage from step `start` on, made one ahead in a thread."""
    steps = STAGES[stage].steps
    with ThreadPoolExecutor(1) as pool_thread:
        future = pool_thread.submit(make_batch, pool, stage, start, seed)
        for step in range(start, steps):
            up, hr = future.result()
            if step + 1 < steps:
                future = pool_thread.submit(make_batch, pool, stage, step + 1, seed)
            yield step, up, hr
