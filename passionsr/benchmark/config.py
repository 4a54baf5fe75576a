"""Configurations and the run sheet: checked completely before anything runs. No torch import."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from passionsr.benchmark.config_keys import (
    ConfigFile,
    ExternalOutputKeys,
    RunBlock,
    parse_scheme,
)
from passionsr.benchmark.method_registry import (
    ABLATIONS,
    BICUBIC,
    FP32,
    Budget,
    MethodEntry,
    load_budget,
    load_methods,
)
from passionsr.data.dataset_registry import DatasetChoice, dataset_from
from passionsr.data.datasets import Dataset, expand
from passionsr.models.family import DEFAULT_FAMILY
from passionsr.utils.checked_yaml import closest_first, read_checked
from passionsr.utils.files import UserError
from passionsr.utils.names import check_distinct_names
from passionsr.utils.yaml_files import Document, Keys, read_yaml

__all__ = [
    "ABLATIONS",
    "BICUBIC",
    "FP32",
    "Config",
    "ExternalOutputs",
    "MethodEntry",
    "Run",
    "expand_runs",
    "load_budget",
    "load_config",
    "load_methods",
    "parse_scheme",
]

# Keys of former versions and what they are called now.
RENAMED = {"lean": "low_memory", "given": "external_outputs"}
# Name of the sheet of calibration pairs, beside those of the test datasets.
CALIBRATION_SHEET = "calibration"
# Scores of a bit width have a job, a log and times of that name.
SCHEME_NAME = re.compile("W[0-9]+A[0-9]+", re.IGNORECASE)


@dataclass(frozen=True)
class Run:
    """One row of the run sheet."""

    method: str
    scheme: str
    scope: str
    seed: int

    @property
    def run_id(self) -> str:
        """Name of the run's folder, such as passionsr-W6A6-UV-s0."""
        return f"{self.method}-{self.scheme}-{self.scope}-s{self.seed}"


@dataclass(frozen=True)
class ExternalOutputs:
    """Outputs made elsewhere, scored like a run: folder/<image>.png for every image of `dataset`.

    published: per-image scores to compare ours with (CSV: image, then metrics); None if there are
    none.
    """

    name: str
    title: str
    dataset: str
    folder: Path
    published: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """A checked configuration: what a file's keys (config_keys.ConfigFile) mean.

    test: data list of embedded crops, None where `datasets` (image folders) are tested.
    calibration: data list; photos: the dataset whose photographs a list of relative crops cuts up.
    limits, expected_layers: only what is given. inference: options that differ from the defaults.
    entries: the whole registry of methods. digest: of the file and its budget.
    """

    name: str
    model: str
    family: str
    test: Path | None
    datasets: tuple[Dataset, ...]
    calibration: Path
    photos: Dataset | None
    limits: dict[str, int]
    entries: dict[str, MethodEntry]
    runs: tuple[Run, ...]
    budget: Budget
    batch_size: int
    metrics: tuple[str, ...]
    threads: int
    sensitivity: str | None
    posterior: Literal["mean", "sample"]
    inference: dict[str, Any]
    resize_mismatch: bool
    low_memory: bool
    device: str
    memory_mb: int
    expected_layers: dict[str, int]
    external_outputs: tuple[ExternalOutputs, ...]
    digest: str

    @property
    def results(self) -> Path:
        """results/<name>."""
        return Path("results") / self.name

    def run(self, run_id: str) -> Run:
        """The run of that name; UserError if the configuration has none."""
        for run in self.runs:
            if run.run_id == run_id:
                return run
        raise UserError(f"run {run_id!r} is not in this configuration")

    def options(self, run: Run) -> dict[str, Any]:
        """The method's options for a run: budget of the configuration, then the registry's own."""
        entry = self.entries[run.method]
        return {**self.budget.get(entry.target, {}), **entry.options}

    def run_digest(self, run: Run) -> str:
        """Hash of everything in the configuration that this run's artifact depends on.

        Not in it: low_memory, which changes no byte, and memory_mb and expected_layers, which only
        decide whether a calibration may go on.
        """
        entry = self.entries[run.method]
        value = [
            self.model,
            str(self.calibration),
            self.limits.get("calibration"),
            self.batch_size,
            self.threads,
            entry.target,
            self.options(run),
            run.scheme,
            run.scope,
            run.seed,
        ]
        if self.device != "cpu":
            value.append(self.device)
        if self.family != DEFAULT_FAMILY:
            value.append(self.family)
        return _digest(value)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def expand_runs(
    blocks: Sequence[RunBlock], entries: Mapping[str, MethodEntry], document: Document
) -> dict[str, Run]:
    """Run id -> run: the product of every block, without repetition.

    document: the file, for the line of an unknown method in the UserError.
    """
    runs: dict[str, Run] = {}
    for index, block in enumerate(blocks):
        for place, method in enumerate(block.methods):
            if method not in entries:
                known = ", ".join(closest_first(method, entries))
                with document.at("runs", index, "methods", place):
                    raise UserError(f"method {method!r} is unknown; known: {known}")
            for scheme in block.schemes:
                for scope in block.scopes:
                    for seed in block.seeds:
                        run = Run(method, scheme, scope, seed)
                        runs[run.run_id] = run
    return runs


def _datasets(document: Document, choices: Sequence[DatasetChoice]) -> tuple[Dataset, ...]:
    found: dict[str, Dataset] = {}
    for index, choice in enumerate(choices):
        with document.at("test", index):
            dataset = dataset_from(choice)
            if not dataset.lr:
                raise UserError(f"dataset {dataset.name}: a test set needs LR images; give `lr:`")
            if dataset.name in found:
                raise UserError(
                    f"two datasets have the name {dataset.name}; give one another `name:`"
                )
            if dataset.name.casefold() == CALIBRATION_SHEET:
                raise UserError(
                    f"{dataset.name} is the name of the calibration images; give another `name:`"
                )
            check_distinct_names([*found, dataset.name], "datasets")
        found[dataset.name] = dataset
    return tuple(found.values())


def _external_outputs(
    document: Document,
    specs: Sequence[ExternalOutputKeys],
    datasets: Sequence[Dataset],
    taken: Sequence[str],
) -> tuple[ExternalOutputs, ...]:
    """taken: names that other rows of the tables, runs and files of scores have."""
    found: dict[str, ExternalOutputs] = {}
    tested = [dataset.name for dataset in datasets]
    for index, spec in enumerate(specs):
        with document.at("external_outputs", index):
            if spec.dataset not in tested:
                has = ", ".join(closest_first(spec.dataset, tested)) or "no dataset"
                raise UserError(f"dataset {spec.dataset!r} is not in test, which has {has}")
            if spec.name in (FP32, BICUBIC, *taken, *found) or SCHEME_NAME.fullmatch(spec.name):
                raise UserError(f"the name {spec.name!r} is taken; give another")
            check_distinct_names([FP32, BICUBIC, *taken, *found, spec.name], "rows of the tables")
            published = expand(spec.published) if spec.published else None
            found[spec.name] = ExternalOutputs(
                spec.name, spec.title or spec.name, spec.dataset, expand(spec.folder), published
            )
    return tuple(found.values())


def _check_titles(
    document: Document, methods: Mapping[str, str], external: Sequence[ExternalOutputs]
) -> None:
    """UserError for two rows of the tables with one title. methods: name -> title of those used."""
    owners = {title: f"the row {title}" for title in ("FP32", "Bicubic")}
    places: list[tuple[Keys, str, str]] = [
        (("runs",), f"method {name}", title) for name, title in methods.items()
    ]
    places += [
        (("external_outputs", index), f"external output {outputs.name}", outputs.title)
        for index, outputs in enumerate(external)
    ]
    for keys, owner, title in places:
        if owners.setdefault(title, owner) != owner:
            with document.at(*keys):
                raise UserError(
                    f"{owners[title]} and {owner} have the same title {title!r}: give one of them "
                    "another `title:`"
                )


def _changed(options: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from its defaults."""
    found = ((f, getattr(options, f.name)) for f in dataclasses.fields(options))
    return {f.name: value for f, value in found if value != f.default}


def load_config(path: str | Path) -> Config:
    """Read and check a configuration file; UserError says what is wrong and where."""
    # What needs more than the file and its registries is in config_check.check_config.
    document = read_yaml(path)
    file = read_checked(ConfigFile, document, RENAMED)
    with document.at("methods"):
        entries = load_methods(file.methods)
    with document.at("budget"):
        budget = load_budget(file.budget, Path(file.methods))
    datasets = () if isinstance(file.test, str) else _datasets(document, file.test)
    if isinstance(file.calibration, str):
        crops, photos = file.calibration, None
    else:
        with document.at("calibration", "photos"):
            crops, photos = file.calibration.list, dataset_from(file.calibration.photos)
    runs = expand_runs(file.runs, entries, document)
    external = _external_outputs(document, file.external_outputs, datasets, (*entries, *runs))
    _check_titles(document, {entries[run.method].name: entries[run.method].title
                             for run in runs.values()}, external)  # fmt: skip
    return Config(
        name=file.name,
        model=file.model,
        family=file.family,
        test=Path(file.test) if isinstance(file.test, str) else None,
        datasets=datasets,
        calibration=Path(crops),
        photos=photos,
        limits=file.limit.model_dump(exclude_none=True),
        entries=entries,
        runs=tuple(runs.values()),
        budget=budget,
        batch_size=file.batch_size,
        metrics=file.metrics,
        threads=file.threads,
        sensitivity=file.sensitivity,
        posterior=file.posterior,
        inference=_changed(file.inference),
        resize_mismatch=file.resize_mismatch,
        low_memory=file.low_memory,
        device=file.device,
        memory_mb=file.memory_mb,
        expected_layers=file.expected_layers.model_dump(exclude_none=True),
        external_outputs=external,
        digest=_digest([document.value, budget]),
    )
