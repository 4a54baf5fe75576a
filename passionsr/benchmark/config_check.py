"""What a job would find wrong with a configuration, found before any job: `passionsr check`.

`load_config` checks the files of the configuration themselves, in every job. Here is what needs
more: the classes of methods, the family, the data lists, and the images that are there. What is not
there yet is no mistake; `inputs.missing_inputs` lists it. No torch import.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from passionsr.benchmark.config import Config, ExternalOutputs, load_config
from passionsr.benchmark.inputs import missing_inputs
from passionsr.benchmark.method_registry import budgets_file
from passionsr.data.crops import Crop, RelativeCrop, check_source, read_crops, read_list
from passionsr.data.datasets import Dataset
from passionsr.methods.declared import check_declared
from passionsr.models.family import get_family
from passionsr.utils.files import UserError, read_rows
from passionsr.utils.names import check_path
from passionsr.utils.yaml_files import Document, Keys, read_yaml


def check_config(path: str | Path) -> Config:
    """The configuration of a file; UserError for all that a later job would not accept."""
    config, document = load_config(path), read_yaml(path)
    _check_model(config, document)
    _check_methods(config, document)
    _check_test(config, document)
    _check_calibration(config, document)
    for index, outputs in enumerate(config.external_outputs):
        with document.at("external_outputs", index):
            _check_external(config, outputs)
    return config


def report(path: Path) -> str:
    """What `passionsr check` prints of a good file: what is not there yet, then the runs."""
    config = check_config(path)
    lines = [f"not there yet: {line}" for line in missing_inputs(config)]
    return "\n".join([*lines, f"{path}: {len(config.runs)} runs, results in {config.results}"])


def _check_model(config: Config, document: Document) -> None:
    with document.at("family"):
        family = get_family(config.family)
        for run in config.runs:
            family.scope_parts(run.scope)
        if config.sensitivity:
            family.scope_parts("UV")
        unknown = set(config.expected_layers) - set(family.parts)
        if unknown:
            raise UserError(
                f"it has no part {', '.join(sorted(unknown))}, of which expected_layers tells the "
                f"layers; its parts: {', '.join(family.parts)}"
            )
    with document.at("model"):
        if config.model not in family.built_in:
            check_path(config.model)


def _check_methods(config: Config, document: Document) -> None:
    """Classes and options of the whole registry, and of the budget."""
    with document.at("methods"):
        registry = read_yaml(document.value["methods"])
        for name, entry in config.entries.items():
            _check_options(
                registry, (name, "class"), (name, "options"), entry.target, entry.options
            )
    budget = document.value.get("budget", "default")
    for target, options in config.budget.items():
        if isinstance(budget, str):
            with document.at("budget"):
                budgets = read_yaml(budgets_file(document.value["methods"]))
                keys = budget, target
                _check_options(budgets, keys, keys, target, options)
        else:
            keys = "budget", target
            _check_options(document, keys, keys, target, options)


def _check_options(
    document: Document, owner: Keys, place: Keys, target: str, options: Mapping[str, Any]
) -> None:
    """owner: keys that name the class. place: of its options."""
    with document.at(*owner):
        check_declared(target, {})
    for name, value in options.items():
        with document.at(*place, name):
            check_declared(target, {name: value})


def _check_test(config: Config, document: Document) -> None:
    limit = config.limits.get("test")
    if config.test is not None:
        with document.at("test"):
            check_path(config.test)
            crops = read_list(config.test)
            _check_sources(config, config.test, crops[:limit])
        _check_limit(document, "test", len(crops))
        return
    sizes = []
    for index, dataset in enumerate(config.datasets):
        with document.at("test", index):
            sizes.append(_size(dataset))
    if None not in sizes:  # the largest: a limit holds for each dataset
        _check_limit(document, "test", max(size for size in sizes if size is not None))


def _size(dataset: Dataset) -> int | None:
    """The number of images of a dataset that is there, else what it must have, else None.

    Raises UserError for images that cannot be paired, are too few or too many, or have a name that
    the workflow cannot use.
    """
    if dataset.missing():
        return dataset.count
    for path in dataset.files():
        check_path(path)
    return len(dataset.pairs() if dataset.lr else dataset.photos())


def _check_limit(document: Document, name: str, size: int) -> None:
    limit = (document.value.get("limit") or {}).get(name)
    if limit is not None and limit > size:
        with document.at("limit", name):
            raise UserError(f"{limit} given, but there are {size} images: give at most {size}")


def _check_sources(config: Config, path: Path, crops: Sequence[Crop]) -> None:
    scale = get_family(config.family).scale
    for crop in crops:
        check_source(crop, path, scale)


def _check_calibration(config: Config, document: Document) -> None:
    limit = config.limits.get("calibration")
    if config.photos is None:
        with document.at("calibration"):
            check_path(config.calibration)
            crops = read_list(config.calibration)
            _check_sources(config, config.calibration, crops[:limit])
            tested = _photos(config)
            _check_disjoint([crop.photo for crop in crops[:limit]], tested)
        _check_limit(document, "calibration", len(crops))
        return
    with document.at("calibration", "list"):
        check_path(config.calibration)
        relative = read_crops(config.calibration)
        _check_sizes(config, relative[:limit])
    with document.at("calibration", "photos"):
        _size(config.photos)
        if not config.photos.missing():
            photos = config.photos.photos()
            absent = [crop.image for crop in relative if crop.image not in photos]
            if absent:
                raise UserError(
                    f"{len(absent)} of {len(relative)} photographs of {config.calibration} are "
                    f"not in {config.photos.folder}, first: {absent[0]}"
                )
            used = [str(photos[crop.image].resolve()) for crop in relative[:limit]]
            _check_disjoint(used, _hr_files(config.datasets))
    _check_limit(document, "calibration", len(relative))


def _check_sizes(config: Config, crops: Sequence[RelativeCrop]) -> None:
    scale = get_family(config.family).scale
    for crop in crops:
        if crop.size % scale:
            raise UserError(
                f"{config.calibration}: {crop.image}: size {crop.size} is not a multiple of the "
                f"model's scale {scale}"
            )


def _photos(config: Config) -> set[str]:
    """The photographs that a list of embedded test crops is cut from."""
    if config.test is None:
        return set()
    return {crop.photo for crop in read_list(config.test)[: config.limits.get("test")]}


def _hr_files(datasets: Iterable[Dataset]) -> set[str]:
    pairs = [pair for d in datasets if not d.missing() for pair in d.pairs()]
    return {str(pair.hr.resolve()) for pair in pairs}


def _check_disjoint(calibration: Sequence[str], test: set[str]) -> None:
    both = [name for name in calibration if name in test]
    if both:
        raise UserError(
            f"{both[0]} is a test image, too: calibrate on other images, or the scores say nothing"
        )


def _check_external(config: Config, outputs: ExternalOutputs) -> None:
    """There is an output for every image of the dataset, where both are there."""
    if outputs.published is not None and outputs.published.is_file():
        read_rows(outputs.published, ["image"], more=True)
    dataset = next(d for d in config.datasets if d.name == outputs.dataset)
    there = sorted(outputs.folder.glob("*.png"))
    for path in there:
        check_path(path)
    if not there or dataset.missing():
        return
    names = {path.stem for path in there}
    pairs = dataset.pairs()
    absent = [pair.image for pair in pairs if pair.image not in names]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(pairs)} images of {dataset.name} have no output in "
            f"{outputs.folder}, first: {absent[0]}.png"
        )
