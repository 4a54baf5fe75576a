"""Local runs take no more memory than there is, whatever --cores says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from copies import SMALL, check_same, copy_repository, environment, results_of, snakemake

from passionsr.benchmark.config import load_config
from passionsr.benchmark.job_memory import job_memory
from passionsr.benchmark.timing import job_times
from passionsr.utils.machine_memory import VARIABLE

pytestmark = pytest.mark.slow
MEMORY = job_memory(load_config("config/small.yaml"))
RUNS = ("minmax-W4A4-UV-s0", "passionsr-W4A4-UV-s0")
# A control group that limits memory, version 1 or 2; without the right to make one, ulimit.
LIMITED = """
import os, resource, sys
from pathlib import Path
megabytes, name, *command = sys.argv[1:]
limit = int(megabytes) * 10**6
places = {"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"}
for top, file in places.items():
    group = Path(top, name)
    try:
        group.mkdir()
    except OSError:
        continue
    if (group / file).exists():
        (group / file).write_text(str(limit))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        break
    group.rmdir()
else:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
os.execvp(command[0], command)
"""


def most_at_once(folder):
    """The largest sum of what jobs that ran at the same time may take, MB."""
    jobs = job_times(results_of(folder, SMALL))
    return max(
        sum(
            MEMORY[other.kind]
            for other in jobs
            if other.began <= job.began < other.began + other.seconds
        )
        for job in jobs
    )


@pytest.fixture
def uncalibrated(undisturbed, tmp_path):
    """The small benchmark with its calibrations to do: two jobs that are ready at once."""
    folder = shutil.copytree(undisturbed[0], tmp_path / "repo", symlinks=True)
    results = results_of(folder, SMALL)
    for name in ("runs", "benchmarks"):
        shutil.rmtree(results / name)
    return folder


def test_two_calibrations_wait_for_each_other_in_a_control_group(uncalibrated, undisturbed):
    """Once for real: a limit with room for one, eight cores, and the bytes of a free run."""
    limit = 4_096  # of whole pages, as the kernel rounds it
    name = f"passionsr-test-{Path(uncalibrated).parent.name}"
    command = (sys.executable, "-c", LIMITED, str(limit), name, "snakemake", "--cores", "8", *SMALL)
    try:
        done = subprocess.run(
            command, cwd=uncalibrated, env=environment(uncalibrated), text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    finally:
        for top in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
            if Path(top, name).is_dir():
                Path(top, name).rmdir()
    assert done.returncode == 0, done.stdout[-3000:]
    assert "memory: jobs may take 3096 MB (4096 MB of " in done.stdout
    assert most_at_once(uncalibrated) <= 3_096
    check_same(uncalibrated, undisturbed[1])


def test_they_run_together_where_there_is_memory(uncalibrated):
    """So the limit above is what kept them apart; a second attempt fits, too."""
    targets = [f"results/small/runs/{run}/run.json" for run in RUNS]
    arguments = (*targets, "--config", "file=config/small.yaml")
    status, output = snakemake(uncalibrated, *arguments, cores=8, **{VARIABLE: "16000"})
    assert status == 0, output[-3000:]
    assert "memory: jobs may take 14400 MB (16000 MB of $PASSIONSR_MEMORY_MB less" in output
    assert most_at_once(uncalibrated) == 6_000


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return copy_repository(tmp_path_factory.mktemp("small machine") / "repo")


def test_a_machine_too_small_says_so_before_any_job(fresh):
    expected = (
        "too little memory: calibrate may take 3000 MB, and jobs may take 2900 MB (3900 MB of "
        "$PASSIONSR_MEMORY_MB less 1000 MB for everything else); use a larger machine or limit, or,"
        " if you know better, say what jobs may take: --resources mem_mb=3000"
    )
    status, output = snakemake(fresh, *SMALL, **{VARIABLE: "3900"})
    assert status == 1
    assert [line for line in output.splitlines() if line.startswith("error: ")] == [
        f"error: {expected}"
    ]
    assert "Traceback" not in output
    assert not results_of(fresh, SMALL).exists()
    assert not list((fresh / ".snakemake" / "locks").glob("*"))
    status, output = snakemake(fresh, *SMALL, "-n", **{VARIABLE: "3900"})
    assert status == 0
    assert output.splitlines().count(expected) == 1


def test_who_says_what_jobs_may_take_has_decided(fresh):
    """Only what is to be done counts: making data needs little."""
    data = "results/small/data/test/LR/astronaut_face.png"
    arguments = ("--config", "file=config/small.yaml")
    status, output = snakemake(fresh, data, *arguments, **{VARIABLE: "2100"})
    assert status == 0, output
    (fresh / data).unlink()
    more = ("--resources", "mem_mb=500")
    status, output = snakemake(fresh, data, *arguments, *more, **{VARIABLE: "1000"})
    assert status == 0, output
    assert "memory: jobs may take" not in output


def test_a_wrong_figure_is_one_line(fresh):
    status, output = snakemake(fresh, "-n", *SMALL, **{VARIABLE: "16G"})
    assert status == 1
    assert "error: PASSIONSR_MEMORY_MB=16G: expected the memory of this machine in MB" in output
