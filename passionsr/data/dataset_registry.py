"""config/datasets.yaml: what can be downloaded, and which image datasets have a name."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from pydantic import AfterValidator, Field

from passionsr.data.datasets import DATA, LOCKS, PAIRINGS, Dataset, expand
from passionsr.data.fetch import Archive, Source, fetch_source
from passionsr.utils.checked_yaml import OneOf, StrictModel, closest_first, read_checked
from passionsr.utils.defaults import default_file
from passionsr.utils.files import UserError
from passionsr.utils.names import Line, Name, check_distinct_names
from passionsr.utils.yaml_files import read_yaml


def _check_pattern(text: str) -> str:
    if text.startswith("/") or ".." in text.split("/"):
        raise UserError(f"pattern {text!r}: give one relative to `folder:`, such as HR/*.png")
    return text


Pattern = Annotated[
    Line,
    AfterValidator(_check_pattern),
    Field(json_schema_extra={"expected": "a pattern such as HR/*.png"}),
]


class DatasetKeys(StrictModel):
    """A folder of images: the keys that the registry and a configuration share."""

    folder: Line | None = None
    """Folder of the images; may hold ${VARIABLES}, of which PASSIONSR_SHARED has a default.
    Without it, data/<source> of a dataset of the registry."""
    lr: Pattern | None = None
    """Pattern of the LR images, relative to the folder, such as `LR/*.png`."""
    hr: Pattern | None = None
    """Pattern of the HR images or of photographs, relative to the folder."""
    pairing: Annotated[str, OneOf(PAIRINGS)] | None = None
    """Rule for the file names of one pair: LR <key><suffix>, HR <key><suffix>. `same` (default)
    is no suffix, `realsr` _LR4 and _HR, `drealsr` _x1 and _x4, `div2k` x4 and none."""
    count: Annotated[int, Field(ge=1)] | None = None
    """How many pairs or photographs there must be; null: any number."""


class DatasetChoice(DatasetKeys):
    """A dataset in a configuration: one of the registry, a folder, or the first with changes."""

    dataset: str | None = None
    """Name of a dataset in config/datasets.yaml; the other keys replace what it says there."""
    name: Name | None = None
    """Name in results and tables; by default that of the registry."""


class DatasetEntry(DatasetKeys):
    """A dataset in the registry."""

    source: str | None = None
    """Name of the source that holds its images; without it there is nothing to download."""
    obtain: str | None = None
    """Where to find it, for one that cannot be downloaded."""


class SourceEntry(StrictModel):
    """Archives that are downloaded and unpacked into data/<name>."""

    archives: tuple[Archive, ...] = Field(min_length=1)
    """The files to download."""
    members: tuple[str, ...] = ()
    """Patterns of what to unpack, such as `folder/*/Test/*`; without any, everything."""


class DatasetRegistry(StrictModel):
    """The whole file."""

    sources: dict[Name, SourceEntry] = Field(default_factory=dict)
    """Name -> what to download."""
    datasets: dict[Name, DatasetEntry] = Field(default_factory=dict)
    """Name -> folder and patterns."""


def load_registry(path: Path | None = None) -> DatasetRegistry:
    """The registry; UserError for a mistake in it.

    path: a file like config/datasets.yaml; None: see utils.defaults.default_file.
    """
    document = read_yaml(path or default_file("datasets.yaml"))
    registry = read_checked(DatasetRegistry, document)
    for kind, names in (("sources", registry.sources), ("datasets", registry.datasets)):
        with document.at(kind):
            check_distinct_names(list(names), kind)
    for name, entry in registry.datasets.items():
        if entry.source is not None and entry.source not in registry.sources:
            known = ", ".join(closest_first(entry.source, registry.sources))
            with document.at("datasets", name, "source"):
                raise UserError(f"source {entry.source!r} is unknown; known: {known}")
    return registry


def load_sources(path: Path | None = None) -> dict[str, Source]:
    """Everything that `passionsr fetch` can download, by name."""
    entries = load_registry(path).sources
    return {name: Source(name, entry.archives, entry.members) for name, entry in entries.items()}


def fetch_dataset_source(name: str) -> Path:
    """Download, check and unpack a source into data/<name>; returns that folder.

    A new hash is recorded only after `check_source`. Raises UserError for an unknown source, and as
    `fetch_source` does.
    """
    sources = load_sources()
    if name not in sources:
        raise UserError(f"source {name!r} is unknown; known: {', '.join(sources)}")
    check = functools.partial(check_source, name)
    return fetch_source(sources[name], DATA, LOCKS, check)


def check_source(name: str, folder: Path) -> None:
    """UserError unless a folder holds all datasets of a source: all images, and all readable."""
    for dataset_name, entry in load_registry().datasets.items():
        if entry.source != name or entry.folder is not None:
            continue
        dataset = replace(dataset_from(DatasetChoice(dataset=dataset_name)), folder=folder)
        try:
            if not dataset.files():
                wanted = " and no ".join(p for p in (dataset.lr, dataset.hr) if p)
                raise UserError(f"dataset {dataset_name}: there is no {wanted}")
            (dataset.pairs if dataset.lr else dataset.photos)()
            for path in dataset.files():
                _check_readable(path)
        except UserError as err:
            inside = str(err).replace(f"{folder}/", "").replace(str(folder), "it")
            raise UserError(f"what was unpacked is not source {name}: {inside}") from None


def _check_readable(path: Path) -> None:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        reason = str(err).replace(str(path), path.name)
        raise UserError(f"{path}: cannot be read as an image ({reason})") from None


def dataset_from(choice: DatasetChoice, path: Path | None = None) -> Dataset:
    """The dataset that a configuration means; keys that it gives replace those of the registry.

    Raises UserError for an unknown dataset, an unset variable, a missing folder or pattern.
    """
    base = {}
    if choice.dataset is not None:
        known = load_registry(path).datasets
        if choice.dataset not in known:
            names = ", ".join(closest_first(choice.dataset, known))
            raise UserError(f"dataset {choice.dataset!r} is unknown; known: {names}")
        entry = known[choice.dataset]
        base = {
            "name": choice.dataset,
            "folder": str(DATA / (entry.source or choice.dataset)),
            **_given(entry),
        }
    merged = {**base, **_given(choice)}
    merged.pop("dataset", None)
    absent = [key for key in ("name", "folder", "hr") if key not in merged]
    if absent:
        raise UserError(
            f"dataset {merged.get('name', '?')}: give {', '.join(absent)}, "
            f"or `dataset:` with a name of {path or default_file('datasets.yaml')}"
        )
    return Dataset(**{**merged, "folder": expand(merged["folder"])})


def _given(keys: DatasetKeys) -> dict[str, Any]:
    """The keys that a file gives; null says something only for the count, that it is open."""
    found = keys.model_dump(exclude_unset=True)
    return {key: value for key, value in found.items() if value is not None or key == "count"}
