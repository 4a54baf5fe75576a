"""The full-size proof's table: seconds and memory of every stage of every method, from what the runs recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from tabulate import tabulate

from passionsr.benchmark.config import Config, Run
from passionsr.benchmark.paths import run_folder
from passionsr.benchmark.timing import TIMING
from passionsr.utils.files import read_json, write_text

COLUMNS = ("run", "part", "steps", "seconds", "peak_mib")


def run_rows(config: Config, run: Run) -> list[dict[str, Any]]:
    """One row per phase and, before "quantize", per training stage, a sub-model's blocks together; peaks are the process's largest so far."""
    folder = run_folder(config, run.run_id)
    made = read_json(folder / "run.json")
    stages = pd.read_csv(folder / "stages.csv")
    stages["kind"] = stages["stage"].str.split(".").str[:2].str.join(".")
    rows = []
    for phase in made["phases"]:
        if phase["phase"] == "quantize":
            for kind, group in stages.groupby("kind", sort=False):  # in the order they ran
                seconds = round(sum(made["stage_seconds"][s] for s in group["stage"]), 2)
                peak = max(made["stage_peak_mib"][s] for s in group["stage"])
                blocks = f" ({len(group)} blocks)" if len(group) > 1 else ""
                part = f"- {kind}{blocks}"
                rows.append((run.run_id, part, int(group["steps"].sum()), seconds, peak))
        rows.append((run.run_id, phase["phase"], None, phase["seconds"], phase["peak_mib"]))
    timing = config.results / TIMING / f"infer-{run.run_id}.json"
    if timing.is_file():
        infer = read_json(timing)
        rows.append((run.run_id, "inference", None, round(infer["work_s"], 2), infer["peak_mib"]))
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def summary(config: Config, run: Run) -> list[str]:
    """Counts, seconds and memory of a run, as text cells."""
    folder = run_folder(config, run.run_id)
    made = read_json(folder / "run.json")
    layers = pd.read_csv(folder / "layers.csv")
    quantized = layers[layers.weight_bits.notna()]
    timing = config.results / TIMING / f"infer-{run.run_id}.json"
    infer = read_json(timing) if timing.is_file() else None
    return [
        run.run_id,
        str(quantized.name.str.startswith("unet.").sum()),
        str(quantized.name.str.startswith("vae.").sum()),
        str((layers.kind == "attention").sum()),
        f"{sum(p['seconds'] for p in made['phases']):.0f}",
        f"{made['peak_mib'] / 1024:.1f}",
        f"{made['model_bytes'] / 1e6:.1f}",
        "not run" if infer is None else f"{infer['work_s']:.0f}",
        "not run" if infer is None else f"{infer['peak_mib'] / 1024:.1f}",
    ]


SUMMARY = [
    "run", "UNet layers", "VAE layers", "attentions", "calibration, s", "peak RSS, GiB", "artifact packed, MB",
    "inference, s", "peak RSS, GiB",
]  # fmt: skip


def write_proof(config: Config) -> Sequence[Run]:
    """tables/proof.{csv,md} of the runs that are finished; returns those that are not."""
    finished = [r for r in config.runs if (run_folder(config, r.run_id) / "run.json").is_file()]
    missing = [r for r in config.runs if r not in finished]
    frame = pd.DataFrame([row for r in finished for row in run_rows(config, r)], columns=COLUMNS)
    stem = config.results / "tables" / "proof"
    write_text(stem.with_suffix(".csv"), frame.to_csv(index=False, lineterminator="\n"))
    body = [
        [r.run, r.part, "" if pd.isna(r.steps) else f"{r.steps:.0f}", f"{r.seconds:.1f}", f"{r.peak_mib:.0f}"]
        for r in frame.itertuples()
    ]  # fmt: skip
    made = [read_json(run_folder(config, r.run_id) / "run.json") for r in finished]
    devices = sorted({f"{config.device} ({m['device']}), {m['threads']} thread(s)" for m in made})
    counts = tabulate(
        [summary(config, r) for r in finished], SUMMARY, "pipe", disable_numparse=True
    )
    stages = tabulate(
        body, ["run", "part", "steps", "seconds", "peak MiB so far"], "pipe", disable_numparse=True
    )
    absent = f"Not run: {', '.join(r.run_id for r in missing)}.\n\n" if missing else ""
    write_text(
        stem.with_suffix(".md"),
        f"**Full-size proof ({config.name})**, on {'; '.join(devices)}; one process per job.\n\n{counts}\n\n{absent}"
        f"Per stage (`- part.stage` is a training stage within `quantize`):\n\n{stages}\n",
    )
    return missing
