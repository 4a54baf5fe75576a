"""The small benchmark through a true one-node SLURM.

The bytes of a local run, also when a job is cancelled on its way.
"""

import re
import subprocess
import sys
import time

import pytest
from copies import (
    SMALL,
    check_same,
    copy_for_dvc,
    copy_repository,
    environment,
    start,
)

pytestmark = pytest.mark.slow
# Polls for finished jobs as often as the plugin allows; a busy cluster keeps the profile's 20 s.
FAST = ("--slurm-init-seconds-before-status-checks", "3", "--slurm-keep-successful-logs")

FIELDS = (
    "JobID:20,Partition:20,tres-per-job:30,TimeLimit:20,NumCPUs:10,MinMemory:20,State:20,Comment:90"
)


def ask(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def jobs(folder):
    """SLURM's own record of finished jobs, oldest first."""
    lines = (folder / "log" / "jobcomp.txt").read_text().splitlines()
    return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines]


@pytest.fixture(scope="module")
def finished(slurm, undisturbed, tmp_path_factory):
    """(repository copy, its output, SLURM's jobs, the cancelled job).

    A run in which the first calibration was cancelled.
    """
    folder = copy_repository(tmp_path_factory.mktemp("cluster"))
    before = len(jobs(slurm))
    process = start(
        folder, *SMALL, *FAST, cores="all",
        SNAKEMAKE_PROFILE=str(folder / "workflow" / "profiles" / "slurm"),
        PASSIONSR_SLURM_PARTITION="chosen", PASSIONSR_SLURM_GPUS="1", PASSIONSR_SLURM_MINUTES="11",
    )  # fmt: skip
    requested = {}
    cancelled = None
    try:
        while process.poll() is None:
            for line in ask("squeue", "-h", "-t", "all", "-O", FIELDS).splitlines():
                number, *rest = line.split()
                requested[number] = rest
                if cancelled is None and rest[-2] == "RUNNING" and "calibrate" in rest[-1]:
                    cancelled = number
                    ask("scancel", number)
            time.sleep(1)
    finally:
        if process.poll() is None:
            process.kill()
    output = (folder / "snakemake.out").read_text()
    assert process.returncode == 0, output[-5000:]
    return folder, output, jobs(slurm)[before:], cancelled, requested


def test_same_bytes_as_a_local_run(finished, undisturbed):
    check_same(finished[0], undisturbed[1])


def test_jobs_went_through_slurm(finished):
    """Two runs (calibration and inference in one submission each), reference.

    Two bit widths to score; no more.
    """
    folder, output, record, cancelled, _ = finished
    submitted = re.findall(r"submitted with SLURM jobid (\d+)", output)
    assert sorted(submitted, key=int) == sorted((r["JobId"] for r in record), key=int)
    assert len(submitted) == 2 + 1 + 2 + 1  # the cancelled one, again
    states = {r["JobId"]: r["JobState"] for r in record}
    assert states.pop(cancelled) == "CANCELLED"
    assert set(states.values()) == {"COMPLETED"}
    for number in states:
        (log,) = (folder / ".snakemake" / "slurm_logs").rglob(f"{number}.log")
        assert "executor slurm-jobstep" in log.read_text()
    # Cheap rules stayed where Snakemake ran.
    assert not list((folder / ".snakemake" / "slurm_logs").glob("rule_tables"))


def test_a_cancelled_job_was_repeated(finished):
    _, output, _, cancelled, _ = finished
    assert cancelled is not None
    assert "Trying to restart" in output


def test_resources_and_environment(finished):
    """Partition and GPUs from the environment.

    Minutes, cpus and memory per rule, more memory at the second attempt.
    """
    requested = finished[4]
    seen = set()
    for partition, gres, minutes, cpus, memory, _, comment in requested.values():
        if partition == "debug":  # srun of slurm_up.sh
            continue
        assert partition == "chosen"
        assert cpus == "1"
        rule = "score" if "score" in comment else "reference" if "reference" in comment else "run"
        assert gres == ("N/A" if rule == "score" else "gres:gpu:1"), comment
        seen.add((rule, minutes, memory))
    assert ("score", "30:00", "3000M") in seen
    assert ("reference", "1:00:00", "3000M") in seen
    # a group may take the sum of its members' minutes: 11 and 60
    assert {s for s in seen if s[0] == "run"} == {
        ("run", "1:11:00", "3000M"),
        ("run", "1:11:00", "6000M"),
    }


def test_nothing_is_left_to_do(finished):
    result = subprocess.run(
        ["snakemake", "--cores", "1", *SMALL, "-n"], cwd=finished[0], check=False,
        env=environment(finished[0]), capture_output=True, text=True,
    )  # fmt: skip
    assert "Nothing to be done" in result.stdout + result.stderr


def test_dvc_repro_uses_the_profile(slurm, undisturbed, tmp_path):
    """`dvc repro` with the profile of the cluster: the submissions and bytes of `snakemake all`."""
    folder = copy_for_dvc(tmp_path / "repo", SMALL)
    before = len(jobs(slurm))
    profile = str(folder / "workflow" / "profiles" / "slurm")
    result = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"], cwd=folder, check=False, text=True,
        env=environment(folder, SNAKEMAKE_PROFILE=profile, PASSIONSR_SLURM_PARTITION="chosen"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]
    submitted = [(job["JobState"], job["Partition"]) for job in jobs(slurm)[before:]]
    assert submitted == [("COMPLETED", "chosen")] * (2 + 1 + 2)  # runs, reference, bit widths
    check_same(folder, undisturbed[1])
