"""Where everything of one benchmark lies.

    results/<name>/                      one configuration, config/<name>.yaml
        data/test/{HR,LR}/*.png          test pairs cut from a list of crops
        data/calibration/{HR,LR}/*.png   calibration pairs
        data/<dataset>.tsv               the pairs found in a dataset of image files
        metrics.json                     metric -> why this machine cannot compute it
        reference/{fp32,bicubic}/*.png   outputs of the float model and of bicubic upscaling
        runs/<run_id>/                   what a calibration made
            artifact/                    the quantized model: model.safetensors, scheme.json
            fit.csv stages.csv           the loss at every step; one row per fit stage
            layers.csv ranges.csv        one row per quantized layer; ranges with and without LET
            run.json                     the record, written last (passionsr/benchmark/records.py)
        runs/sensitivity.csv             each layer quantized alone
        images/<run_id>/*.png            outputs on the test set
        scores/<run_id>/<metric>.csv     one row per image
        tables/ figures/
        logs/ benchmarks/                one file per job: its log, Snakemake's seconds and memory
        resume/<run_id>/                 what an unfinished calibration needs to go on

`workflow/` makes the files, DVC versions whole folders of them, so each product has one of its own.
"""

from __future__ import annotations

from pathlib import Path

from passionsr.benchmark.config import BICUBIC, CALIBRATION_SHEET, FP32, Config
from passionsr.data.crops import pairs_in, read_crops
from passionsr.data.datasets import Dataset, ImagePair, read_sheet
from passionsr.models.family import MANIFEST, get_family, read_manifest

CALIBRATION = CALIBRATION_SHEET
# The folders that hold products; what else is in results/<name> describes one run of the workflow.
PRODUCTS = ("data", "reference", "runs", "images", "scores", "tables", "figures")


# -- single files and folders -------------------------------------------------------------------


def run_folder(config: Config, run_id: str) -> Path:
    """runs/<run_id>."""
    return config.results / "runs" / run_id


def record_file(config: Config, run_id: str) -> Path:
    """runs/<run_id>/run.json."""
    return run_folder(config, run_id) / "run.json"


def sheet(config: Config, dataset: str) -> Path:
    """data/<dataset>.tsv."""
    return config.results / "data" / f"{dataset}.tsv"


def image_folder(config: Config, run_id: str) -> Path:
    """images/<run_id>, or reference/<run_id> for fp32 and bicubic."""
    return config.results / ("reference" if run_id in (FP32, BICUBIC) else "images") / run_id


def scores_file(config: Config, run_id: str, metric: str) -> Path:
    """results/<name>/scores/<run_id>/<metric>.csv: one row per image."""
    return config.results / "scores" / run_id / f"{metric}.csv"


def scores_files(config: Config, run_id: str) -> list[Path]:
    """The scores of a run, a file per metric of the configuration."""
    return [scores_file(config, run_id, metric) for metric in config.metrics]


def sensitivity_file(config: Config) -> Path:
    """runs/sensitivity.csv."""
    return config.results / "runs" / "sensitivity.csv"


# -- image pairs --------------------------------------------------------------------------------


def pairs_to_test(config: Config) -> list[ImagePair]:
    """The test pairs of this configuration; of datasets, what the job `data` found."""
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


# -- what the workflow's rules name as inputs and outputs -----------------------------------------


def data_files(config: Config) -> tuple[list[Path], list[Path]]:
    """(test, calibration): what the job `data` makes, known before any data is there."""
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
    """What the job `data` reads; for a dataset that is not there, what fetching it makes."""
    lists = [path for path in (config.test, config.calibration) if path]
    found: list[Path] = []
    for dataset in datasets_of(config):
        found += dataset.files() or ([dataset.marker] if dataset.marker else [])
    return [*lists, *found]


def model_files(config: Config) -> list[Path]:
    """The float model's files: its manifest and all that is listed there.

    Empty for a built-in model and for one that is not there. Raises UserError as `read_manifest`.
    """
    folder = Path(config.model)
    if config.model in get_family(config.family).built_in or not (folder / MANIFEST).is_file():
        return []
    return [folder / name for name in (MANIFEST, *sorted(read_manifest(folder)))]


def listed_images(config: Config) -> list[Path]:
    """The images that lists stand for: crops of photographs, and the outputs on datasets.

    Those of datasets are known from the lists that are there. Images of the user's own datasets are
    not among them.
    """
    found: list[Path] = []
    if config.photos:
        folder = config.results / "data" / CALIBRATION
        crops = read_crops(config.calibration)[: config.limits.get("calibration")]
        names = [f"{Path(crop.image).stem}.png" for crop in crops]
        found += [folder / kind / name for kind in ("HR", "LR") for name in names]
    if config.test:
        return found
    for run_id in (FP32, BICUBIC, *(run.run_id for run in config.runs)):
        for path in image_files(config, run_id):
            text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
            images = [line.partition("\t")[0] for line in text.splitlines()]
            found += [path.with_suffix("") / f"{image}.png" for image in images]
    return found
