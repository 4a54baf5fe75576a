"""Seconds and memory of finished jobs, from Snakemake's benchmark files and the jobs' own logs.

The seconds of a job come from results/<name>/benchmarks/<job>.tsv: Snakemake writes this file when
the job has succeeded, on a cluster too, and it always describes the last attempt. Three facts are
not in it; a job logs them in results/<name>/logs/<job>.log, which holds the last attempt only, too:

- when it began; the time stamps of files do not survive every copy;
- how long start-up and imports took: `passionsr plan` scales the work of a job, not its start-up;
- its peak memory as the kernel counts it. Snakemake's `max_rss` is the largest of some samples, one
  in 30 s after the first 15 s: on config/mini.yaml it missed a third of a calibration's peak.
"""

from __future__ import annotations

import logging
import os
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from passionsr.utils.files import read_rows
from passionsr.utils.foreign_files import is_foreign
from passionsr.utils.system import peak_mib

log = logging.getLogger(__name__)

BENCHMARKS, LOGS = "benchmarks", "logs"
_READY = re.compile(r"started (\S+), ready after (\d+\.\d+) s$", re.M)
_PEAK = re.compile(r"peak memory (\d+) MiB$", re.M)


@dataclass(frozen=True)
class JobTime:
    """One finished job.

    label: name of its benchmark file and of its log, such as infer-minmax-W8A8-UV-s0. began: Unix
    time, s. work_s: what follows start-up and imports. peak_mib: largest resident memory.
    """

    label: str
    began: float
    startup_s: float
    work_s: float
    peak_mib: int

    @property
    def kind(self) -> str:
        """The kind of job: infer, calibrate, ..."""
        return self.label.partition("-")[0]

    @property
    def seconds(self) -> float:
        """From the start of the process to its end."""
        return self.startup_s + self.work_s


# -- what a job logs ----------------------------------------------------------------------------


def _process_age() -> float:
    """Seconds since this process was started; psutil's `create_time` is up to a second off."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), from boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def log_ready() -> None:
    """Log when this process began and how long start-up took; call when everything is imported."""
    age = _process_age()
    began = datetime.fromtimestamp(time.time() - age, UTC)
    log.info("started %s, ready after %.2f s", began.isoformat(timespec="milliseconds"), age)


def log_peak() -> None:
    """Log the peak memory of this process; call it when the work is done."""
    log.info("peak memory %d MiB", round(peak_mib()))


# -- reading it ---------------------------------------------------------------------------------


def read_time(results: Path, label: str) -> JobTime | None:
    """Times of one job in results/<name>; None where it has not finished or did not log them."""
    try:
        rows = read_rows(results / BENCHMARKS / f"{label}.tsv", ["s"], "\t", more=True)
        text = (results / LOGS / f"{label}.log").read_text(encoding="utf-8", errors="replace")
        seconds = float(rows[-1][1]["s"]) if rows else 0.0
    except (FileNotFoundError, ValueError):  # not there, or not written by Snakemake
        return None
    ready, peak = _READY.findall(text), _PEAK.findall(text)
    if not (rows and ready and peak):
        return None
    began, startup = datetime.fromisoformat(ready[-1][0]).timestamp(), float(ready[-1][1])
    work = max(0.0, seconds - startup)
    return JobTime(label, began, startup, work, int(peak[-1]))


def job_times(results: Path) -> list[JobTime]:
    """Every finished job of results/<name>, in the order in which they began."""
    files = (results / BENCHMARKS).glob("*.tsv")
    labels = [path.stem for path in files if not is_foreign(path.name)]
    found = [made for label in labels if (made := read_time(results, label)) is not None]
    return sorted(found, key=lambda job: (job.began, job.label))


def report(results: Path) -> str:
    """A Markdown table: jobs, seconds and memory per kind of job; below it the wall time."""
    from tabulate import tabulate

    jobs = job_times(results)
    if not jobs:
        return f"{results}: no times of finished jobs; run the workflow first"
    rows = []
    for kind in dict.fromkeys(job.kind for job in jobs):
        group = [job for job in jobs if job.kind == kind]
        seconds, startup = sum(j.seconds for j in group), sum(j.startup_s for j in group)
        longest, peak = max(j.seconds for j in group), max(j.peak_mib for j in group)
        rows.append([kind, len(group), seconds, longest, 100 * startup / seconds, peak])
    head = ["kind of job", "jobs", "seconds", "longest", "start-up %", "peak MiB"]
    wall = max(job.began + job.seconds for job in jobs) - jobs[0].began
    total, startup = sum(job.seconds for job in jobs), sum(job.startup_s for job in jobs)
    return "\n".join(
        [
            tabulate(rows, head, tablefmt="github", floatfmt=".1f"),
            "",
            f"wall time {wall:.0f} s from the first job's start to the last one's end; "
            f"{total:.0f} s in {len(jobs)} jobs, of which {startup:.0f} s "
            f"({100 * startup / total:.0f} %) start-up and imports",
        ]
    )
