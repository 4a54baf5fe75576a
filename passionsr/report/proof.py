"""The full-size proof: seconds and memory of every part of every run, as the runs recorded them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd
from tabulate import tabulate

from passionsr.benchmark.config import Config, Run
from passionsr.benchmark.paths import record_file, run_folder
from passionsr.benchmark.records import read_record
from passionsr.benchmark.timing import read_time
from passionsr.models.family import get_family
from passionsr.report.rendering import markdown_escape
from passionsr.utils.files import write_text


class PartRow(NamedTuple):
    """One part of a run. steps: of a fit stage, None elsewhere. peak_mib: as in `RunRecord`."""

    run: str
    part: str
    steps: int | None
    seconds: float
    peak_mib: int


def run_rows(config: Config, run: Run) -> list[PartRow]:
    """The phases of a run's calibration, then its inference where that has run.

    Before the phase "quantize" come the fit stages in it, a sub-model's blocks together.
    """
    made = read_record(config, run.run_id)
    fits = pd.read_csv(run_folder(config, run.run_id) / "stages.csv")
    fits["kind"] = fits["stage"].str.split(".").str[:2].str.join(".")
    rows = []
    for phase in made.phases:
        if phase.phase == "quantize":
            for kind, group in fits.groupby("kind", sort=False):  # in the order they ran
                seconds = round(sum(made.fit_seconds[s] for s in group["stage"]), 2)
                peak = max(made.fit_peak_mib[s] for s in group["stage"])
                blocks = f" ({len(group)} blocks)" if len(group) > 1 else ""
                steps = int(group["steps"].sum())
                rows.append(PartRow(run.run_id, f"- {kind}{blocks}", steps, seconds, peak))
        rows.append(PartRow(run.run_id, phase.phase, None, phase.seconds, phase.peak_mib))
    infer = read_time(config.results, f"infer-{run.run_id}")
    if infer is not None:
        seconds = round(infer.work_s, 2)
        rows.append(PartRow(run.run_id, "inference", None, seconds, infer.peak_mib))
    return rows


def summary_titles(parts: Iterable[str], device: str) -> list[str]:
    """Column titles of `summary`; parts: titles of the model's parts, device: where it ran."""
    return [
        "run",
        *(f"{part} layers" for part in parts),
        "attentions",
        "calibration, s",
        "peak RSS, GiB" if device == "cpu" else "peak GPU memory, GiB",
        "artifact packed, MB",
        "inference, s",
        "peak RSS, GiB",
    ]


def summary(config: Config, run: Run) -> list[str]:
    """Counts, seconds and memory of a run, as text cells in the order of `summary_titles`."""
    made = read_record(config, run.run_id)
    layers = pd.read_csv(run_folder(config, run.run_id) / "layers.csv")
    quantized = layers[layers.weight_bits.notna()]
    infer = read_time(config.results, f"infer-{run.run_id}")
    parts = get_family(config.family).parts
    return [
        run.run_id,
        *(str(quantized.name.str.startswith(f"{part}.").sum()) for part in parts),
        str((layers.kind == "attention").sum()),
        f"{sum(phase.seconds for phase in made.phases):.0f}",
        f"{made.peak_mib / 1024:.1f}",
        f"{made.model_bytes / 1e6:.1f}",
        "not run" if infer is None else f"{infer.work_s:.0f}",
        "not run" if infer is None else f"{infer.peak_mib / 1024:.1f}",
    ]


def write_proof(config: Config) -> Sequence[Run]:
    """tables/proof.{csv,md} of the runs that are finished; returns those that are not."""
    finished = [run for run in config.runs if record_file(config, run.run_id).is_file()]
    missing = [run for run in config.runs if run not in finished]
    rows = [row for run in finished for row in run_rows(config, run)]
    stem = config.results / "tables" / "proof"
    frame = pd.DataFrame(rows, columns=list(PartRow._fields))
    write_text(stem.with_suffix(".csv"), frame.to_csv(index=False, lineterminator="\n"))
    cells = [
        [
            row.run,
            row.part,
            "" if row.steps is None else str(row.steps),
            f"{row.seconds:.1f}",
            str(row.peak_mib),
        ]
        for row in rows
    ]
    head = ["run", "part", "steps", "seconds", "peak MiB so far"]
    parts = tabulate(cells, head, "pipe", disable_numparse=True)
    summaries = [summary(config, run) for run in finished]
    titles = summary_titles(get_family(config.family).parts.values(), config.device)
    counts = tabulate(summaries, titles, "pipe", disable_numparse=True)
    made = [read_record(config, run.run_id) for run in finished]
    devices = sorted({f"{config.device} ({m.device}), {m.threads} thread(s)" for m in made})
    absent = f"Not run: {', '.join(run.run_id for run in missing)}.\n\n" if missing else ""
    name = markdown_escape(config.name)
    write_text(
        stem.with_suffix(".md"),
        f"**Full-size proof ({name})**, on {'; '.join(devices)}; one process per job.\n\n"
        f"{counts}\n\n{absent}"
        "Part by part (`- unet.let` is a training step within `quantize`):\n\n"
        f"{parts}\n",
    )
    return missing
