"""The keys of a configuration file: names, types, limits, defaults and descriptions, once.

The checks of `load_config`, config/config.schema.json for editors and the page
docs/reference/configuration.md all come from these classes. `reaches` names the jobs whose products
a key can change by itself; jobs that read those products follow by their files.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Tag

from passionsr.benchmark.method_registry import Budget
from passionsr.data.dataset_registry import DatasetChoice
from passionsr.inference.options import InferenceOptions
from passionsr.metrics.registry import METRICS
from passionsr.models.family import DEFAULT_FAMILY
from passionsr.quantization.spec import Scheme
from passionsr.utils.checked_yaml import BY_JSON_TYPE, OneOf, StrictModel
from passionsr.utils.files import UserError
from passionsr.utils.names import Line, Name, distinct

# `calibrate` includes the sensitivity job, `score` the look which metrics can be computed, `report`
# everything in tables/ and figures/.
JOBS = ("data", "reference", "calibrate", "infer", "score", "report")


def reaches(*jobs: str) -> dict[str, Any]:
    """For `json_schema_extra`: the jobs whose products a key can change by itself."""
    unknown = set(jobs) - set(JOBS)
    if unknown:
        raise ValueError(f"jobs {sorted(unknown)} are unknown; known: {', '.join(JOBS)}")
    return {"reaches": [job for job in JOBS if job in jobs]}


def parse_scheme(text: str) -> Scheme:
    """Scheme.parse with its error as the user's."""
    try:
        return Scheme.parse(text)
    except ValueError as err:
        raise UserError(f"scheme {text!r}: {err}") from None


def _check_scheme(text: str) -> str:
    parse_scheme(text)
    return text


SchemeName = Annotated[
    str,
    Field(
        pattern="^W(0|[1-9][0-9]*)A(0|[1-9][0-9]*)$",
        json_schema_extra={"expected": "W<bits>A<bits>, such as W6A6"},
    ),
    AfterValidator(_check_scheme),
]
PositiveInt = Annotated[int, Field(ge=1)]
# Scores and records hold seeds; tables read them as 64-bit integers.
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
MOST_THREADS = 1024
ONCE = AfterValidator(distinct)  # of a list: no entry stands there twice
_UNIQUE: dict[str, Any] = {"uniqueItems": True}  # the same for editors
ListFile = Annotated[Line, Field(json_schema_extra={"expected": "the path of a data list"})]
BudgetName = Annotated[str, Field(json_schema_extra={"expected": "a name in budgets.yaml"})]


class CalibrationKeys(StrictModel):
    """Calibration crops that are cut from the photographs of a dataset."""

    list: Line
    """List of relative crops: tab-separated image, fx, fy, size."""
    photos: DatasetChoice
    """The dataset whose HR images are the photographs."""


class LimitKeys(StrictModel):
    """How much of the lists is used."""

    test: PositiveInt | None = Field(
        default=None, json_schema_extra=reaches("data", "reference", "infer", "score", "report")
    )
    """Only the first rows of the test list, or the first images of each dataset."""
    calibration: PositiveInt | None = Field(
        default=None, json_schema_extra=reaches("data", "calibrate")
    )
    """Only the first rows of the calibration list."""


class RunBlock(StrictModel):
    """A block of runs: the product of its four lists."""

    methods: Annotated[tuple[str, ...], ONCE] = Field(min_length=1, json_schema_extra=_UNIQUE)
    """Names of methods in the registry."""
    schemes: Annotated[tuple[SchemeName, ...], ONCE] = Field(
        min_length=1, json_schema_extra=_UNIQUE
    )
    """Bits of weights and activations."""
    scopes: Annotated[tuple[Literal["U", "UV"], ...], ONCE] = Field(
        min_length=1, json_schema_extra=_UNIQUE
    )
    """What is quantized: `U` the UNet, `UV` UNet and VAE."""
    seeds: Annotated[tuple[Seed, ...], ONCE] = Field(min_length=1, json_schema_extra=_UNIQUE)
    """Seeds of the calibration's random numbers."""


class ExternalOutputKeys(StrictModel):
    """Outputs made elsewhere, scored like a run over a whole dataset."""

    name: Name
    """Name in tables; none of the registry's methods."""
    title: Line | None = Field(default=None, json_schema_extra=reaches("report"))
    """Title in tables; by default the name."""
    dataset: str
    """Name of a dataset of `test`."""
    folder: Line
    """Holds `<image>.png` for every LR image of the dataset; may hold ${VARIABLES}."""
    published: Line | None = Field(default=None, json_schema_extra=reaches("report"))
    """Per-image scores to compare with (CSV: image, then metrics); may hold ${VARIABLES}."""


class ExpectedLayers(StrictModel):
    """Numbers of layers, counted without the attention products."""

    unet: PositiveInt | None = None
    """Layers of the UNet."""
    vae: PositiveInt | None = None
    """Layers of the VAE."""


class ConfigFile(StrictModel):
    """A benchmark configuration, as it is written."""

    name: Name = Field(json_schema_extra=reaches(*JOBS))
    """Results go to results/<name>."""
    model: Line = Field(json_schema_extra=reaches("reference", "calibrate", "report"))
    """Folder of a saved model, `tiny` for the random model of the tests, or `sd21-random` for
    random weights at full size."""
    family: Line = Field(default=DEFAULT_FAMILY, json_schema_extra=reaches(*JOBS))
    """Family of the model: a registered name, or `module:OBJECT` of an importable Family."""
    test: Annotated[
        Annotated[ListFile, Tag("string")]
        | Annotated[tuple[DatasetChoice, ...], Field(min_length=1), Tag("array")],
        BY_JSON_TYPE,
    ] = Field(json_schema_extra=reaches("data", "reference", "infer", "score", "report"))
    """List of embedded test crops, or datasets of image files."""
    calibration: Annotated[
        Annotated[ListFile, Tag("string")] | Annotated[CalibrationKeys, Tag("object")],
        BY_JSON_TYPE,
    ] = Field(json_schema_extra=reaches("data", "calibrate"))
    """List of embedded crops, or a list of relative crops and the photographs they are cut from."""
    methods: Line = Field(json_schema_extra=reaches("calibrate", "report"))
    """Registry of methods, such as config/methods.yaml; budgets.yaml lies beside it."""
    runs: tuple[RunBlock, ...] = Field(
        min_length=1, json_schema_extra=reaches("calibrate", "infer", "score", "report")
    )
    """Blocks of runs; each block is the product of its four lists."""
    budget: Annotated[
        Annotated[BudgetName, Tag("string")] | Annotated[Budget, Tag("object")], BY_JSON_TYPE
    ] = Field(default="default", json_schema_extra=reaches("calibrate", "report"))
    """A name in budgets.yaml, or options by method class. They are over the defaults of the class
    and under the options of the registry."""
    batch_size: PositiveInt = Field(json_schema_extra=reaches("calibrate"))
    """Calibration images per training step."""
    metrics: Annotated[tuple[Annotated[str, OneOf(METRICS)], ...], ONCE] = Field(
        min_length=1, json_schema_extra={**reaches("score", "report"), **_UNIQUE}
    )
    """Columns of the tables, in this order."""
    limit: LimitKeys = Field(default=LimitKeys(), json_schema_extra=reaches(*JOBS))
    """Use only the first rows of the lists and the first images of each dataset."""
    sensitivity: SchemeName | None = Field(
        default=None, json_schema_extra=reaches("calibrate", "report")
    )
    """Scheme of the figure in which each layer is quantized alone; null: no such figure."""
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)] = Field(
        default=1, json_schema_extra=reaches("reference", "calibrate", "infer", "score", "report")
    )
    """Torch threads of every job; fixed, because sums depend on their number."""
    device: Annotated[
        str,
        Field(
            pattern="^(cpu|cuda(:[0-9]+)?)$",
            json_schema_extra={"expected": "cpu, cuda or cuda:<number>"},
        ),
    ] = Field(
        default="cpu",
        json_schema_extra=reaches("reference", "calibrate", "infer", "score", "report"),
    )
    """Torch device of reference, calibration, inference and scoring."""
    posterior: Literal["mean", "sample"] = Field(
        default="mean", json_schema_extra=reaches("reference", "infer")
    )
    """Latent of the VAE encoder at inference: the mean of its distribution, or a seeded sample.
    Calibration takes the mean."""
    inference: InferenceOptions = Field(
        default=InferenceOptions(), json_schema_extra=reaches("reference", "infer")
    )
    """How images of any size go through the model; by default whole and as they are."""
    resize_mismatch: bool = Field(default=False, json_schema_extra=reaches("score"))
    """Score outputs of another size than HR after resizing both bilinearly to the smaller size, as
    the released scoring script does; otherwise such an output is an error."""
    low_memory: bool = Field(default=False, json_schema_extra=reaches())
    """Memory before speed, for models of the paper's size: no copy of the float model, blocks
    recomputed in the backward pass. The products have the same bytes."""
    memory_mb: PositiveInt = Field(default=3000, json_schema_extra=reaches())
    """Memory that a scheduler reserves for a calibration or inference job, MB."""
    expected_layers: ExpectedLayers = Field(
        default=ExpectedLayers(), json_schema_extra=reaches("calibrate")
    )
    """How many layers of each part a run must quantize; a calibration with another number stops."""
    external_outputs: tuple[ExternalOutputKeys, ...] = Field(
        default=(), json_schema_extra=reaches("score", "report")
    )
    """Outputs made elsewhere, scored like a run over a whole dataset."""
