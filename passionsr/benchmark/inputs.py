"""Which weights and datasets of a configuration are missing, and what to do about it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from passionsr.benchmark.config import Config
from passionsr.benchmark.paths import datasets_of, model_files
from passionsr.data.image_folders import images_in
from passionsr.models.family import MANIFEST, get_family


def missing_inputs(config: Config) -> list[str]:
    """One line per weight or dataset that is not there: what to put where."""
    missing = []
    family = get_family(config.family)
    if config.model not in family.built_in and not (Path(config.model) / MANIFEST).exists():
        obtain = family.obtain.format(folder=shlex.quote(config.model))
        missing.append(
            f"model {config.model} is not there (no {MANIFEST} in it): give the folder of a "
            f"model saved by passionsr{f', or make it: {obtain}' if obtain else ''}"
        )
    absent = [path for path in model_files(config) if not path.is_file()]
    if absent:
        missing.append(
            f"model {config.model} is not whole: {absent[0]} is missing, which {MANIFEST} lists: "
            "get the whole folder"
        )
    missing += [problem for d in datasets_of(config) if (problem := d.missing())]
    for outputs in config.external_outputs:
        if not images_in(outputs.folder):
            missing.append(
                f"external_outputs {outputs.name}: no PNG images in {outputs.folder}: set its "
                "`folder:`"
            )
    return missing


def missing_report(config_file: str, missing: Sequence[str]) -> str:
    """The list for the user."""
    lines = "".join(f"\n  - {line}" for line in missing)
    return (
        f"{config_file}: {len(missing)} inputs are missing; nothing runs before they are there:"
        f"{lines}"
    )
