"""The jobs `reference` and `infer`.

Images of the float model, of bicubic upscaling and of quantized models.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passionsr.benchmark.config import BICUBIC, FP32, Config, Run
from passionsr.data.datasets import ImagePair, read_pair
from passionsr.data.images import upscale, write_uint8

if TYPE_CHECKING:
    from passionsr.models.one_step import OneStepSR
from passionsr.benchmark.float_model import load_float_model, to_device
from passionsr.benchmark.image_lists import write_image_lists
from passionsr.benchmark.paths import (
    image_folder,
    pairs_to_test,
    run_folder,
)
from passionsr.models.family import get_family

log = logging.getLogger(__name__)


def write_images(
    model: OneStepSR, pairs: Sequence[ImagePair], folder: Path, options: dict[str, Any]
) -> None:
    """Super-resolve every LR of `pairs` into folder/<name>.png; options: of InferenceOptions."""
    from passionsr.inference.super_resolve import InferenceOptions, super_resolve

    chosen = InferenceOptions(**options)

    for index, pair in enumerate(pairs, 1):
        lr, _ = read_pair(pair, model.family.scale)
        started = time.perf_counter()
        write_uint8(folder / f"{pair.name}.png", super_resolve(model, lr, chosen))
        log.info("%d/%d %s (%.1f s)", index, len(pairs), pair.name, time.perf_counter() - started)


def reference(config: Config) -> None:
    """Outputs of the float model, and of plain bicubic upscaling."""
    pairs = pairs_to_test(config)
    scale = get_family(config.family).scale
    for pair in pairs:
        lr, _ = read_pair(pair, scale)
        write_uint8(image_folder(config, BICUBIC) / f"{pair.name}.png", upscale(lr, scale))
    model = load_float_model(config)
    model.posterior = config.posterior
    write_images(model, pairs, image_folder(config, FP32), config.inference)
    for run_id in (BICUBIC, FP32):
        write_image_lists(config, run_id)


def infer(config: Config, run: Run) -> None:
    """Super-resolve the test set with a run's saved artifact."""
    from passionsr.quantization.artifact import load_quantized
    from passionsr.quantization.modules import keep_weights

    artifact = run_folder(config, run.run_id) / "artifact"
    model = to_device(load_quantized(artifact, get_family(config.family)), config)
    if config.low_memory:
        keep_weights(model, False)
    model.posterior = config.posterior
    write_images(model, pairs_to_test(config), image_folder(config, run.run_id), config.inference)
    write_image_lists(config, run.run_id)
