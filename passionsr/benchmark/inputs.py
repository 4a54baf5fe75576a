"""Which weights and datasets of a configuration are missing, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from passionsr.benchmark.config import Config
from passionsr.benchmark.float_model import BUILT_IN
from passionsr.benchmark.paths import datasets_of


def missing_inputs(config: Config) -> list[str]:
    """One line per weight or dataset that is not there: what to put where."""
    missing = []
    if config.model not in BUILT_IN and not (Path(config.model) / "manifest.json").exists():
        missing.append(
            f"model {config.model} is not there (no manifest.json in it): give the folder of a model saved by passionsr, or "
            f"make it: passionsr import-osediff {config.model} --checkpoint osediff.pkl (README: paper scale)"
        )
    missing += [problem for d in datasets_of(config) if (problem := d.missing())]
    for outputs in config.external_outputs:
        if not any(outputs.folder.glob("*.png")):
            missing.append(
                f"external_outputs {outputs.name}: no PNG images in {outputs.folder}: set its `folder:`"
            )
    return missing


def missing_report(config_file: str, missing: Sequence[str]) -> str:
    """The list for the user."""
    lines = "".join(f"\n  - {line}" for line in missing)
    return f"{config_file}: {len(missing)} inputs are missing; nothing runs before they are there:{lines}"
