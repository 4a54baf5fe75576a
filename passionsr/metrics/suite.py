"""Image-quality scores: pyiqa behind one small interface. Never imports the model."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from passionsr.data.images import to_tensor
from passionsr.metrics.registry import METRICS, Metric, check_metrics
from passionsr.metrics.weights import (
    checked_downloads,
    ensure_weights,
    is_hub_only,
    unavailable_reason,
    use_private_hub,
)
from passionsr.utils.files import UserError

log = logging.getLogger(__name__)


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

    Metrics that cannot be built here are in `missing` (name -> reason); their scores are None.
    """

    def __init__(self, names: Sequence[str], cache: str | Path | None = None):
        self.names = check_metrics(names)
        self.missing: dict[str, str] = {}
        self.cache = cache
        ensure_weights(cache)
        use_private_hub(cache)
        self._models: dict[str, torch.nn.Module] = {}
        for name in self.names:
            reason = unavailable_reason(METRICS[name].pyiqa, cache) or self._build(METRICS[name])
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
                model = pyiqa.create_metric(
                    metric.pyiqa, device=torch.device("cpu"), **metric.settings
                )
        except Exception as err:  # pyiqa raises whatever its downloads raise
            if not is_hub_only(metric.pyiqa):
                raise
            reason = (str(err).splitlines() or [""])[0]
            return f"pyiqa could not build it ({type(err).__name__}: {reason})"
        self._models[self._key(metric)] = model
        return None

    @torch.no_grad()
    def score(
        self,
        sr: np.ndarray,
        hr: np.ndarray,
        fp: np.ndarray | None = None,
        resize: bool = False,
        only: Collection[str] | None = None,
    ) -> dict[str, float | None]:
        """Scores of one image by metric name; None where the metric is not available.

        Args:
            sr: (H, W, 3) uint8, the output.
            hr: (H, W, 3) uint8, the ground truth.
            fp: (H, W, 3) uint8, the float model's output; without it the metrics of kind FP are
                None.
            resize: bring images of different sizes to the smallest, see `smallest_size`.
            only: metrics of this suite to compute; default: all.

        Raises UserError if sizes differ and `resize` is not asked for, or if a score is not finite.
        """
        for name, other in (("HR", hr), ("FP32", fp)):
            if other is not None and other.shape != sr.shape and not resize:
                raise UserError(
                    f"SR is {sr.shape[1]}x{sr.shape[0]} but {name} is "
                    f"{other.shape[1]}x{other.shape[0]}; they must be of one size"
                )
        image, *others = smallest_size([to_tensor(x) for x in (sr, hr, fp) if x is not None])
        references = {"FR": others[0], "FP": None if fp is None else others[1]}
        scores: dict[str, float | None] = {}
        for name in self.names:
            if only is None or name in only:
                scores[name] = self._score_one(name, image, references)
        return scores

    def _score_one(
        self, name: str, image: Tensor, references: Mapping[str, Tensor | None]
    ) -> float | None:
        metric = METRICS[name]
        reference = references.get(metric.kind)
        if name in self.missing or (metric.kind == "FP" and reference is None):
            return None
        if metric.seed is not None:
            torch.manual_seed(metric.seed)
        arguments = (image,) if metric.kind == "NR" else (image, reference)
        value = float(self._models[self._key(metric)](*arguments))
        if not math.isfinite(value):
            raise UserError(f"{name} is {value}: the image cannot be scored by it")
        return value
