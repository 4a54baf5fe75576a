"""Where the time goes: every job leaves a timing row; `passionsr bench` adds them up."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from passionsr.utils.files import read_json, write_json
from passionsr.utils.system import peak_mib

TIMING = "timing"


class Timer:
    """Measures one stage process: from its start to `ready` is start-up and imports, then work."""

    def __init__(self, results: Path, stage: str, label: str):
        self.path = results / TIMING / f"{stage}-{label}.json"
        self.stage = stage
        self.began = psutil.Process().create_time()
        self.ready_at = time.time()

    def ready(self) -> None:
        """Call when everything is imported."""
        self.ready_at = time.time()

    def finish(self) -> None:
        """Write the row."""
        now = time.time()
        write_json(
            self.path,
            {
                "stage": self.stage,
                "began": self.began,
                "ended": now,
                "startup_s": self.ready_at - self.began,
                "work_s": now - self.ready_at,
                "peak_mib": round(peak_mib()),
            },
        )


def report(results: Path) -> str:
    """A Markdown table over the timing rows of the last run."""
    import pandas as pd
    from tabulate import tabulate

    files = sorted((results / TIMING).glob("*.json"))
    if not files:
        return f"{results / TIMING}: no timings; run the workflow first"
    frame = pd.DataFrame([read_json(f) for f in files])
    frame["total_s"] = frame.startup_s + frame.work_s
    order = frame.groupby("stage").began.min().sort_values().index
    groups = frame.groupby("stage")
    table = pd.DataFrame(
        {
            "jobs": groups.size(),
            "seconds": groups.total_s.sum(),
            "longest": groups.total_s.max(),
            "start-up %": 100 * groups.startup_s.sum() / groups.total_s.sum(),
            "peak MiB": groups.peak_mib.max(),
        }
    ).loc[order]
    wall = frame.ended.max() - frame.began.min()
    total, startup = frame.total_s.sum(), frame.startup_s.sum()
    return "\n".join(
        [
            tabulate(table, headers="keys", tablefmt="github", floatfmt=".1f"),
            "",
            f"wall time {wall:.0f} s from the first job's start to the last one's end; "
            f"{total:.0f} s in {len(frame)} jobs, of which {startup:.0f} s "
            f"({100 * startup / total:.0f} %) start-up and imports",
        ]
    )
