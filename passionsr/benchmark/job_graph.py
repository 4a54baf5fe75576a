"""The jobs of a configuration, the work that each has to do, and the jobs that each waits for.

These are the workflow's jobs (tests compare them with Snakemake's own graph), known without running
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from passionsr.benchmark.config import BICUBIC, FP32, Config
from passionsr.data.image_folders import images_in
from passionsr.methods.declared import options_with_defaults


@dataclass(frozen=True)
class Job:
    """One job of the workflow.

    label: as its benchmark file and its log are named, such as calibrate-minmax-W8A8-UV-s0. units:
    its work: image visits of a calibration, images of the others, 1 where neither counts. needs:
    labels of the jobs it waits for. method_class: of the quantization method, or "*".
    """

    label: str
    units: float
    needs: tuple[str, ...] = ()
    method_class: str = "*"

    @property
    def kind(self) -> str:
        """The kind of job (calibrate, infer, ...), which is the first part of the label."""
        return self.label.partition("-")[0]


def visits(options: Mapping[str, Any], images: int, batch: int) -> float:
    """Image visits of one calibration by a method's options; one pass where nothing is trained."""
    if "weight_steps" in options:  # Q-Diffusion: steps of its own batch size
        return (options["weight_steps"] + options["act_steps"]) * options["batch"]
    if "epochs" in options:
        return images * options["epochs"]
    if "steps" in options:
        return options["steps"] * min(batch, images)
    return images


def build_jobs(config: Config, test: int, calibration: int) -> dict[str, Job]:
    """Every job of `snakemake all`, label -> Job. test, calibration: number of images."""
    jobs = [Job("data", 1), Job("metric_weights", 1), Job("reference", test, ("data",))]
    if config.sensitivity:
        jobs.append(Job("sensitivity", 1, ("data",)))
    groups: dict[str, list[str]] = {"W32A32": []}
    for run in config.runs:
        groups.setdefault(run.scheme, []).append(run.run_id)
        target = config.entries[run.method].target
        options = options_with_defaults(target, config.options(run))
        work = visits(options, calibration, config.batch_size)
        jobs.append(Job(f"calibrate-{run.run_id}", work, ("data",), target))
        jobs.append(Job(f"infer-{run.run_id}", test, ("data", f"calibrate-{run.run_id}")))
    for scheme, members in groups.items():  # one scoring job per bit width
        needs = ("data", "metric_weights", "reference", *(f"infer-{m}" for m in members))
        scored = len(members) if members else len((FP32, BICUBIC))
        jobs.append(Job(f"score-{scheme}", test * scored, needs))
    for external in config.external_outputs:
        count = len(images_in(external.folder))
        jobs.append(Job(f"score-{external.name}", count, ("data", "metric_weights")))
    calibrated = tuple(f"calibrate-{run.run_id}" for run in config.runs)
    inferred = tuple(f"infer-{run.run_id}" for run in config.runs)
    scored_runs = tuple(f"score-{scheme}" for scheme in groups if groups[scheme])
    drawn = ("data", "reference", *(("sensitivity",) if config.sensitivity else ()))
    scores = tuple(job.label for job in jobs if job.kind == "score")
    jobs.append(Job("tables", 1, (*scores, *calibrated)))
    jobs.append(Job("table3", 1, calibrated))
    jobs.append(Job("figures", 1, (*scored_runs, *calibrated, *inferred, *drawn)))
    return {job.label: job for job in jobs}
