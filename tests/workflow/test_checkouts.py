"""Snakemake in a second clone, with this checkout's environment and PYTHONPATH."""

import os
import subprocess

import pytest
from copies import copy_repository, edit, environment

pytestmark = pytest.mark.slow
OWN = "the clone's own make_data"
LOG = "results/test/logs/data.log"
DATA = "results/test/data/test/LR/astronaut_face.png"
CONFIG = ("--config", "file=config/test.yaml")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone whose make_data raises."""
    folder = copy_repository(tmp_path_factory.mktemp("second") / "repo")
    old = "    scale = get_family(config.family).scale\n    limit ="
    edit(folder, "passionsr/benchmark/jobs/data.py", old, f'    raise ValueError("{OWN}")\n{old}')
    return folder


def snakemake(folder, *arguments):
    """(status, output); without retries, so that the clone fails once."""
    done = subprocess.run(
        ["snakemake", "--cores", "1", "--retries", "0", *map(str, arguments)],
        cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_its_own_code_runs(clone):
    status, output = snakemake(clone, DATA, *CONFIG)
    assert status == 1
    assert f"ValueError: {OWN}" in output
    assert f'File "{clone}/passionsr/benchmark/jobs/data.py"' in (clone / LOG).read_text()
    assert not (clone / DATA).exists()


def test_so_it_does_from_another_folder(clone, tmp_path):
    """-s and -d: the folder is another checkout, and the code is that beside the Snakefile."""
    folder = copy_repository(tmp_path / "a folder")
    status, output = snakemake(tmp_path, "-s", clone / "Snakefile", "-d", folder, DATA, *CONFIG)
    assert status == 1
    assert f"ValueError: {OWN}" in output
    assert f'File "{clone}/passionsr/benchmark/jobs/data.py"' in (folder / LOG).read_text()


def test_a_clone_without_baselines_is_refused(clone):
    """Those of the environment would be taken."""
    os.rename(clone / "passionsr/baselines", clone / "aside")
    try:
        status, output = snakemake(clone, "-n", *CONFIG)
    finally:
        os.rename(clone / "aside", clone / "passionsr/baselines")
    assert status == 1
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {clone}: passionsr.baselines would be imported from ")
