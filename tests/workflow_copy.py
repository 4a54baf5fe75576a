"""Copies of the repository in which tests run, interrupt and resume the workflow."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from passionsr.reproducibility import differences, products

PARTS = ("Snakefile", "workflow", "passionsr", "baselines", "config", "profiles", "pyproject.toml")
ROOT = Path(__file__).resolve().parent.parent
SMALL = ("all", "--config", "file=config/small.yaml")


def copy_repository(folder):
    """What the workflow needs, without results."""
    folder.mkdir(exist_ok=True)
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy2(source, folder / name)
    return folder


def environment(folder, **more):
    """Of a Snakemake in `folder`: its own sources, this checkout's cache of metric weights."""
    return {
        **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
        "PASSIONSR_CACHE": str(ROOT / ".cache"),
        "PYTHONPATH": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **more,
    }


def start(folder, *arguments, cores=1, **more):
    """A running `snakemake`, in a process group of its own; its output goes to folder/snakemake.out."""
    out = (folder / "snakemake.out").open("w")
    return subprocess.Popen(
        ["snakemake", "--cores", str(cores), *(arguments or SMALL)],
        cwd=folder, env=environment(folder, **more), stdout=out, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


def run(folder, *arguments, cores=1, **more):
    """(exit status, output) of `snakemake`, by default of the small benchmark."""
    process = start(folder, *arguments, cores=cores, **more)
    process.wait()
    return process.returncode, (folder / "snakemake.out").read_text()


def small_results(folder):
    """Where the small benchmark's results are."""
    return folder / "results" / "small"


def check_same(folder, expected):
    """Everything that must be reproduced has the bytes of `expected`."""
    different = differences(expected, products(small_results(folder)))
    assert not different, different
