"""Image-quality scores: pyiqa behind one small interface. Never imports the model."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from passionsr.data.images import to_tensor
from passionsr.metrics.registry import METRICS, Metric, check_metrics
from passionsr.metrics.weights import HUB_FILES, ensure_weights, unavailable_reason, use_private_hub
from passionsr.utils.files import UserError

log = logging.getLogger(__name__)


SETTINGS = {
    "psnr": {"test_y_channel": True, "color_space": "ycbcr"},
    "ssim": {"test_y_channel": True, "color_space": "ycbcr"},
}


def smallest_size(images: Sequence[Tensor]) -> list[Tensor]:
    """Resize (1, 3, H, W) images to the smallest H and W among them, as measure.py does (methods.md 9).

    Bilinear without antialiasing; images of that size are returned as they are.
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

    Args: names: columns of METRICS. cache: see metric_weights.hub_dir.
    Unavailable metrics are in `missing` (name -> reason); their scores are None.
    """

    def __init__(self, names: Sequence[str], cache: str | Path | None = None):
        self.names = check_metrics(names)
        self.missing: dict[str, str] = {}
        ensure_weights(cache)
        use_private_hub(cache)
        self._models: dict[tuple, torch.nn.Module] = {}
        for name in self.names:
            reason = unavailable_reason(METRICS[name].pyiqa, cache) or self._build(METRICS[name])
            if reason:
                self.missing[name] = reason
                log.warning("%s: n/a: %s", name, reason)

    def _settings(self, metric: Metric) -> dict:
        # Fidelity PSNR is over RGB: a colour shift against the float output must count.
        return {} if metric.name == "psnr_fp" else SETTINGS.get(metric.pyiqa, {})

    def _key(self, metric: Metric) -> tuple:
        return (metric.pyiqa, *sorted(self._settings(metric)))

    def _build(self, metric: Metric) -> str | None:
        """Create the pyiqa metric; the reason if a hub-only one cannot be had."""
        if self._key(metric) in self._models:
            return None
        import pyiqa

        chatter = io.StringIO()
        try:
            with contextlib.redirect_stdout(chatter):
                model = pyiqa.create_metric(
                    metric.pyiqa, device=torch.device("cpu"), **self._settings(metric)
                )
        except Exception as err:  # pyiqa raises whatever its downloads raise
            if metric.pyiqa not in HUB_FILES:
                raise
            return f"pyiqa could not build it ({type(err).__name__}: {str(err).splitlines()[0]})"
        self._models[self._key(metric)] = model
        return None

    @torch.no_grad()
    def score(
        self,
        sr: np.ndarray,
        hr: np.ndarray,
        fp: np.ndarray | None = None,
        resize: bool = False,
    ) -> dict[str, float | None]:
        """Scores of one image by column name; None where the metric is unavailable.

        Args: sr, hr, fp: (H, W, 3) uint8; fp is the float model's output (None leaves fidelity None). resize: bring
            sizes that differ to the smallest, see `smallest_size`.
        Raises UserError if sizes differ and resize is not asked for.
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
            metric = METRICS[name]
            reference = references.get(metric.kind)
            if name in self.missing or (metric.kind == "FP" and reference is None):
                scores[name] = None
                continue
            if metric.pyiqa == "maniqa":
                torch.manual_seed(123)  # random crops (methods.md 9)
            arguments = (image,) if metric.kind == "NR" else (image, reference)
            value = float(self._models[self._key(metric)](*arguments))
            if not math.isfinite(value):
                raise UserError(f"{name} is {value}: the image cannot be scored by it")
            scores[name] = value
        return scores
