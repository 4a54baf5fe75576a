"""The columns of every table: names, direction and printed digits. No torch, no pyiqa."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from passionsr.utils.files import UserError


@dataclass(frozen=True)
class Metric:
    """One column. `pyiqa` is the name there; kind: FR against HR, NR alone, FP against the float output."""

    name: str
    title: str
    pyiqa: str
    kind: str
    lower_better: bool
    digits: int


_ALL = (
    Metric("psnr", "PSNR-Y", "psnr", "FR", False, 2),
    Metric("ssim", "SSIM-Y", "ssim", "FR", False, 4),
    Metric("lpips", "LPIPS", "lpips", "FR", True, 4),
    Metric("dists", "DISTS", "dists", "FR", True, 4),
    Metric("niqe", "NIQE", "niqe", "NR", True, 3),
    Metric("musiq", "MUSIQ", "musiq", "NR", False, 2),
    Metric("maniqa", "MANIQA", "maniqa", "NR", False, 4),
    Metric("clipiqa", "CLIP-IQA", "clipiqa", "NR", False, 4),
    Metric("psnr_fp", "PSNR to FP32", "psnr", "FP", False, 2),
    Metric("lpips_fp", "LPIPS to FP32", "lpips", "FP", True, 4),
)
METRICS = {m.name: m for m in _ALL}


def check_metrics(names: Sequence[str]) -> list[str]:
    """The names, or UserError for an unknown one."""
    unknown = sorted(set(names) - set(METRICS))
    if unknown:
        raise UserError(f"unknown metric {', '.join(unknown)}; known: {', '.join(METRICS)}")
    return list(names)
