"""Peak memory of inference by image size, whole and in tiles: each size in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from passionsr.models.family import family_of_folder
from passionsr.utils.files import UserError
from passionsr.utils.own_code import python_path

# 64 latents as PassionSR uses; VAE tiles of the same 256 px, at the small model's 4 px per latent.
TILES: dict[str, Any] = {
    "latent_tile": 64,
    "latent_overlap": 16,
    "encoder_tile": 256,
    "decoder_tile": 64,
    "tile_norm": "pooled",
}
WHOLE_UP_TO = 512  # px; larger ones would not fit a small machine


def photo(size: int, scale: int) -> Any:
    """(size / scale, size / scale, 3) uint8: scikit-image's astronaut, mirrored to any size."""
    import numpy as np
    from skimage.data import astronaut

    side = size // scale
    picture = astronaut()
    times = -(-side // len(picture))
    return np.pad(picture, ((0, len(picture) * (times - 1)),) * 2 + ((0, 0),), mode="symmetric")[
        :side, :side
    ]


def measure(model_folder: str, size: int, options: dict[str, Any], threads: int) -> dict[str, Any]:
    """One inference in this process: seconds, peak resident MiB, and MiB before it."""
    import torch

    from passionsr.inference.super_resolve import InferenceOptions, super_resolve
    from passionsr.models.folder import load_model
    from passionsr.utils.system import peak_mib

    torch.set_num_threads(threads)
    model = load_model(model_folder)
    lr = photo(size, model.family.scale)
    before, started = peak_mib(), time.perf_counter()
    out = super_resolve(model, lr, InferenceOptions(**options))
    return {
        "seconds": time.perf_counter() - started,
        "peak": peak_mib(),
        "before": before,
        "sum": int(out.sum()),
    }


def _in_a_process(model: Path, size: int, options: dict[str, Any], threads: int) -> dict[str, Any]:
    code = (
        "import json, sys; from passionsr.benchmark.tiled_memory import measure;"
        "print(json.dumps(measure(*json.loads(sys.argv[1]))))"
    )
    arguments = json.dumps([str(model), size, options, threads])
    # Freed blocks go back to the system, so that the peak is what is needed and not what was kept.
    environment = {
        **os.environ,
        "PYTHONPATH": python_path(),
        "OMP_NUM_THREADS": str(threads),
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    result = subprocess.run(
        [sys.executable, "-c", code, arguments], capture_output=True, text=True, env=environment,
        check=False,
    )  # fmt: skip
    if result.returncode:
        raise UserError(f"{size} px: measuring failed: {(result.stderr.splitlines() or ['?'])[-1]}")
    return json.loads(result.stdout.splitlines()[-1])


def tile_report(model: Path, sizes: Sequence[int], threads: int) -> str:
    """A Markdown table over sizes: whole (where it fits) and in tiles.

    Raises UserError for a size that the model does not make, before anything is measured.
    """
    scale = family_of_folder(model).scale
    wrong = [size for size in sizes if size < scale or size % scale]
    if wrong:
        raise UserError(f"--sizes {wrong[0]}: give multiples of {scale}, the scale of the model")
    rows = []
    for size in sizes:
        ways: dict[str, dict[str, Any]] = {"whole": {}} if size <= WHOLE_UP_TO else {}
        for way, options in {**ways, "tiles": TILES}.items():
            made = _in_a_process(model, size, options, threads)
            rows.append(
                [f"{size} px", way, f"{made['peak']:.0f}", f"{made['peak'] - made['before']:.0f}",
                 f"{made['seconds']:.0f}"]
            )  # fmt: skip
    header = ["output", "", "peak MiB", "of it above the loaded model", "seconds"]
    return tabulate(rows, header, "pipe", disable_numparse=True)


def difference_report(model_folder: Path, size: int, threads: int) -> str:
    """What each kind of tile changes, compared with the whole image at a size that fits."""
    import numpy as np
    import torch

    from passionsr.inference.super_resolve import InferenceOptions, super_resolve
    from passionsr.models.folder import load_model

    torch.set_num_threads(threads)
    model = load_model(model_folder)
    lr = photo(size, model.family.scale)
    whole = super_resolve(model, lr).astype(float)
    latent = {k: TILES[k] for k in ("latent_tile", "latent_overlap")}
    vae = {k: TILES[k] for k in ("encoder_tile", "decoder_tile")}
    ways = {
        "UNet in blended latent tiles": latent,
        "VAE in tiles, pooled group norms": {**vae, "tile_norm": "pooled"},
        "VAE in tiles, official group norms": {**vae, "tile_norm": "official"},
    }
    rows = []
    for way, options in ways.items():
        error = np.abs(super_resolve(model, lr, InferenceOptions(**options)) - whole)
        mse = (error**2).mean()
        psnr = f"{10 * np.log10(255**2 / mse):.1f}" if mse else "equal"
        rows.append([way, psnr, f"{error.mean():.2f}", f"{error.max():.0f}"])
    header = [
        f"{size} px against the whole image",
        "PSNR, dB",
        "mean difference, of 255",
        "largest",
    ]
    return tabulate(rows, header, "pipe", disable_numparse=True)
