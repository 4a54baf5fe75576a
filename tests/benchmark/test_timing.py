"""Times of jobs: what a job logs, what Snakemake's benchmark files say, and the table over both."""

import logging
import subprocess
import sys
import time

import pytest

from passionsr.benchmark import timing
from passionsr.benchmark.timing import job_times, read_time, report
from passionsr.utils.files import write_text

HEAD = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


def write(results, label, seconds, began="10:00:00.000", startup=2.0, peak=300):
    """One job's files, as Snakemake and workflow/scripts/job.py write them."""
    row = f"{seconds:.2f}\t0:00:09\t12.5\tNA\tNA\tNA\tNA\tNA\tNA\tNA\n"
    write_text(results / "benchmarks" / f"{label}.tsv", HEAD + row)
    lines = [
        f"10:00:02 started 2026-11-25T{began}+00:00, ready after {startup:.2f} s",
        "10:00:03 peak memory of something else",
        f"10:00:09 peak memory {peak} MiB",
    ]
    write_text(results / "logs" / f"{label}.log", "\n".join(lines) + "\n")


def test_a_job_from_its_two_files(tmp_path):
    write(tmp_path, "infer-a", 9.25, startup=2.5, peak=1234)
    made = read_time(tmp_path, "infer-a")
    assert (made.kind, made.startup_s, made.work_s, made.seconds) == ("infer", 2.5, 6.75, 9.25)
    assert made.peak_mib == 1234  # not Snakemake's samples
    assert made.began == pytest.approx(1795600800, abs=0)


def test_the_last_attempt_counts(tmp_path):
    """A benchmark file with several rows (`repeat`) and a log of several attempts.

    The last of each.
    """
    write(tmp_path, "score-W4A4", 9)
    table, log = tmp_path / "benchmarks" / "score-W4A4.tsv", tmp_path / "logs" / "score-W4A4.log"
    with table.open("a") as stream:
        stream.write("5.00\t0:00:05\t12.5\tNA\tNA\tNA\tNA\tNA\tNA\tNA\n")
    with log.open("a") as stream:
        stream.write(
            "started 2026-11-25T11:00:00.000+00:00, ready after 1.00 s\npeak memory 7 MiB\n"
        )
    made = read_time(tmp_path, "score-W4A4")
    assert (made.startup_s, made.work_s, made.peak_mib) == (1, 4, 7)
    assert made.began == 1795600800 + 3600


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("benchmarks/data.tsv", None),
        ("benchmarks/data.tsv", HEAD),
        ("logs/data.log", None),
        ("logs/data.log", "started 2026-11-25T10:00:00.000+00:00, ready after 1.00 s\n"),
        ("logs/data.log", "peak memory 7 MiB\n"),
    ],
)
def test_what_has_not_finished_has_no_time(tmp_path, name, text):
    """No benchmark file, no log, or a log that is of a job still running."""
    write(tmp_path, "data", 9)
    assert read_time(tmp_path, "data") is not None
    (tmp_path / name).unlink()
    if text is not None:
        write_text(tmp_path / name, text)
    assert read_time(tmp_path, "data") is None
    assert job_times(tmp_path) == []


def test_table(tmp_path):
    write(tmp_path, "infer-b", 30, "10:01:00.500", startup=5, peak=800)
    write(tmp_path, "infer-a", 10, "10:00:30.000", startup=5, peak=900)
    write(tmp_path, "data", 2, "10:00:00.000", startup=1, peak=90)
    assert [job.label for job in job_times(tmp_path)] == ["data", "infer-a", "infer-b"]
    lines = report(tmp_path).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:4]]
    assert rows == [["data", "1", "2.0", "2.0", "50.0", "90"],
                    ["infer", "2", "40.0", "30.0", "25.0", "900"]]  # fmt: skip
    # 90.5 s: from 10:00:00 to 10:01:00.5 + 30 s
    assert lines[-1] == (
        "wall time 90 s from the first job's start to the last one's end; 42 s in 3 jobs, of which "
        "11 s (26 %) start-up and imports"
    )
    assert (
        report(tmp_path / "none")
        == f"{tmp_path}/none: no times of finished jobs; run the workflow first"
    )


def test_what_a_job_logs_is_what_is_read(tmp_path):
    """A real process: it began before its 0.4 s of start-up, and its 300 MiB are its peak.

    A shell starts it, as in the workflow: a process counts what the one that started it had in
    memory.
    """
    code = (
        "import logging, time; logging.basicConfig(level=logging.INFO, format='%(asctime)s "
        "%(message)s')\n"
        "from passionsr.benchmark import timing\n"
        "time.sleep(0.4); timing.log_ready(); x = bytearray(300 << 20); del x; timing.log_peak()"
    )
    before = time.time()
    result = subprocess.run(
        ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, code],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    took = time.time() - before
    write(tmp_path, "data", took)
    write_text(tmp_path / "logs" / "data.log", result.stderr)
    made = read_time(tmp_path, "data")
    # 0.02 s: the kernel counts process starts in ticks of 0.01 s
    assert before - 0.02 <= made.began <= before + took - made.startup_s + 0.02
    assert 0.4 <= made.startup_s <= took + 0.02
    assert 300 <= made.peak_mib <= 500


def test_the_age_of_this_process(caplog):
    """Start-up grows with the clock and is not that of another process."""
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "from passionsr.benchmark.timing import _process_age as a; print(a())",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0 < float(child.stdout) < timing._process_age()
    with caplog.at_level(logging.INFO):
        timing.log_ready()
    assert timing._READY.search(caplog.text)
