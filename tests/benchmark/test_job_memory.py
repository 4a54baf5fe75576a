"""How many jobs fit into a machine."""

import dataclasses
import re
from pathlib import Path

import pytest

from passionsr.benchmark.config import load_config
from passionsr.benchmark.job_graph import Job, build_jobs
from passionsr.benchmark.job_memory import job_memory, memory_budget, too_small
from passionsr.benchmark.plan import plan
from passionsr.benchmark.schedule import schedule
from passionsr.utils.files import UserError
from passionsr.utils.machine_memory import VARIABLE, MachineMemory


def test_every_job_has_a_figure():
    """Those of the plan, and all that the rules ask for."""
    config = load_config("config/test.yaml")
    memory = job_memory(config)
    assert {job.kind for job in build_jobs(config, 2, 4).values()} <= memory.keys()
    rules = "".join(path.read_text() for path in sorted(Path("workflow/rules").glob("*.smk")))
    assert memory.keys() == set(re.findall(r'mem_mb=memory_of\("(\w+)"\)', rules))
    assert rules.count("mem_mb=") == rules.count("mem_mb=memory_of(")


def test_measured_peaks_fit():
    """Peak MiB by kind of job, as the page of measurements shows them, plus what varies."""
    page = Path("docs/guides/performance.md").read_text()
    table = page.split("<!-- bench -->")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    peaks = {row[0]: float(row[-1]) for row in rows if len(row) == 6 and row[1][:1].isdigit()}
    assert {"calibrate", "infer", "score"} <= peaks.keys()
    memory = job_memory(load_config("config/mini.yaml"))
    for kind, mib in peaks.items():
        kind = {"probe": "metric_weights"}.get(kind, kind)  # a former name
        assert 1.1 * mib * 1.048576 < memory[kind], kind


def test_a_machine_too_small_for_one_job():
    memory = MachineMemory(3_500, "this machine")
    needs = {"score": 2_400, "calibrate": 3_000, "tables": 1_000}
    assert too_small({"score": 2_500}, memory) is None
    assert too_small({}, memory) is None
    with pytest.raises(UserError) as err:
        memory_budget(needs, memory)
    assert str(err.value) == (
        "too little memory: calibrate may take 3000 MB, and jobs may take 2500 MB (3500 MB of this "
        "machine less 1000 MB for everything else); use a larger machine or limit, or, if you "
        "know better, say what jobs may take: --resources mem_mb=3000"
    )
    assert memory_budget({"tables": 1_000}, memory) == 2_500


def running(made, jobs, at):
    return [label for label in jobs if made.start[label] <= at < made.end[label]]


@pytest.mark.parametrize("budget", [3_000, 7_100, 14_400, 50_000])
def test_no_schedule_takes_more(budget):
    """Eight at once on a laptop with 16 GB would take 24 GB."""
    config = load_config("config/mini-full.yaml")
    jobs, memory = build_jobs(config, 10, 32), job_memory(config)
    seconds = {label: 1 + len(label) % 7 for label in jobs}
    made = schedule(jobs, seconds, 8, memory, budget)
    most = 0
    for label in jobs:
        together = running(made, jobs, made.start[label])
        assert sum(memory[jobs[other].kind] for other in together) <= budget
        most = max(most, sum(jobs[other].kind == "calibrate" for other in together))
    assert most == min(8, budget // 3_000)


def test_a_job_that_asks_for_more_than_there_is_runs_alone():
    """As Snakemake does at a second attempt, which asks for twice the memory."""
    jobs = {name: Job(name, 1) for name in ("infer-a", "infer-b", "data-c")}
    made = schedule(jobs, dict.fromkeys(jobs, 1.0), 3, {"infer": 9, "data": 1}, 5)
    assert made.makespan == 3
    assert schedule(jobs, dict.fromkeys(jobs, 1.0), 3).makespan == 1


def test_the_plan_counts_with_this_machine(monkeypatch):
    config = dataclasses.replace(load_config("config/mini-full.yaml"), name="nothing-ran")
    hours = {}
    for total in ("8000", "16000", "64000"):
        monkeypatch.setenv(VARIABLE, total)
        text = plan(config, 8)
        hours[total] = float(re.search(r"wall time with 8 GPU\(s\): (\S+) ", text)[1])
        counted = {"8000": 2, "16000": 4, "64000": 19}[total]
        assert f"{counted} calibration(s) of 3000 MB at once" in text
    assert hours["8000"] > 1.5 * hours["16000"] > 1.5 * hours["64000"]
    monkeypatch.setenv(VARIABLE, "3000")
    assert "- too little memory: " in plan(config, 8)


def test_a_plan_for_gpus_is_for_other_machines(monkeypatch):
    monkeypatch.setenv(VARIABLE, "2000")
    text = plan(load_config("config/paper.yaml"), 8)
    assert "memory" not in text
