"""The figures of a benchmark: which runs they show and which files they are.

The workflow declares `figure_files`, and `write_figures` draws from the same functions. No pandas
here: the workflow reads this list whenever it starts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from passionsr.benchmark.config import Config, Run


def drawn_runs(config: Config) -> list[Run]:
    """The runs of the figures, every seed: UNet + VAE, or UNet only where nothing else was run.

    Released behaviour, one row a switch, is left to its table.
    """
    scope = "UV" if any(run.scope == "UV" for run in config.runs) else "U"
    return [
        run
        for run in config.runs
        if run.scope == scope and config.entries[run.method].ablation != "released"
    ]


def one_seed_each(runs: Iterable[Run]) -> list[Run]:
    """Of every method and bit width the run with its lowest seed, in the order of the runs."""
    lowest: dict[tuple[str, str], Run] = {}
    for run in runs:
        key = run.method, run.scheme
        lowest[key] = min(lowest.get(key, run), run, key=lambda r: r.seed)
    return list(lowest.values())


def crops_runs(config: Config) -> dict[str, list[Run]]:
    """Scheme -> the runs side by side in its figure; a scheme without any has no figure."""
    figures: dict[str, list[Run]] = {}
    for run in one_seed_each(drawn_runs(config)):
        figures.setdefault(run.scheme, []).append(run)
    return figures


def crops_file(config: Config, scheme: str) -> Path:
    """figures/crops_<scheme>.png."""
    return config.results / "figures" / f"crops_{scheme}.png"


def figure_files(config: Config) -> list[Path]:
    """Everything that the job `figures` writes."""
    names = ["loss_curves.png", "ranges_let.png", "bits_sweep.png", "loss_curves.csv"]
    if config.sensitivity:
        names.append("sensitivity.png")
    crops = [crops_file(config, scheme) for scheme in crops_runs(config)]
    return [*crops, *(config.results / "figures" / name for name in names)]
