"""Upscale, quantize and score without a configuration: what the commands of these names do.

Every function reads and checks its small inputs first and imports torch afterwards, so that a wrong
path is answered at once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from passionsr.benchmark.config import MethodEntry, load_methods, parse_scheme
from passionsr.data.image_folders import images_by_name, images_in
from passionsr.data.images import (
    check_png_name,
    colour_profile,
    read_uint8,
    to_tensor,
    upscale,
    write_uint8,
)
from passionsr.metrics.registry import check_metrics, missing_note
from passionsr.models.family import family_of_folder
from passionsr.utils.defaults import default_file
from passionsr.utils.files import UserError, write_csv
from passionsr.utils.outputs import check_output_file, check_output_folder, check_suffix

if TYPE_CHECKING:
    import numpy as np

    from passionsr.models.one_step import OneStepSR
    from passionsr.quantization.swap import SwapRow

log = logging.getLogger(__name__)

BATCH_SIZE = 4  # calibration images per batch


def read_model(folder: Path) -> OneStepSR:
    """The float or quantized model in `folder`; UserError if there is none, or it is damaged.

    For a process that does nothing else: see `Family.import_networks`.
    """
    from passionsr.models.folder import load_model
    from passionsr.quantization.artifact import SCHEME, family_of_artifact, load_quantized

    quantized = (folder / SCHEME).exists()
    family = family_of_artifact(folder) if quantized else family_of_folder(folder)
    family.import_networks()
    return load_quantized(folder) if quantized else load_model(folder)


def upscale_image(
    source: Path,
    target: Path,
    model: Path,
    options: Mapping[str, Any],
    posterior: Literal["mean", "sample"] = "mean",
    prompt: str | None = None,
) -> None:
    """Super-resolve one 8-bit RGB image into a PNG of the model's scale times its size.

    The image's colour profile (ICC) goes along: the model takes its values as they are.

    Args:
        source: image file to read.
        target: PNG file to write.
        model: folder of a float or a quantized model.
        options: fields of InferenceOptions.
        posterior: "mean" or "sample" of the VAE encoder's distribution.
        prompt: text for a model with a text encoder; None takes the context saved with the model.

    Raises:
        UserError: the image or the model cannot be read, the target cannot be written, an option is
            out of its range, or there is a prompt and no text encoder.
    """
    lr, profile = read_uint8(source), colour_profile(source)
    check_png_name(target)
    check_output_file(target, [source])
    from passionsr.inference.super_resolve import InferenceOptions, super_resolve

    chosen = InferenceOptions(**options)
    loaded = read_model(model)
    loaded.posterior = posterior
    if prompt is not None:
        from passionsr.models.osediff.sd21 import embed_prompt

        loaded.context = embed_prompt(model, prompt)
    write_uint8(target, super_resolve(loaded, lr, chosen), profile)


def find_method(name: str, registry: Path | None = None) -> MethodEntry:
    """The method of that name; UserError if it is unknown.

    registry: a file like config/methods.yaml; None: see utils.defaults.default_file.
    """
    methods = load_methods(registry or default_file("methods.yaml"))
    if name not in methods:
        raise UserError(f"method {name!r} is unknown; known: {', '.join(methods)}")
    return methods[name]


def quantize_on_folder(
    model: Path,
    calibration: Path,
    output: Path,
    *,
    method: MethodEntry,
    scheme: str,
    scope: str = "UV",
    seed: int = 0,
) -> list[SwapRow]:
    """Quantize a float model with a folder of LR images and save the artifact.

    Args:
        model: folder of the float model.
        calibration: folder of LR PNG images of one size.
        output: folder of the artifact to write.
        method: its class runs with the options of its entry, the class defaults for the rest.
        scheme: bit widths, such as "W6A6".
        scope: "U" for the UNet alone, "UV" with the VAE.
        seed: of the order of the images and of the method's random numbers.

    Returns:
        One row per quantized layer and attention.

    Raises:
        UserError: one of the arguments cannot be used; nothing has been written then.
    """
    bits = parse_scheme(scheme)
    family = family_of_folder(model)
    _check_artifact_folder(output)
    files = images_in(calibration)
    if not files:
        raise UserError(
            f"{calibration}: no PNG images for calibration (LR images, 1/{family.scale} size)"
            f"{_why_none(calibration)}"
        )
    images = [read_uint8(file) for file in files]
    from passionsr.calibration.batches import make_batches
    from passionsr.methods.base import load_method, quantize_model
    from passionsr.models.folder import load_model
    from passionsr.quantization.artifact import save_quantized

    chosen = load_method(method.target, method.options)
    family.import_networks()
    teacher = load_model(model)
    tensors = [to_tensor(upscale(image, family.scale)) for image in images]
    batches = make_batches(teacher, tensors, BATCH_SIZE, seed)
    quantized, _, report = quantize_model(chosen, teacher, bits, scope, batches, seed)
    info = {"method": method.name, "scheme": str(bits), "scope": scope, "seed": seed}
    save_quantized(quantized, output, info)
    return report


def _check_artifact_folder(output: Path) -> None:
    """UserError unless an artifact can be written there, and no float model would become one."""
    if (output / "manifest.json").exists():
        raise UserError(
            f"{output}: holds a float model, which a quantized one would hide; give another folder"
        )
    check_output_folder(output)


def _why_none(folder: Path) -> str:
    """What else is wrong with a folder that has no images; empty if nothing is."""
    if folder.is_dir():
        return ""
    return ": it is a file, expected a folder" if folder.exists() else ": there is no such folder"


def _matching_images(sr: Path, hr: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(name, SR, HR) of every PNG in `sr`; UserError unless each has an HR image of its size."""
    outputs, truths = images_by_name(sr), images_by_name(hr)
    if not outputs:
        raise UserError(f"{sr}: no PNG images{_why_none(sr)}")
    missing = [hr / path.name for name, path in outputs.items() if name not in truths]
    if missing:
        raise UserError(
            f"no HR image for {len(missing)} of {len(outputs)} outputs, first: {missing[0]}"
            f"{_why_none(hr)}"
        )
    loaded = [(name, read_uint8(path), read_uint8(truths[name])) for name, path in outputs.items()]
    for name, output, truth in loaded:
        if output.shape != truth.shape:
            raise UserError(
                f"{name}: SR is {output.shape[1]}x{output.shape[0]} but HR is "
                f"{truth.shape[1]}x{truth.shape[0]}; they must be of one size"
            )
    return loaded


class FolderMean(NamedTuple):
    """Mean of one metric over the images of a folder that have a score.

    value: None if none has. note: of which images, where some have none; else "".
    """

    value: float | None
    note: str = ""

    def __str__(self) -> str:
        text = "n/a" if self.value is None else f"{self.value:.4f}"
        return f"{text} ({self.note})" if self.note else text


def score_folder(
    sr: Path, hr: Path, output: Path, metrics: Sequence[str]
) -> tuple[int, dict[str, FolderMean]]:
    """Score a folder of outputs against the HR images of the same names.

    Names are the same whatever the case of the suffix and the Unicode form of the letters.

    Args:
        sr: folder of outputs, PNG.
        hr: folder of HR images, PNG.
        output: CSV to write, columns image, metric, value and reason: why there is no value.
        metrics: names of metrics.registry.METRICS; one that stands twice counts once.

    Returns:
        Number of images, and the means by metric.

    Raises:
        UserError: an unknown metric, a missing HR image or one of another size, or an output that
            cannot be written.
    """
    names = list(dict.fromkeys(check_metrics(metrics)))
    check_output_file(output, [*images_in(sr), *images_in(hr)])
    check_suffix(output, ".csv", "scores are written as CSV")
    images = _matching_images(sr, hr)
    from passionsr.metrics.suite import MetricSuite

    suite = MetricSuite(names)
    rows = []
    for index, (image, ours, truth) in enumerate(images, 1):
        rows += [
            (image, name, "" if value is None else repr(value), suite.missing.get(name) or reason)
            for name, (value, reason) in suite.measure(ours, truth).items()
        ]
        log.info("%d/%d %s", index, len(images), image)
    columns = ("image", "metric", "value", "reason")
    write_csv(output, [dict(zip(columns, row, strict=True)) for row in rows], columns)
    means = {}
    for metric in names:
        values = [float(value) for _, name, value, _ in rows if name == metric and value]
        reasons = [reason for _, name, value, reason in rows if name == metric and not value]
        note = missing_note(len(values), reasons) if reasons else ""
        means[metric] = FolderMean(sum(values) / len(values) if values else None, note)
    return len(images), means
