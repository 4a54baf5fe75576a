"""Image-quality scores: pyiqa behind one small interface. Never imports the model."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from passionsr.data.images import to_tensor
from passionsr.metrics.registry import (
    METRICS,
    NO_REFERENCE,
    NO_WEIGHTS,
    Metric,
    check_metrics,
)
from passionsr.metrics.weights import (
    checked_downloads,
    fetch_problems,
    is_hub_only,
    unavailable_reason,
    use_private_hub,
)
from passionsr.utils.device import prepare_device
from passionsr.utils.files import UserError

log = logging.getLogger(__name__)

# What pyiqa raises for an image that a metric cannot take.
REFUSALS = (RuntimeError, ValueError, IndexError, ArithmeticError, AssertionError)
NOT_FINITE = "not finite on this image (is it of one colour?)"


class Score(NamedTuple):
    """The score of an image by one metric; value None: there is none, and the reason why."""

    value: float | None
    reason: str = ""


def smallest_size(images: Sequence[Tensor]) -> list[Tensor]:
    """Resize (1, 3, H, W) images to the smallest H and W among them.

    As PassionSR's measure.py does: bilinear without antialiasing; images of that size are returned
    as they are.
    """
    size = tuple(min(image.shape[axis] for image in images) for axis in (2, 3))
    return [
        image
        if image.shape[2:] == size
        else F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=False)
        for image in images
    ]


class MetricSuite:
    """Builds each pyiqa metric once per process and scores image pairs.

    Args:
        names: metrics of the registry.
        cache: folder of the metric weights, see `passionsr.metrics.weights.hub_dir`.
        device: where they are computed, "cpu", "cuda" or "cuda:<number>".

    Metrics that cannot be built here are in `missing` (name -> reason); they have no scores.
    """

    def __init__(self, names: Sequence[str], cache: str | Path | None = None, device: str = "cpu"):
        self.names = check_metrics(names)
        prepare_device(device, strict=False)
        self.device = torch.device(device)
        self.missing: dict[str, str] = {}
        self.cache = cache
        unfetched = fetch_problems([METRICS[name].pyiqa for name in self.names], cache)
        use_private_hub(cache)
        self._models: dict[str, torch.nn.Module] = {}
        for name in self.names:
            pyiqa = METRICS[name].pyiqa
            reason = unfetched.get(pyiqa) or unavailable_reason(pyiqa, cache)
            reason = reason or self._build(METRICS[name])
            if reason:
                self.missing[name] = reason
                log.warning("%s: n/a: %s", name, reason)

    def _key(self, metric: Metric) -> str:
        """Metrics of one pyiqa name and settings share a model."""
        return json.dumps([metric.pyiqa, metric.settings], sort_keys=True)

    def _build(self, metric: Metric) -> str | None:
        """Create the pyiqa metric; the reason if a hub-only one cannot be had."""
        if self._key(metric) in self._models:
            return None
        import pyiqa

        chatter = io.StringIO()
        try:
            with contextlib.redirect_stdout(chatter), checked_downloads(metric.pyiqa, self.cache):
                model = pyiqa.create_metric(metric.pyiqa, device=self.device, **metric.settings)
        except Exception as err:  # pyiqa raises whatever its downloads raise
            if not is_hub_only(metric.pyiqa):
                raise
            return f"pyiqa could not build it ({_first_line(err)})"
        self._models[self._key(metric)] = model
        return None

    def score(
        self,
        sr: np.ndarray,
        hr: np.ndarray,
        fp: np.ndarray | None = None,
        resize: bool = False,
        only: Collection[str] | None = None,
    ) -> dict[str, float | None]:
        """The values of `measure`; None where there is no score."""
        scores = self.measure(sr, hr, fp, resize, only)
        return {name: score.value for name, score in scores.items()}

    @torch.no_grad()
    def measure(
        self,
        sr: np.ndarray,
        hr: np.ndarray,
        fp: np.ndarray | None = None,
        resize: bool = False,
        only: Collection[str] | None = None,
    ) -> dict[str, Score]:
        """Scores of one image by metric name; what a metric cannot score has no value but a reason.

        Args:
            sr: (H, W, 3) uint8, the output.
            hr: (H, W, 3) uint8, the ground truth.
            fp: (H, W, 3) uint8, the float model's output; without it there are no scores of the
                metrics of kind FP.
            resize: bring images of different sizes to the smallest, see `smallest_size`.
            only: metrics of this suite to compute; default: all.

        Raises UserError if sizes differ and `resize` is not asked for.
        """
        for name, other in (("HR", hr), ("FP32", fp)):
            if other is not None and other.shape != sr.shape and not resize:
                raise UserError(
                    f"SR is {sr.shape[1]}x{sr.shape[0]} but {name} is "
                    f"{other.shape[1]}x{other.shape[0]}; they must be of one size"
                )
        given = [to_tensor(x).to(self.device) for x in (sr, hr, fp) if x is not None]
        image, *others = smallest_size(given)
        references = {"FR": others[0], "FP": None if fp is None else others[1]}
        return {
            name: self._score_one(name, image, references)
            for name in self.names
            if only is None or name in only
        }

    def _score_one(
        self, name: str, image: Tensor, references: Mapping[str, Tensor | None]
    ) -> Score:
        metric = METRICS[name]
        reference = references.get(metric.kind)
        height, width = image.shape[2:]
        if name in self.missing:
            return Score(None, NO_WEIGHTS)
        if metric.kind == "FP" and reference is None:
            return Score(None, NO_REFERENCE)
        if min(height, width) < metric.min_side:
            return Score(None, f"{width}x{height} px; it needs {metric.min_side} px on each side")
        if metric.seed is not None:
            torch.manual_seed(metric.seed)
        arguments = (image,) if metric.kind == "NR" else (image, reference)
        try:
            value = float(self._models[self._key(metric)](*arguments))
        except torch.linalg.LinAlgError:  # statistics that hold NaN
            return Score(None, NOT_FINITE)
        except REFUSALS as err:
            if "memory" in str(err):  # more of it helps, another image does not
                raise
            return Score(None, f"pyiqa cannot score this image ({_first_line(err)})")
        return Score(value) if math.isfinite(value) else Score(None, NOT_FINITE)


def _first_line(err: Exception) -> str:
    text = " ".join(str(err).split("\n")[0].split())
    return f"{type(err).__name__}: {text}" if text else type(err).__name__
