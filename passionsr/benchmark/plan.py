"""What a configuration costs on K GPUs before it runs: jobs, hours, disk and the critical path.

Times are measured: those of a finished run of this very configuration, else rows of
config/job_times.tsv, scaled by the work to do:

- calibrate: image visits: images x epochs, or steps x images per step, by the method's own options;
- reference and infer: test images; score: test images x runs, whose cost does not depend on the
  model;
- data, metric_weights, sensitivity, tables, table3, figures: one job of that model.

Start-up and imports are not scaled. A job that runs the model and that nobody has measured at its
scale is taken from the mini model's row, times the ratio of what PassionSR's calibration of one
image takes here and there; a scoring job from that row as it is. Other jobs count 0 s. The plan
says which times are what.
"""

from __future__ import annotations

import csv
import fnmatch
import io
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from passionsr.benchmark.config import BICUBIC, FP32, Config
from passionsr.benchmark.job_graph import Job, build_jobs
from passionsr.benchmark.job_memory import job_memory, too_small
from passionsr.benchmark.paths import calibration_pairs, image_folder, pairs_to_test, run_folder
from passionsr.benchmark.schedule import ON_GPU, Schedule, schedule
from passionsr.benchmark.timing import BENCHMARKS, JobTime, read_time
from passionsr.data.crops import read_crops
from passionsr.utils.files import UserError, read_rows, write_text
from passionsr.utils.limits import check_limits
from passionsr.utils.machine_memory import MachineMemory, machine_memory

TIMES = Path("config/job_times.tsv")
HEADER = """\
# Measured times of workflow jobs for `passionsr plan`; the first matching row counts. model: a
# pattern over `model:` of a configuration. job: the kind of job. class: of the method, or *. units:
# the work behind work_s (passionsr/benchmark/plan.py says what counts); startup_s does not grow
# with it. mb_per_job, mb_per_unit: what a job leaves on disk.
"""
COLUMNS = (
    "model", "job", "class", "units", "startup_s", "work_s", "mb_per_job", "mb_per_unit", "source",
)  # fmt: skip
NUMBERS = COLUMNS[3:8]
SCALED = ", scaled by PassionSR's calibration"
UNSCALED = ": scores of an image of its size"
SCALE_FROM, PASSIONSR = "models/mini", "passionsr.methods.passionsr:PassionSR"


@dataclass(frozen=True)
class Estimate:
    """Time and disk of one job. source: where the numbers come from, None if there are none."""

    seconds: float
    megabytes: float
    source: str | None


# -- the file of measured times -----------------------------------------------------------------


def read_times(path: Path) -> list[dict[str, str]]:
    """Rows of a times file; UserError for a missing file or other columns."""
    rows = read_rows(path, COLUMNS, "\t", absent="times file not found")
    for line, row in rows:
        for column in NUMBERS:
            try:
                fits = math.isfinite(float(row[column])) and float(row[column]) >= 0
            except ValueError:
                fits = False
            if not fits or (column == "units" and not float(row[column])):
                raise UserError(
                    f"{path} line {line}: {column}: {row[column]!r} given, expected a number of "
                    "at least 0 (units: above 0)"
                )
    return [row for _, row in rows]


def _first_row(
    times: Sequence[Mapping[str, str]], model: str, kind: str, method_class: str
) -> Mapping[str, str] | None:
    """The first row that matches."""
    for row in times:
        here = fnmatch.fnmatch(model, row["model"]) and row["job"] == kind
        if here and row["class"] in ("*", method_class):
            return row
    return None


def _per_unit(row: Mapping[str, str]) -> float:
    return float(row["work_s"]) / float(row["units"])


def record(config: Config, times: Path, source: str) -> int:
    """Replace this model's rows in a times file by the means of its finished run.

    Returns the number of rows; UserError where a job of the configuration has not finished, and
    for a source that is no one line.
    """
    if not source.strip() or not source.isprintable() or '"' in source:
        raise UserError(f"--record {source!r}: give machine and date as one plain line of text")
    jobs = build_jobs(config, len(pairs_to_test(config)), len(calibration_pairs(config)))
    groups: dict[tuple[str, str], list[tuple[Job, JobTime]]] = defaultdict(list)
    for job in jobs.values():
        made = read_time(config.results, job.label)
        if made is None:
            raise UserError(
                f"{config.results / BENCHMARKS / job.label}.tsv: no time of this job; only a "
                "finished run can be recorded"
            )
        groups[job.kind, job.method_class].append((job, made))
    new = []
    for (kind, method_class), rows in groups.items():
        count = len(rows)
        units = sum(job.units for job, _ in rows) / count
        size = sum(_megabytes(folders(config, job)) for job, _ in rows) / count
        per_unit = size / units if kind in ("reference", "infer") else 0.0
        startup = sum(made.startup_s for _, made in rows) / count
        work = sum(made.work_s for _, made in rows) / count
        new.append([config.model, kind, method_class, f"{units:g}", f"{startup:.2f}", f"{work:.2f}",
                    f"{0.0 if per_unit else size:.3f}", f"{per_unit:.4f}", source])  # fmt: skip
    kept = [list(row.values()) for row in read_times(times) if row["model"] != config.model]
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t", lineterminator="\n")
    writer.writerows([COLUMNS, *new, *kept])
    write_text(times, HEADER + out.getvalue())
    return len(new)


# -- one job ------------------------------------------------------------------------------------


def folders(config: Config, job: Job) -> list[Path]:
    """Where a job's large products lie; logs, tables and scores are kilobytes."""
    run_id = job.label.partition("-")[2]
    return {
        "data": [config.results / "data"],
        "reference": [image_folder(config, FP32), image_folder(config, BICUBIC)],
        "calibrate": [run_folder(config, run_id)],
        "infer": [image_folder(config, run_id)],
        "figures": [config.results / "figures"],
    }.get(job.kind, [])


def _megabytes(parts: Sequence[Path]) -> float:
    return sum(f.stat().st_size for d in parts for f in d.rglob("*") if f.is_file()) / 1e6


def estimate(config: Config, job: Job, times: Sequence[Mapping[str, str]]) -> Estimate:
    """Time and disk of a job.

    From the finished run of this configuration if there is one, else by the first matching row of
    `times`, scaled to the job, else by the small model's row (`_scaled_estimate`).
    """
    made = read_time(config.results, job.label)
    if made is not None:
        size = _megabytes(folders(config, job))
        return Estimate(made.seconds, size, f"{config.results / BENCHMARKS}")
    row = _first_row(times, config.model, job.kind, job.method_class)
    if row is None:
        return _scaled_estimate(config, job, times)
    seconds = float(row["startup_s"]) + _per_unit(row) * job.units
    size = float(row["mb_per_job"]) + float(row["mb_per_unit"]) * job.units
    return Estimate(seconds, size, row["source"])


def _scaled_estimate(config: Config, job: Job, times: Sequence[Mapping[str, str]]) -> Estimate:
    """A job nobody has measured at this scale: the small model's time, times PassionSR's ratio."""
    unknown = Estimate(0.0, 0.0, None)
    if job.kind not in ON_GPU:
        return unknown
    row = _first_row(times, SCALE_FROM, job.kind, job.method_class)
    if job.kind == "score" and row is not None:
        seconds = float(row["startup_s"]) + _per_unit(row) * job.units
        return Estimate(seconds, 0.0, f"{SCALE_FROM}{UNSCALED}")
    here = _first_row(times, config.model, "calibrate", PASSIONSR)
    small = _first_row(times, SCALE_FROM, "calibrate", PASSIONSR)
    if row is None or here is None or small is None:
        return unknown
    seconds = float(row["startup_s"])
    seconds += _per_unit(row) * job.units * _per_unit(here) / _per_unit(small)
    size = float(here["mb_per_job"]) if job.kind == "calibrate" else 0.0
    return Estimate(seconds, size, f"{SCALE_FROM}{SCALED}")


# -- the plan -----------------------------------------------------------------------------------


def _test_count(config: Config) -> int:
    """Test images: those that are there, else the counts that the datasets must have."""
    try:
        return len(pairs_to_test(config))
    except (UserError, OSError) as err:
        counts = [d.count for d in config.datasets if d.count is not None]
        if config.test or len(counts) < len(config.datasets):
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


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _table(jobs: Mapping[str, Job], estimates: Mapping[str, Estimate]) -> str:
    """One row per kind of job."""
    rows = []
    for kind, count in Counter(job.kind for job in jobs.values()).items():
        here = [estimates[label] for label, job in jobs.items() if job.kind == kind]
        rows.append(
            [
                kind,
                "GPU" if kind in ON_GPU else "CPU",
                count,
                sum(e.seconds for e in here) / 3600,
                max(e.seconds for e in here) / 60,
                sum(e.megabytes for e in here) / 1000,
                sum(e.source is None for e in here) or "",
            ]
        )
    head = ["kind of job", "on", "jobs", "hours", "longest (min)", "GB", "no time known"]
    return tabulate(rows, head, "github", floatfmt=("", "", "", ".2f", ".1f", ".2f", ""))


def _summary(
    jobs: Mapping[str, Job], estimates: Mapping[str, Estimate], made: Schedule, gpus: int
) -> list[str]:
    """The lines below the table: totals, wall time, critical path and sources."""
    gpu = sum(e.seconds for label, e in estimates.items() if jobs[label].kind in ON_GPU)
    chain = sum(estimates[label].seconds for label in made.critical)
    size = sum(e.megabytes for e in estimates.values()) / 1000
    busy = 100 * gpu / max(made.makespan * gpus, 1e-9)
    sources = Counter(e.source for e in estimates.values() if e.source)
    unknown = sum(e.source is None for e in estimates.values())
    lines = [
        f"- GPU-hours: {gpu / 3600:.2f}; disk: {size:.2f} GB of products, twice that with DVC's "
        "cache",
        f"- wall time with {gpus} GPU(s): {_span(made.makespan)}; they are busy {busy:.0f} % of it",
        f"- critical path, no number of GPUs is faster: {_span(chain)}: "
        f"{' -> '.join(made.critical)}",
        *(f"- {count} times from: {source}" for source, count in sources.most_common()),
    ]
    if unknown:
        lines.append(f"- {unknown} jobs have no measured time and count 0: hours are a lower bound")
    if any(SCALED in source for source in sources):
        lines.append(
            "- scaled times are guesses within a small factor, and images are not counted in the "
            "disk"
        )
    return lines


def _memory_line(memory: Mapping[str, int], machine: MachineMemory) -> str:
    """What the memory of this machine means for the schedule."""
    problem = too_small(memory, machine)
    if problem is not None:
        return f"- {problem}"
    needed = memory["calibrate"]
    count = machine.for_jobs_mb // needed
    return (
        f"- memory: jobs here may take {machine}: {count} calibration(s) of {needed} MB at once, "
        "whatever --gpus or --cores says"
    )


def plan(config: Config, gpus: int, times: Path = TIMES, test_images: int | None = None) -> str:
    """The plan as Markdown.

    Jobs on the CPU are planned within the memory of this machine, as a local run is; a
    configuration for GPUs is not, because it is planned for other machines.

    test_images: number of test images, where only the data itself would say it.
    Raises UserError for a number below 1 or a bad times file.
    """
    check_limits("--gpus", gpus, 1)
    if test_images is None:
        test_images = _test_count(config)
    check_limits("--test-images", test_images, 1)
    calibration = _calibration_count(config)
    jobs = build_jobs(config, test_images, calibration)
    rows = read_times(times)
    estimates = {label: estimate(config, job, rows) for label, job in jobs.items()}
    seconds = {label: e.seconds for label, e in estimates.items()}
    memory = job_memory(config)
    machine = machine_memory() if config.device == "cpu" else None
    made = schedule(jobs, seconds, gpus, memory, machine.for_jobs_mb if machine else None)
    lines = [
        f"{config.name}: {len(jobs)} jobs for {len(config.runs)} runs, {test_images} test "
        f"and {calibration} calibration images",
        "",
        _table(jobs, estimates),
        "",
        *_summary(jobs, estimates, made, gpus),
        *([_memory_line(memory, machine)] if machine else []),
    ]
    return "\n".join(lines)
