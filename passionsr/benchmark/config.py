"""Configurations and the run sheet: checked completely before anything runs. No torch import."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from passionsr.data.datasets import Dataset, dataset_from, expand
from passionsr.metrics.registry import check_metrics
from passionsr.quantization.spec import Scheme
from passionsr.utils.files import UserError

SCHEMA = Path(__file__).resolve().parents[2] / "workflow" / "schemas" / "config.schema.yaml"

# Reference rows of every table; they are runs without a calibration.
FP32, BICUBIC = "fp32", "bicubic"
# Ablation tables: a part of the method off; behaviour of the released code on.
ABLATIONS = ("parts", "released")
RELEASED_TABLES = ("released", "released_cost")


@dataclass(frozen=True)
class MethodEntry:
    """One line of the registry. ablation: None, or the table it belongs to, "parts" or "released"."""

    name: str
    target: str
    title: str
    options: dict[str, Any]
    ablation: str | None = None


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

    published: per-image scores to compare ours with (CSV: image, then metrics); None if there are none.
    """

    name: str
    title: str
    dataset: str
    folder: Path
    published: Path | None = None


@dataclass(frozen=True)
class Config:
    """A checked configuration.

    test: data list of embedded crops, None where `datasets` (image folders) are tested. calibration: data list;
    photos: the dataset whose photographs a list of relative crops cuts up.
    """

    name: str
    model: str
    test: Path | None
    calibration: Path
    limits: dict[str, int]
    entries: dict[str, MethodEntry]
    runs: tuple[Run, ...]
    budget: dict[str, dict[str, Any]]
    batch_size: int
    metrics: tuple[str, ...]
    threads: int
    sensitivity: str | None
    posterior: str
    low_memory: bool
    device: str
    memory_mb: int
    expected_layers: dict[str, int]
    digest: str
    datasets: tuple[Dataset, ...] = ()
    photos: Dataset | None = None
    external_outputs: tuple[ExternalOutputs, ...] = ()
    inference: dict[str, Any] = field(default_factory=dict)
    resize_mismatch: bool = False

    @property
    def results(self) -> Path:
        """results/<name>."""
        return Path("results") / self.name

    @property
    def tables(self) -> list[str]:
        """Names of the tables of metrics; RELEASED_TABLES only where the run sheet has such runs."""
        released = any(self.entries[r.method].ablation == "released" for r in self.runs)
        return ["table2", "ablation", "table4", "unet_only", *(RELEASED_TABLES if released else ())]

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
        """Hash of everything in the configuration that this run's artifact depends on."""
        entry = self.entries[run.method]
        value = [
            self.model, str(self.calibration), self.limits.get("calibration"), self.batch_size,
            self.threads, entry.target, self.options(run), run.scheme, run.scope, run.seed,
        ]  # fmt: skip
        if self.device != "cpu":
            value.append(self.device)
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _load_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: file not found") from None
    except yaml.YAMLError as err:
        raise UserError(f"{path}: not valid YAML ({str(err).splitlines()[0]})") from None


def load_methods(path: str | Path) -> dict[str, MethodEntry]:
    """Read the registry of methods; UserError for a malformed entry."""
    raw = _load_yaml(Path(path))
    entries = {}
    for name, value in (raw or {}).items():
        known = {"class", "title", "options", "ablation"}
        if not isinstance(value, dict) or "class" not in value or set(value) - known:
            raise UserError(f"{path}: {name}: give class, and optionally title, options, ablation")
        if value.get("ablation") not in (None, *ABLATIONS):
            raise UserError(f"{path}: {name}: ablation is one of {', '.join(ABLATIONS)}")
        entries[name] = MethodEntry(
            name,
            value["class"],
            value.get("title", name),
            value.get("options", {}),
            value.get("ablation"),
        )
    return entries


def load_budget(budget: str | dict[str, Any], methods: Path) -> dict[str, dict[str, Any]]:
    """Class -> options: `budget` itself, or the one of that name in budgets.yaml beside the registry."""
    if isinstance(budget, dict):
        return budget
    path = methods.with_name("budgets.yaml")
    known = _load_yaml(path)
    if budget not in known:
        raise UserError(f"budget {budget!r} is unknown; {path} has {', '.join(known)}")
    return known[budget]


def expand_runs(
    blocks: Sequence[dict[str, Any]], entries: dict[str, MethodEntry]
) -> tuple[Run, ...]:
    """The product of every block, without repetition; UserError for unknown methods or bad bits."""
    runs: dict[str, Run] = {}
    for block in blocks:
        for method in block["methods"]:
            if method not in entries:
                raise UserError(f"method {method!r} is unknown; known: {', '.join(entries)}")
            for scheme in block["schemes"]:
                parse_scheme(scheme)
                for scope in block["scopes"]:
                    for seed in block["seeds"]:
                        run = Run(method, scheme, scope, seed)
                        runs[run.run_id] = run
    return tuple(runs.values())


def parse_scheme(text: str) -> Scheme:
    """Scheme.parse with its error as the user's."""
    try:
        return Scheme.parse(text)
    except ValueError as err:
        raise UserError(f"scheme {text!r}: {err}") from None


def _datasets(specs: Sequence[dict[str, Any]]) -> tuple[Dataset, ...]:
    found = tuple(dataset_from(spec) for spec in specs)
    for dataset in found:
        if not dataset.lr:
            raise UserError(f"dataset {dataset.name}: a test set needs LR images; give `lr:`")
    if len({d.name for d in found}) < len(found):
        raise UserError("test: two datasets have the same name")
    return found


def _external_outputs(
    specs: Sequence[dict[str, Any]], config: Config
) -> tuple[ExternalOutputs, ...]:
    found = []
    for spec in specs:
        paths = {k: expand(v) for k, v in spec.items() if k in ("folder", "published")}
        outputs = ExternalOutputs(**{"title": spec["name"], **spec, **paths})
        if outputs.dataset not in {d.name for d in config.datasets}:
            raise UserError(
                f"external_outputs {outputs.name}: dataset {outputs.dataset!r} is not in test"
            )
        if outputs.name in {FP32, BICUBIC, *config.entries}:
            raise UserError(f"external_outputs {outputs.name}: the name is taken")
        found.append(outputs)
    return tuple(found)


def load_config(path: str | Path) -> Config:
    """Read and check a configuration file; UserError says what is wrong and where."""
    import jsonschema

    path = Path(path)
    raw = _load_yaml(path)
    validator = jsonschema.Draft202012Validator(_load_yaml(SCHEMA))
    errors = [
        f"{'.'.join(map(str, e.absolute_path)) or 'top level'}: {e.message}"
        for e in validator.iter_errors(raw)
    ]
    if errors:
        raise UserError(f"{path}: {'; '.join(errors)}")
    entries = load_methods(raw["methods"])
    budget = load_budget(raw.get("budget", "default"), Path(raw["methods"]))
    test, calibration = raw["test"], raw["calibration"]
    if isinstance(calibration, str):
        calibration = {"list": calibration}
    config = Config(
        name=raw["name"],
        model=raw["model"],
        test=Path(test) if isinstance(test, str) else None,
        datasets=() if isinstance(test, str) else _datasets(test),
        calibration=Path(calibration["list"]),
        photos=dataset_from(calibration["photos"]) if "photos" in calibration else None,
        limits=raw.get("limit", {}),
        entries=entries,
        runs=expand_runs(raw["runs"], entries),
        budget=budget,
        batch_size=raw["batch_size"],
        metrics=tuple(check_metrics(raw["metrics"])),
        threads=raw.get("threads", 1),
        sensitivity=raw.get("sensitivity"),
        posterior=raw.get("posterior", "mean"),
        low_memory=raw.get("low_memory", False),
        device=raw.get("device", "cpu"),
        memory_mb=raw.get("memory_mb", 3000),
        expected_layers=raw.get("expected_layers", {}),
        inference=raw.get("inference", {}),
        resize_mismatch=raw.get("resize_mismatch", False),
        digest=hashlib.sha256(json.dumps([raw, budget], sort_keys=True).encode()).hexdigest()[:16],
    )
    return replace(
        config, external_outputs=_external_outputs(raw.get("external_outputs", []), config)
    )
