"""Copies of the repository in which tests run, interrupt and resume the workflow."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from dry_runs import dry_run

from passionsr.benchmark.paths import PRODUCTS
from passionsr.benchmark.reproducibility import differences, products

PARTS = ("Snakefile", "workflow", "passionsr", "baselines", "config", "profiles", "pyproject.toml")
DVC_PARTS = ("dvc.yaml", ".dvc/config", ".dvc/.gitignore", ".dvc/plots", ".dvcignore", ".gitignore")
ROOT = Path(__file__).resolve().parent.parent
TEST = ("all", "--config", "file=config/test.yaml")
SMALL = ("all", "--config", "file=config/small.yaml")


class Finished(NamedTuple):
    """How a Snakemake ended, and what it printed on both streams."""

    status: int
    output: str


def copy_repository(folder, parts=PARTS):
    """Files and folders of this checkout, as they are now.

    Without bytecode (but with compiled kernels); by default what the workflow needs.
    """
    folder.mkdir(exist_ok=True)
    for name in parts:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("*.pyc")
            shutil.copytree(source, target, symlinks=True, ignore=ignored)
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy2(source, target)
    return folder


def edit(folder, name, old, new):
    """Replace text of a file in a copy."""
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def copy_for_dvc(folder, benchmark):
    """A git repository whose dvc.yaml is about a benchmark."""
    copy_repository(folder, (*PARTS, *DVC_PARTS, "models"))
    results = results_of(Path(), benchmark).as_posix()
    edit(folder, "dvc.yaml", "config/mini.yaml", benchmark[-1].removeprefix("file="))
    edit(folder, "dvc.yaml", "results/mini", results)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


def environment(folder, **more):
    """Of a shell in `folder`: this checkout's cache of metric weights.

    PYTHONPATH names this checkout, so that every test shows that a copy runs its own sources.
    """
    return {
        **{k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
        "PASSIONSR_CACHE": str(ROOT / ".cache"),
        "PYTHONPATH": str(ROOT),
        "PWD": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **more,
    }


def start(folder, *arguments, cores=1, **more):
    """A running `snakemake`, in a process group of its own.

    Its output goes to folder/snakemake.out.
    """
    with (folder / "snakemake.out").open("w") as out:
        return subprocess.Popen(
            ["snakemake", "--cores", str(cores), *arguments],
            cwd=folder, env=environment(folder, **more), stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


def snakemake(folder, *arguments, cores=1, **more):
    """`snakemake`, to its end."""
    if "-n" in arguments:
        command = ["--cores", str(cores), *arguments]
        status = dry_run(folder, command, environment(folder, **more))
    else:
        status = start(folder, *arguments, cores=cores, **more).wait()
    return Finished(status, (folder / "snakemake.out").read_text())


def results_of(folder, benchmark):
    """Where the results of TEST or SMALL are in a copy."""
    return folder / "results" / Path(benchmark[-1]).stem


def tree(folder, benchmark=TEST):
    """Path -> bytes of every product.

    Also of those that `products` leaves out or shortens because they are measured.
    """
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for kind in PRODUCTS
        for p in sorted((results_of(folder, benchmark) / kind).rglob("*"))
        if p.is_file()
    }


def check_same(folder, expected, benchmark=SMALL):
    """Everything that must be reproduced has the bytes of `expected`."""
    different = differences(expected, products(results_of(folder, benchmark)))
    assert not different, different
