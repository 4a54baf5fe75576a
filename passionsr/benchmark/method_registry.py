"""config/methods.yaml and config/budgets.yaml: the methods, and what a run of each may spend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from passionsr.utils.checked_yaml import OneOf, StrictModel, closest_first, read_checked
from passionsr.utils.files import UserError
from passionsr.utils.names import Line, Name, check_distinct_names
from passionsr.utils.yaml_files import read_yaml

# Reference rows of every table; they are runs without a calibration.
FP32, BICUBIC = "fp32", "bicubic"
# Ablation tables: a part of the method off; behaviour of the released code on.
ABLATIONS = ("parts", "released")


def _check_target(text: str) -> str:
    module, colon, name = text.partition(":")
    if not (colon and name.isidentifier() and all(p.isidentifier() for p in module.split("."))):
        raise UserError(f"class {text!r}: give module:Class, such as passionsr.baselines.lsq:LSQ")
    return text


Target = Annotated[
    str, AfterValidator(_check_target), Field(json_schema_extra={"expected": "module:Class"})
]
Budget = dict[Target, dict[str, Any]]  # method class -> options


class MethodKeys(StrictModel):
    """One method in config/methods.yaml, under its name."""

    target: Target = Field(alias="class")
    """The class that implements the method, as module:Class."""
    title: Line | None = None
    """Its name in tables and figures; by default the name of the entry."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Fields of the class; over the budget and the defaults of the class."""
    ablation: Annotated[str, OneOf(ABLATIONS)] | None = None
    """The ablation table it belongs to: `parts` of a method switched off, or behaviour of
    `released` code; null: the main tables."""


@dataclass(frozen=True)
class MethodEntry:
    """One method of the registry. ablation: None, or one of ABLATIONS."""

    name: str
    target: str
    title: str
    options: dict[str, Any]
    ablation: str | None = None


def load_methods(path: str | Path) -> dict[str, MethodEntry]:
    """Read the registry of methods; UserError for a malformed entry."""
    document = read_yaml(path)
    entries = read_checked(dict[Name, MethodKeys], document)
    rows = [FP32, BICUBIC]
    for name in entries:
        with document.at(name):
            if name in rows:
                raise UserError("this is the name of a row that is not quantized; give another")
            check_distinct_names([*rows, name], "rows of the tables")
        rows.append(name)
    return {
        name: MethodEntry(name, e.target, e.title or name, e.options, e.ablation)
        for name, e in entries.items()
    }


def budgets_file(methods: str | Path) -> Path:
    """The file of budgets that belongs to a registry of methods."""
    return Path(methods).with_name("budgets.yaml")


def load_budget(budget: str | Budget, methods: Path) -> Budget:
    """Class -> options: `budget` itself, or that of budgets.yaml beside the registry."""
    if isinstance(budget, dict):
        return budget
    path = budgets_file(methods)
    known = read_checked(dict[Name, Budget], read_yaml(path))
    if budget not in known:
        names = ", ".join(closest_first(budget, known))
        raise UserError(f"budget {budget!r} is unknown; {path} has {names}")
    return known[budget]
