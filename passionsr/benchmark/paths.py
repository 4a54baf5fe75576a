"""Where everything of one benchmark lies.

Layout under results/<name>/, one folder per product because DVC versions whole folders: data/{test,calibration}/{HR,LR},
reference/{fp32,bicubic}/, runs/<run_id>/ (artifact/, fit.csv, stages.csv, layers.csv, ranges.csv, run.json),
runs/sensitivity.csv, images/<run_id>/, scores/<run_id>.csv, tables/, figures/; metrics.json.
"""

from __future__ import annotations

from pathlib import Path

from passionsr.benchmark.config import BICUBIC, FP32, Config
from passionsr.data.crops import pairs_in
from passionsr.data.datasets import Dataset, ImagePair, read_sheet

CALIBRATION = "calibration"


def run_folder(config: Config, run_id: str) -> Path:
    """results/<name>/runs/<run_id>: what calibration made."""
    return config.results / "runs" / run_id


def sheet(config: Config, dataset: str) -> Path:
    """The list of a dataset's pairs: results/<name>/data/<dataset>.tsv."""
    return config.results / "data" / f"{dataset}.tsv"


def image_folder(config: Config, run_id: str) -> Path:
    """Outputs on the test set: results/<name>/images/<run_id>, or reference/<run_id> for fp32 and bicubic."""
    return config.results / ("reference" if run_id in (FP32, BICUBIC) else "images") / run_id


def scores_file(config: Config, run_id: str) -> Path:
    """results/<name>/scores/<run_id>.csv: one row per number."""
    return config.results / "scores" / f"{run_id}.csv"


def sensitivity_file(config: Config) -> Path:
    """results/<name>/runs/sensitivity.csv."""
    return config.results / "runs" / "sensitivity.csv"


def pairs_to_test(config: Config) -> list[ImagePair]:
    """The test pairs of this configuration; of datasets, what the data stage found."""
    limit = config.limits.get("test")
    if config.test:
        return pairs_in(config.test, config.results / "data" / "test")[:limit]
    return [p for d in config.datasets for p in read_sheet(sheet(config, d.name))[:limit]]


def calibration_pairs(config: Config) -> list[ImagePair]:
    """The calibration pairs of this configuration."""
    if config.photos:
        return read_sheet(sheet(config, CALIBRATION))
    pairs = pairs_in(config.calibration, config.results / "data" / "calibration")
    return pairs[: config.limits.get("calibration")]


def data_files(config: Config) -> tuple[list[Path], list[Path]]:
    """What the data stage makes and others read, (test, calibration): known before any data is there."""
    if config.test:
        test = [path for pair in pairs_to_test(config) for path in (pair.hr, pair.lr)]
    else:
        test = [sheet(config, d.name) for d in config.datasets]
    if config.photos:
        return test, [sheet(config, CALIBRATION)]
    return test, [path for pair in calibration_pairs(config) for path in (pair.hr, pair.lr)]


def image_files(config: Config, run_id: str) -> list[Path]:
    """What tells that a run's images are there: the images, or a list of them per dataset."""
    folder = image_folder(config, run_id)
    if config.test:
        return [folder / f"{pair.name}.png" for pair in pairs_to_test(config)]
    return [folder / f"{d.name}.tsv" for d in config.datasets]


def datasets_of(config: Config) -> list[Dataset]:
    """Every dataset of image files that a configuration reads."""
    return [*config.datasets, *([config.photos] if config.photos else [])]


def data_sources(config: Config) -> list[Path]:
    """What the data stage reads; for a dataset that is not there, what fetching it makes."""
    lists = [path for path in (config.test, config.calibration) if path]
    found = []
    for dataset in datasets_of(config):
        found += dataset.files() or ([dataset.marker] if dataset.marker else [])
    return [*lists, *found]
