"""Jobs of a configuration with `device: cuda`: which of them take a GPU, and how many at a time."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from copies import copy_repository, environment, snakemake

from passionsr.benchmark.config import load_config

ON_GPU = {"reference", "calibrate", "sensitivity", "infer", "score_W32A32", "score_W4A4"}


def configuration(folder, device):
    """A small benchmark on a device; its path."""
    keys = yaml.safe_load(Path("config/small.yaml").read_text())
    path = folder / "gpu.yaml"
    path.write_text(
        yaml.safe_dump({**keys, "name": "gpu", "device": device, "sensitivity": "W4A4"})
    )
    return path


def gpus_of_rules(root, config, **variables):
    """Rule -> the GPUs that its jobs ask for."""
    command = ["snakemake", "-n", "all", "--quiet", "host", "--config", f"file={config}"]
    made = subprocess.run(
        command, cwd=root, env=environment(root, **variables), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    found = re.findall(r"^(?:local)?rule (\w+):\n(?: .*\n)*?    resources: (.*)", made.stdout, re.M)
    counts = {rule: re.search(r"\bgpu=(\d+)", resources) for rule, resources in found}
    return {rule: int(count[1]) if count else 0 for rule, count in counts.items()}


def test_what_uses_the_device_asks_for_a_gpu(pytestconfig, tmp_path):
    asked = gpus_of_rules(pytestconfig.rootpath, configuration(tmp_path, "cuda"))
    assert {rule for rule, count in asked.items() if count == 1} == ON_GPU
    assert {rule for rule, count in asked.items() if count == 0} == {
        "all", "data", "metric_weights", "tables", "table3", "figures",
    }  # fmt: skip


@pytest.mark.slow
def test_a_cpu_asks_for_none_unless_it_is_told(pytestconfig, tmp_path):
    root, config = pytestconfig.rootpath, configuration(tmp_path, "cpu")
    assert set(gpus_of_rules(root, config).values()) == {0}
    told = gpus_of_rules(root, config, PASSIONSR_SLURM_GPUS="2")
    assert {rule for rule, count in told.items() if count == 2} == {
        rule for rule in ON_GPU if not rule.startswith("score")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "more", "limit"),
    [("cuda", (), 1), ("cuda", ("--resources", "gpu=3"), 3), ("cpu", (), None)],
)
def test_one_job_at_a_time_on_the_gpu_of_a_machine(device, more, limit, tmp_path):
    """A global limit, whatever the number of cores, which the command line can raise."""
    folder = copy_repository(tmp_path / "repo")
    config = configuration(tmp_path, device)
    status, output = snakemake(
        folder, "data", *more, "--quiet", "host", "--config", f"file={config}", cores=8
    )
    assert status == 0, output
    found = re.search(r"Provided resources: .*gpu\D+(\d+)", output)
    assert (int(found[1]) if found else None) == limit


def test_the_paper_reserves_what_was_measured():
    """Loading peaks at 4.5 GB, Q-Diffusion at full size at 11.6 GiB (docs/guides/full-size.md)."""
    config = load_config("config/paper.yaml")
    assert config.memory_mb >= 11.6 * 2**30 / 1e6
    assert config.memory_mb == load_config("config/paper-random.yaml").memory_mb
