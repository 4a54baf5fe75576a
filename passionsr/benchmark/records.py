"""What a calibration writes about itself: seconds and memory per phase, and which configuration made it."""

from __future__ import annotations

import logging
import time
from typing import Any

from passionsr.benchmark.config import Config
from passionsr.benchmark.paths import run_folder
from passionsr.utils.files import (
    UserError,
    read_json,
)

log = logging.getLogger(__name__)


class Phases:
    """Seconds of each part of a job, and the process's largest memory so far."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._began = time.perf_counter()

    def end(self, name: str) -> None:
        """Call when `name` is over and the next begins."""
        from passionsr.utils.system import peak_mib

        now = time.perf_counter()
        seconds = round(now - self._began, 2)
        self.rows.append({"phase": name, "seconds": seconds, "peak_mib": round(peak_mib())})
        log.info("%s: %.1f s, %d MiB", name, seconds, peak_mib())
        self._began = now


def check_run(config: Config, run_id: str) -> None:
    """UserError unless a run's artifact was made from this very configuration."""
    made = read_json(run_folder(config, run_id) / "run.json")["run_digest"]
    expected = config.run_digest(config.run(run_id))
    if made != expected:
        raise UserError(
            f"{run_id}: its artifact comes from another configuration ({made}, expected {expected}); "
            "delete its folder and run again"
        )
