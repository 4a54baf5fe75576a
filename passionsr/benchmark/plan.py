"""What a configuration costs on K workers: jobs, hours, disk and the critical path, before anything runs.

The jobs and what each waits for are the workflow's (tests compare them with Snakemake's own graph). Times are measured:
those of a finished run of this very configuration, else rows of config/stage_times.tsv, scaled by the work to do:

- calibrate: image visits: images x epochs, or steps x images per step, by the method's own options;
- reference and infer: test images; score: test images x runs;
- data, probe, sensitivity, tables, table3, figures: one job of that model.

Start-up and imports are not scaled. A stage of the model that nobody has measured at its scale is taken from the mini model's row, times what
PassionSR's calibration of one image takes here and there; other jobs count 0 s. The plan says which times are what.
"""

from __future__ import annotations

import csv
import fnmatch
import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from passionsr.benchmark.config import BICUBIC, FP32, Config
from passionsr.benchmark.paths import calibration_pairs, image_folder, pairs_to_test, run_folder
from passionsr.benchmark.timing import TIMING
from passionsr.data.crops import read_crops
from passionsr.utils.files import UserError, read_json, write_text

TIMES = Path("config/stage_times.tsv")
HEADER = (
    "# Measured stage times for `passionsr plan`; the first matching row counts. model: a pattern over `model:` of a configuration.\n"
    "# class: of the method, or *. units: work behind work_s (passionsr/plan.py); mb_*: what a job leaves on disk.\n"
)
COLUMNS = ("model", "stage", "class", "units", "startup_s", "work_s", "mb_per_job", "mb_per_unit", "source")  # fmt: skip
SCALED = ", scaled by PassionSR's calibration"
SCALE_FROM, PASSIONSR = "models/mini", "passionsr.methods.passionsr:PassionSR"
RUN_THE_MODEL = ("reference", "calibrate", "sensitivity", "infer")
# The profile gives scoring no GPU; the others take minutes on one CPU core at every scale.
ON_GPU = RUN_THE_MODEL


@dataclass(frozen=True)
class Job:
    """One job. label: as in results/<name>/timing; units: its work; needs: labels of the jobs it waits for."""

    label: str
    units: float
    needs: tuple[str, ...] = ()
    method_class: str = "*"

    @property
    def stage(self) -> str:
        """The stage, which is also the first part of the label."""
        return self.label.partition("-")[0]


@dataclass(frozen=True)
class Estimate:
    """Time and disk of one job. source: where the numbers come from, None if there are none."""

    seconds: float
    megabytes: float
    source: str | None


@dataclass(frozen=True)
class Schedule:
    """Start and end of every job in seconds, on GPUs or (other stages) on the CPU."""

    start: dict[str, float]
    end: dict[str, float]
    critical: list[str]

    @property
    def makespan(self) -> float:
        """End of the last job."""
        return max(self.end.values(), default=0.0)


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
    from passionsr.methods.base import load_method

    jobs = [
        Job("data-all", 1),
        Job("probe-all", 1),
        Job("reference-all", test, ("data-all",)),
    ]
    if config.sensitivity:
        jobs.append(Job("sensitivity-all", 1, ("data-all",)))
    groups = {"W32A32": [FP32, BICUBIC]}
    for run in config.runs:
        groups.setdefault(run.scheme, []).append(run.run_id)
        target = config.entries[run.method].target
        options = vars(load_method(target, config.options(run)))
        work = visits(options, calibration, config.batch_size)
        jobs.append(Job(f"calibrate-{run.run_id}", work, ("data-all",), target))
        jobs.append(Job(f"infer-{run.run_id}", test, ("data-all", f"calibrate-{run.run_id}")))
    for members in groups.values():
        made = [f"infer-{m}" for m in members if m not in (FP32, BICUBIC)]
        needs = ("data-all", "probe-all", "reference-all", *made)
        jobs.append(Job(f"score-{members[0]}", test * len(members), needs))
    scores = [job.label for job in jobs if job.stage == "score"]
    runs = [f"{kind}-{run.run_id}" for run in config.runs for kind in ("calibrate", "infer")]
    drawn = ["data-all", "reference-all", *(["sensitivity-all"] if config.sensitivity else [])]
    jobs.append(Job("tables-all", 1, (*scores, *runs[::2])))
    jobs.append(Job("table3-all", 1, tuple(runs[::2])))
    jobs.append(Job("figures-all", 1, (*scores[1:], *runs, *drawn)))
    return {job.label: job for job in jobs}


def read_times(path: Path) -> list[dict[str, str]]:
    """Rows of a times file; UserError for a missing file or other columns."""
    if not path.is_file():
        raise UserError(f"{path}: times file not found")
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    rows = list(csv.DictReader(lines, delimiter="\t"))
    if not rows or tuple(rows[0]) != COLUMNS:
        raise UserError(f"{path}: expected tab-separated columns {', '.join(COLUMNS)}")
    return rows


def _megabytes(folders: Sequence[Path]) -> float:
    return sum(f.stat().st_size for d in folders for f in d.rglob("*") if f.is_file()) / 1e6


def folders(config: Config, job: Job) -> list[Path]:
    """Where a job's large products lie; logs, tables and scores are kilobytes."""
    run_id = job.label.partition("-")[2]
    return {
        "data": [config.results / "data"],
        "reference": [image_folder(config, FP32), image_folder(config, BICUBIC)],
        "calibrate": [run_folder(config, run_id)],
        "infer": [image_folder(config, run_id)],
        "figures": [config.results / "figures"],
    }.get(job.stage, [])


def estimate(config: Config, job: Job, times: Sequence[Mapping[str, str]]) -> Estimate:
    """From the finished run of this configuration if there is one, else by the first matching row of `times`, scaled to the job."""
    timing = config.results / TIMING / f"{job.label}.json"
    if timing.is_file():
        row = read_json(timing)
        size = _megabytes(folders(config, job))
        return Estimate(row["startup_s"] + row["work_s"], size, f"{config.results / TIMING}")
    row = _row(times, config.model, job.stage, job.method_class)
    if row:
        seconds = float(row["startup_s"]) + _per_unit(row) * job.units
        size = float(row["mb_per_job"]) + float(row["mb_per_unit"]) * job.units
        return Estimate(seconds, size, row["source"])
    # Not measured at this scale: as the small model's stages are to each other, where both have PassionSR's calibration.
    if job.stage not in RUN_THE_MODEL:
        return Estimate(0.0, 0.0, None)
    row = _row(times, SCALE_FROM, job.stage, job.method_class)
    known, small = (_row(times, m, "calibrate", PASSIONSR) for m in (config.model, SCALE_FROM))
    if not (row and known and small):
        return Estimate(0.0, 0.0, None)
    seconds = float(row["startup_s"])
    seconds += _per_unit(row) * job.units * _per_unit(known) / _per_unit(small)
    size = float(known["mb_per_job"]) if job.stage == "calibrate" else 0.0
    return Estimate(seconds, size, f"{SCALE_FROM}{SCALED}")


def _row(
    times: Sequence[Mapping[str, str]], model: str, stage: str, method_class: str
) -> Mapping[str, str] | None:
    """The first row that matches."""
    for row in times:
        here = fnmatch.fnmatch(model, row["model"]) and row["stage"] == stage
        if here and row["class"] in ("*", method_class):
            return row
    return None


def _per_unit(row: Mapping[str, str]) -> float:
    return float(row["work_s"]) / float(row["units"])


def tails(jobs: Mapping[str, Job], seconds: Mapping[str, float]) -> dict[str, float]:
    """Per job the seconds of the longest chain that starts with it."""
    after = defaultdict(list)
    for job in jobs.values():
        for need in job.needs:
            after[need].append(job.label)
    longest: dict[str, float] = {}

    def tail(label: str) -> float:
        if label not in longest:
            longest[label] = seconds[label] + max(map(tail, after[label]), default=0.0)
        return longest[label]

    for label in jobs:
        tail(label)
    return longest


def schedule(jobs: Mapping[str, Job], seconds: Mapping[str, float], gpus: int) -> Schedule:
    """List scheduling: a free GPU takes the ready job with the longest chain behind it; CPU jobs never wait for one."""
    priority = tails(jobs, seconds)
    waiting = {label: set(job.needs) for label, job in jobs.items()}
    start: dict[str, float] = {}
    end: dict[str, float] = {}
    running: list[tuple[float, str]] = []
    free, now = gpus, 0.0
    while len(end) < len(jobs):
        ready = [label for label in jobs if label not in start and not waiting[label]]
        for label in sorted(ready, key=lambda name: (-priority[name], name)):
            gpu = jobs[label].stage in ON_GPU
            if gpu and not free:
                continue
            free -= gpu
            start[label] = now
            heapq.heappush(running, (now + seconds[label], label))
        now, done = heapq.heappop(running)
        end[done] = now
        free += jobs[done].stage in ON_GPU
        for needs in waiting.values():
            needs.discard(done)
    critical = [max(priority, key=lambda name: (priority[name], name))]
    while after := [label for label in jobs if critical[-1] in jobs[label].needs]:
        critical.append(max(after, key=lambda name: (priority[name], name)))
    return Schedule(start, end, critical)


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _test_count(config: Config) -> int:
    """Test images: those that are there, else the counts that the datasets must have."""
    try:
        return len(pairs_to_test(config))
    except (UserError, OSError) as err:
        counts = [d.count for d in config.datasets]
        if config.test or None in counts:
            raise UserError(
                f"how many images? give --test-images, or make the data first ({err})"
            ) from None
        limit = config.limits.get("test")
        return sum(count if limit is None else min(count, limit) for count in counts)


def _calibration_count(config: Config) -> int:
    """Calibration images; of photographs that are not there, the crops listed."""
    if config.photos:
        return len(read_crops(config.calibration)[: config.limits.get("calibration")])
    return len(calibration_pairs(config))


def plan(config: Config, gpus: int, times: Path = TIMES, test_images: int | None = None) -> str:
    """The plan as Markdown.

    test_images: where the data says it only once it is there. Raises UserError for a bad number of GPUs or times file.
    """
    if gpus < 1:
        raise UserError(f"--gpus {gpus}: give 1 or more")
    test, calibration = test_images or _test_count(config), _calibration_count(config)
    jobs = build_jobs(config, test, calibration)
    rows = read_times(times)
    estimates = {label: estimate(config, job, rows) for label, job in jobs.items()}
    seconds = {label: e.seconds for label, e in estimates.items()}
    made = schedule(jobs, seconds, gpus)
    by_stage = Counter(job.stage for job in jobs.values())
    table = []
    for stage, count in by_stage.items():
        here = [label for label, job in jobs.items() if job.stage == stage]
        total, size = (
            sum(getattr(estimates[n], k) for n in here) for k in ("seconds", "megabytes")
        )
        longest = max(here, key=lambda name: seconds[name])
        unknown = sum(estimates[n].source is None for n in here)
        where = "GPU" if stage in ON_GPU else "CPU"
        table.append(
            [stage, where, count, total / 3600, seconds[longest] / 60, size / 1000, unknown or ""]
        )
    gpu = sum(s for label, s in seconds.items() if jobs[label].stage in ON_GPU)
    chain = sum(seconds[label] for label in made.critical)
    size = sum(e.megabytes for e in estimates.values()) / 1000
    sources = Counter(e.source for e in estimates.values() if e.source)
    unknown = sum(e.source is None for e in estimates.values())
    lines = [
        f"{config.name}: {len(jobs)} jobs for {len(config.runs)} runs, {test} test and {calibration} calibration images",
        "",
        tabulate(
            table, ["stage", "on", "jobs", "hours", "longest (min)", "GB", "no time known"],
            "github", floatfmt=("", "", "", ".2f", ".1f", ".2f", ""),
        ),
        "",
        f"- GPU-hours: {gpu / 3600:.2f}; disk: {size:.2f} GB of products, twice that with DVC's cache",
        f"- wall time with {gpus} GPU(s): {_span(made.makespan)}; they are busy "
        f"{100 * gpu / max(made.makespan * gpus, 1e-9):.0f} % of it",
        f"- critical path, no number of GPUs is faster: {_span(chain)}: {' -> '.join(made.critical)}",
        *(f"- {count} times from: {source}" for source, count in sources.most_common()),
    ]  # fmt: skip
    if unknown:
        lines.append(f"- {unknown} jobs have no measured time and count 0: hours are a lower bound")
    if any(e.source and SCALED in e.source for e in estimates.values()):
        lines.append(
            "- scaled times are guesses within a small factor, and images are not counted in the disk"
        )
    return "\n".join(lines)


def record(config: Config, times: Path, source: str) -> int:
    """Replace this model's rows in a times file by the means of its finished run; the number of rows."""
    jobs = build_jobs(config, len(pairs_to_test(config)), len(calibration_pairs(config)))
    groups = defaultdict(list)
    for job in jobs.values():
        path = config.results / TIMING / f"{job.label}.json"
        if not path.is_file():
            raise UserError(f"{path}: not found; only a finished run can be recorded")
        groups[job.stage, job.method_class].append((job, read_json(path)))
    new = []
    for (stage, method_class), rows in groups.items():
        count = len(rows)
        units = sum(job.units for job, _ in rows) / count
        size = sum(_megabytes(folders(config, job)) for job, _ in rows) / count
        per_unit = size / units if stage in ("reference", "infer") else 0.0
        means = (sum(t[k] for _, t in rows) / count for k in ("startup_s", "work_s"))
        new.append([config.model, stage, method_class, f"{units:g}", *(f"{m:.2f}" for m in means),
                    f"{0.0 if per_unit else size:.3f}", f"{per_unit:.4f}", source])  # fmt: skip
    kept = [list(row.values()) for row in read_times(times) if row["model"] != config.model]
    lines = ["\t".join(row) for row in [COLUMNS, *new, *kept]]
    write_text(times, HEADER + "\n".join(lines) + "\n")
    return len(new)
