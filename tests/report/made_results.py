"""Results of a benchmark without its models: score files, records and images written as told."""

import dataclasses
from pathlib import Path

import numpy as np
import yaml

from passionsr.benchmark.config import BICUBIC, FP32, load_config
from passionsr.benchmark.jobs.score import SCORE_COLUMNS
from passionsr.benchmark.paths import image_folder, pairs_to_test, record_file, run_folder, sheet
from passionsr.benchmark.paths import scores_file as scores_path
from passionsr.data.datasets import write_sheet
from passionsr.data.images import write_uint8
from passionsr.metrics.registry import METRICS, NO_REFERENCE
from passionsr.utils.files import write_csv, write_json, write_text

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCK = {"methods": ["minmax", "passionsr"], "schemes": ["W8A8"], "scopes": ["UV"], "seeds": [0]}


def write_configuration(folder, **keys):
    """config/made.yaml in `folder` (the working directory), with changed keys; its path."""
    raw = {
        "name": "made",
        "model": "tiny",
        "test": str(ROOT / "config" / "mini_test.tsv"),
        "calibration": str(ROOT / "config" / "mini_calibration.tsv"),
        "methods": str(ROOT / "config" / "methods.yaml"),
        "limit": {"test": 2},
        "runs": [BLOCK],
        "budget": "smoke",
        "batch_size": 2,
        "metrics": ["psnr", "niqe", "psnr_fp"],
        **keys,
    }
    path = folder / "config" / "made.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(raw))
    return path


def datasets(folder, names, side=16, count=2):
    """The key `test` for datasets of random images, LR of `side` px, in `folder`."""
    rng = np.random.default_rng(0)
    for name in names:
        for index in range(count):
            for kind, px in (("LR", side), ("HR", 4 * side)):
                image = rng.integers(0, 256, (px, px, 3), dtype=np.uint8)
                write_uint8(folder / name / kind / f"{index}.png", image)
    return [
        {"name": name, "folder": str(folder / name), "lr": "LR/*.png", "hr": "HR/*.png"}
        for name in names
    ]


def write_pairs(config):
    """The sheets of the datasets, as the job `data` writes them."""
    for dataset in config.datasets:
        write_sheet(dataset.pairs(), sheet(config, dataset.name), 4)


def write_scores(config, score):
    """Every score file; score(run_id, dataset, image number, metric) is a number or a reason."""
    everything = pairs_to_test(config)
    external = {outputs.name: outputs.dataset for outputs in config.external_outputs}
    known = {run.run_id: dataclasses.asdict(run) for run in config.runs}
    for run_id in [FP32, BICUBIC, *external, *known]:
        pairs = [p for p in everything if external.get(run_id, p.dataset) == p.dataset]
        run = {"method": run_id, "scheme": "W32A32", "scope": "UV", "seed": 0}
        for metric in config.metrics:
            rows = []
            for pair in pairs:
                dataset = pair.dataset or config.test.stem
                number = sum(row["dataset"] == dataset for row in rows)  # in its dataset
                value = score(run_id, pair.dataset, number, metric)
                if METRICS[metric].kind == "FP" and run_id in (FP32, *external):
                    value = NO_REFERENCE
                there = not isinstance(value, str)
                rows.append({
                    **known.get(run_id, run), "run_id": run_id, "metric": metric,
                    "dataset": dataset, "image": pair.image,
                    "value": repr(value) if there else "", "reason": "" if there else value,
                    "digest": "0",
                })  # fmt: skip
            write_csv(scores_path(config, run_id, metric), rows, SCORE_COLUMNS)


def write_runs(config):
    """run.json, curves, ranges and weights of every run."""
    for number, run in enumerate(config.runs):
        folder = run_folder(config, run.run_id)
        record = {
            "run": dataclasses.asdict(run), "class": config.entries[run.method].target,
            "options": {}, "config": config.name, "config_digest": config.digest,
            "run_digest": config.run_digest(run), "git": "0" * 7, "versions": {"torch": "0"},
            "device": "cpu", "threads": 1, "model_bytes": (number + 1) * 2**20, "seconds": 1.0,
            "stage_seconds": {}, "stage_peak_mib": {}, "phases": [], "peak_mib": 2,
            "peak_mib_before_calibration": 1,
        }  # fmt: skip
        write_json(record_file(config, run.run_id), record)
        write_text(folder / "artifact" / "model.safetensors", run.run_id)
        trains = run.method != "minmax"
        curve = "".join(f"unet.lbq,{step},{1 / (step + 1)}\n" for step in range(3 * trains))
        write_text(folder / "fit.csv", f"stage,step,loss\n{curve}")
        head = "layer,channel,lower,upper,let_lower,let_upper\n"
        ranges = "".join(f"unet.a,{c},-{c + 1},{c + 1},-1,1\n" for c in range(3 * trains))
        write_text(folder / "ranges.csv", head + ranges)


def write_outputs(config):
    """An output image of every run for every test image: its HR image."""
    from passionsr.data.images import read_uint8

    for run_id in [FP32, *(run.run_id for run in config.runs)]:
        for pair in pairs_to_test(config):
            write_uint8(image_folder(config, run_id) / f"{pair.name}.png", read_uint8(pair.hr))


def made(folder, score, **keys):
    """A configuration, and its scores and records as if every job before the tables had run."""
    config = load_config(write_configuration(folder, **keys))
    write_pairs(config)
    write_scores(config, score)
    write_runs(config)
    return config
