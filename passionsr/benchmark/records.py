"""What a calibration writes about itself, runs/<run_id>/run.json: its one writer and one reader."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from passionsr.benchmark.config import Config, Run
from passionsr.benchmark.paths import record_file
from passionsr.utils.files import UserError, read_json, write_json
from passionsr.utils.system import git_sha, package_versions, peak_mib

log = logging.getLogger(__name__)


class Phases:
    """Measures the parts of a calibration job one after the other.

    device: of the job, whose memory is measured (`passionsr.utils.system.peak_mib`).
    rows: phase (its name), seconds, peak_mib (largest memory so far), one per part.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.rows: list[dict[str, Any]] = []
        self._began = time.perf_counter()

    def end(self, name: str) -> None:
        """Call when `name` is over and the next begins."""
        now = time.perf_counter()
        seconds, peak = now - self._began, peak_mib(self.device)
        self.rows.append({"phase": name, "seconds": round(seconds, 2), "peak_mib": round(peak)})
        log.info("%s: %.1f s, %d MiB", name, seconds, peak)
        self._began = now


class Phase(BaseModel):
    """One part of a calibration job, such as "load" or "quantize".

    peak_mib: the largest memory so far, which includes earlier phases; see `RunRecord.memory`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: str
    seconds: float
    peak_mib: int


class RunRecord(BaseModel):
    """The content of run.json.

    What identifies the run and what it was made with:

    run: method, scheme, scope and seed. method_class: "module:Class" of the method (key "class").
    options: the method's options as the configuration gives them. config, config_digest: name of
    the configuration and hash of all of it. run_digest: hash of what this run depends on in it.
    git: commit, "-dirty" appended where files were changed. versions: package -> version. device:
    its name. threads: torch threads.

    What was measured: model_bytes: size of the quantized model with packed codes, byte. seconds:
    from the start of the job to the end of quantization. fit_seconds, fit_peak_mib: per fit stage,
    such as encoder.let (keys "stage_seconds", "stage_peak_mib"). phases: parts of the whole job, in
    order. memory: whose memory every number in MiB is: "host", resident memory of the process, or
    "gpu", what its tensors took there (torch.cuda.max_memory_allocated). peak_mib: largest memory
    of the job. peak_mib_before_calibration: the same when the float model had been loaded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    run: dict[str, Any]
    method_class: str = Field(validation_alias="class", serialization_alias="class")
    options: dict[str, Any]
    config: str
    config_digest: str
    run_digest: str
    git: str
    versions: dict[str, str]
    device: str
    threads: int
    model_bytes: int
    seconds: float
    fit_seconds: dict[str, float] = Field(
        validation_alias="stage_seconds", serialization_alias="stage_seconds"
    )
    fit_peak_mib: dict[str, int] = Field(
        validation_alias="stage_peak_mib", serialization_alias="stage_peak_mib"
    )
    phases: list[Phase]
    memory: Literal["host", "gpu"] = "host"  # of records from before there were GPUs
    peak_mib: int
    peak_mib_before_calibration: int


# Keys of run.json that differ from run to run; every other value is the same in each.
MEASURED_FIELDS = (
    "seconds",
    "stage_seconds",
    "stage_peak_mib",
    "phases",
    "peak_mib",
    "peak_mib_before_calibration",
)


def write_record(
    config: Config,
    run: Run,
    *,
    device: str,
    model_bytes: int,
    seconds: float,
    fits: Sequence[Mapping[str, Any]],
    phases: Phases,
) -> RunRecord:
    """Write run.json of a finished calibration; the other arguments are fields of `RunRecord`.

    seconds: not rounded. fits: rows with stage, seconds and peak_mib (MiB), one per fit stage.
    phases: the first of them loads the float model.
    """
    record = RunRecord(
        run=dataclasses.asdict(run),
        method_class=config.entries[run.method].target,
        options=config.options(run),
        config=config.name,
        config_digest=config.digest,
        run_digest=config.run_digest(run),
        git=git_sha(),
        versions=package_versions(),
        device=device,
        threads=config.threads,
        model_bytes=model_bytes,
        seconds=round(seconds, 2),
        fit_seconds={fit["stage"]: round(fit["seconds"], 2) for fit in fits},
        fit_peak_mib={fit["stage"]: fit["peak_mib"] for fit in fits},
        phases=[Phase(**row) for row in phases.rows],
        memory="host" if config.device == "cpu" else "gpu",
        peak_mib=round(peak_mib(config.device)),
        peak_mib_before_calibration=phases.rows[0]["peak_mib"],
    )
    write_json(record_file(config, run.run_id), record.model_dump(by_alias=True))
    return record


def read_record(config: Config, run_id: str) -> RunRecord:
    """run.json of a run; UserError if it is missing, damaged or of another version."""
    path = record_file(config, run_id)
    try:
        return RunRecord.model_validate(read_json(path))
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(map(str, first["loc"])) or "top level"
        raise UserError(
            f"{path}: not the record of a run ({key}: {first['msg']}); it is damaged or of "
            "another version: delete its folder and run again"
        ) from None


def check_run(config: Config, run_id: str) -> None:
    """UserError unless a run's artifact was made from this very configuration."""
    made = read_record(config, run_id).run_digest
    expected = config.run_digest(config.run(run_id))
    if made != expected:
        raise UserError(
            f"{run_id}: its artifact comes from another configuration ({made}, expected "
            f"{expected}); delete its folder and run again"
        )
