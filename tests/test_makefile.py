"""`make` in a folder whose path has spaces and quotes: commands are found, not written out."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

STUB = """#!/bin/sh
echo "$(basename "$0") $*" >> "$LOG"
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder with the Makefile and an environment whose programs only note their calls."""
    folder = tmp_path / "my 'work' & more" / "check out"
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy("Makefile", folder)
    for name in ("requirements.lock", "pyproject.toml"):
        (folder / name).touch()
    for name in ("python", "snakemake", "passionsr"):
        program = folder / ".venv" / "bin" / name
        program.write_text(STUB)
        program.chmod(0o755)
    return folder


def make(folder, *arguments):
    log = folder / "calls.txt"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(
        ["make", "PYTHON=true", *arguments],
        cwd=folder, env={**environment, "LOG": str(log)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines()


def test_the_environment_is_made(checkout):
    assert make(checkout, ".venv/.ready") == [
        "python -m pip install --quiet uv",
        "python -m uv pip sync --compile-bytecode requirements.lock",
        "python -m uv pip install --quiet --no-deps --no-build-isolation --editable .",
    ]
    assert (checkout / ".venv" / ".ready").is_file()


@pytest.mark.parametrize(
    ("target", "call"),
    [
        ("all", "snakemake --cores 1 all"),
        ("bench", "passionsr bench results/mini --step"),
        ("pull", "python workflow/scripts/dvc_sync.py pull"),
    ],
)
def test_commands_are_those_of_the_environment(checkout, target, call):
    (checkout / ".venv" / ".ready").touch()
    assert make(checkout, target, "CORES=1") == [call]


def test_clean_removes_the_environment_alone(checkout):
    (checkout / "results" / "mine").mkdir(parents=True)
    (checkout.parent / "check").mkdir()  # the first word of a path that is not quoted
    environment = checkout / ".venv"
    make_log = checkout / "calls.txt"
    make_log.touch()
    assert make(checkout, "clean") == []
    assert not environment.exists()
    assert {p.name for p in checkout.iterdir()} >= {"Makefile", "results"}
    assert Path(checkout.parent / "check").is_dir()
