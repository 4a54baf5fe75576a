"""Copies of the repository in which tests run the workflow on config/test.yaml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from passionsr.reproducibility import MEASURED_FILES, PRODUCTS

PARTS = ("Snakefile", "workflow", "passionsr", "baselines", "config", "profiles", "pyproject.toml")


def copy_parts(folder, parts=PARTS):
    """Copy files and folders of this repository, as they are now, without bytecode."""
    for name in parts:
        source = Path(name)
        if source.is_dir():
            shutil.copytree(
                source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy2(source, folder / name)


def environment(folder):
    """A copy runs its own modules, with the metric weights that are already here."""
    cache = str(Path(".cache").resolve())
    return {**os.environ, "PASSIONSR_CACHE": cache, "PYTHONPATH": str(folder)}


def snakemake(folder, *arguments, cores=2):
    """Run Snakemake in a copy."""
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", str(cores), *arguments],
        cwd=folder, env=environment(folder), capture_output=True, text=True, check=False,
    )  # fmt: skip


def small(*arguments):
    """Arguments of the tests' benchmark."""
    return ["all", "--config", "file=config/test.yaml", *arguments]


def tree(folder, kinds=PRODUCTS):
    """Every product: path -> bytes."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for kind in kinds
        for p in sorted((folder / "results" / "test" / kind).rglob("*"))
        if p.is_file()
    }


def measures(path):
    """Whether a product holds seconds and memory, which differ from run to run."""
    return path.endswith(("/run.json", *MEASURED_FILES))
