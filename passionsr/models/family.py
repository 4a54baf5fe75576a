"""Model families: what the benchmark must know about one kind of one-step super-resolution model.

A family is one object: its parts, its sub-models in calibration order, the layers that methods
keep at 8 bits, its upscaling factor, timestep and x0 rule, and how its models are made, loaded and
saved. To add one, write a file with a `Family` (most will inherit
`passionsr.models.vae_unet.VaeUnetFamily`) and name it in `FAMILIES`, or as
`family: "module:OBJECT"` in a configuration.

This module imports no torch: a workflow asks a family for its facts before any job runs.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from passionsr.utils.files import UserError, read_hashes, read_json

if TYPE_CHECKING:
    from torch import nn

    from passionsr.models.one_step import OneStepSR

# Name -> "module:OBJECT". The module is imported only when the family is asked for.
FAMILIES = {"osediff": "passionsr.models.osediff.family:OSEDIFF"}
DEFAULT_FAMILY = "osediff"  # of configurations, model folders and artifacts that name none
FAMILY_FILE = "family.json"  # in a model folder
MANIFEST = "manifest.json"  # in a model folder: name -> sha256 of every file that is loaded

LayerSet = Mapping[str, tuple[str, ...]]
"""Part -> shell-style patterns of layer names, such as {"unet": ("unet.conv_out",)}."""


@dataclass(frozen=True)
class SubModelSpec:
    """A sub-model by names; `passionsr.calibration.sub_models` turns it into modules and functions.

    Attributes:
        name: "encoder", "unet" (the one that estimates x0) or "decoder".
        modules: names of its modules in the OneStepSR; they lie in one part.
        run: the method of OneStepSR that maps its input to its output.
        source: the field of CalibrationBatch with the float model's input of it.
        target: the field of CalibrationBatch with the float model's output of it.
    """

    name: str
    modules: tuple[str, ...]
    run: str
    source: str
    target: str

    @property
    def part(self) -> str:
        """The top-level part that its modules lie in."""
        return self.modules[0].partition(".")[0]


class Family(ABC):
    """Facts and constructors of one kind of model; stateless, so one object serves everywhere.

    Attributes:
        name: written into model folders and artifacts, and checked when they are read.
        scale: output pixels per LR pixel and axis.
        timestep: the one timestep that the UNet runs at.
        parts: attribute of OneStepSR -> title in tables, in the order of the tables.
        scopes: "U" and "UV" -> parts that are quantized. U is the part that estimates x0, alone.
        sub_models: in calibration order.
        layer_sets: name -> layers that methods treat in a special way; see `layer_set`.
        block_types: class names of the blocks that block reconstruction trains as one unit.
        built_in: names of models that `make` makes, as `model:` in a configuration.
        obtain: how a model folder is made, for an error message; {folder} stands for the folder.
    """

    name: ClassVar[str]
    scale: ClassVar[int]
    timestep: ClassVar[int]
    parts: ClassVar[Mapping[str, str]]
    scopes: ClassVar[Mapping[str, tuple[str, ...]]]
    sub_models: ClassVar[tuple[SubModelSpec, ...]]
    layer_sets: ClassVar[Mapping[str, LayerSet]]
    block_types: ClassVar[tuple[str, ...]] = ()
    built_in: ClassVar[tuple[str, ...]] = ()
    obtain: ClassVar[str] = ""

    # -- the one step -----------------------------------------------------------------------------

    @abstractmethod
    def x0_gains(self, alpha: float) -> tuple[float, float]:
        """(a, b) of the rule x0 = a z - b UNet(z); alpha: alphas_cumprod at the timestep.

        Every usual parametrisation has this form: eps, v and x0 prediction, and residual networks.
        """

    def alpha(self) -> float:
        """alphas_cumprod at the timestep, for models that bring none; 1 where no rule needs it."""
        return 1.0

    # -- quantization -----------------------------------------------------------------------------

    def scope_parts(self, scope: str) -> tuple[str, ...]:
        """The parts that a scope quantizes; UserError for an unknown scope."""
        if scope not in self.scopes:
            raise UserError(
                f"scope {scope!r} is unknown: give 'U' (UNet only) or 'UV' (UNet + VAE)"
            )
        return self.scopes[scope]

    def in_denoiser(self, layer: str) -> bool:
        """Whether a layer belongs to the part that estimates x0."""
        return layer.partition(".")[0] in self.scopes["U"]

    def layer_set(self, name: str) -> LayerSet:
        """The patterns of a set; UserError where this family does not define it.

        "passionsr", "first_last" (LSQ's), "ptq4dm" and "efficientdm" are the 8-bit layers of the
        methods; "efficientdm_float" are the layers that EfficientDM leaves float; "outputs" are the
        layers that end a part.
        """
        if name not in self.layer_sets:
            raise UserError(
                f"model family {self.name} has no layer set {name!r}, only "
                f"{', '.join(self.layer_sets)}: choose method options that need one of these, or "
                "add the set to the family"
            )
        return self.layer_sets[name]

    def in_set(self, name: str, layer: str) -> bool:
        """Whether a layer's name matches a pattern of a set."""
        patterns = [p for part in self.layer_set(name).values() for p in part]
        return any(fnmatchcase(layer, pattern) for pattern in patterns)

    @abstractmethod
    def attentions(self, model: OneStepSR) -> list[tuple[str, nn.Module]]:
        """(name, module) of the attentions whose products are quantized.

        Each must be a diffusers `Attention`, or take a processor in the same way (`set_processor`).
        """

    def skip_splits(self, model: OneStepSR) -> dict[str, int]:
        """Layer -> channels of the hidden state, for layers whose input is (hidden state, skip)."""
        return {}

    # -- making, loading, saving ------------------------------------------------------------------

    def import_networks(self) -> None:  # noqa: B027  a family may have nothing to import
        """Import what `make`, `load` and `build` use, as a job or a command does before it works.

        It may leave out what other programs in this process would want of the same libraries, see
        `passionsr.models.light_import`. Nothing is imported here, so `load` imports what it needs.
        """

    @abstractmethod
    def make(self, name: str) -> OneStepSR:
        """A built-in model in eval mode, without gradients; `name` is one of `built_in`."""

    @abstractmethod
    def load(self, folder: Path) -> OneStepSR:
        """The model of a folder whose files have been checked; `folder.load_model` calls this."""

    @abstractmethod
    def save(self, model: OneStepSR, folder: Path) -> list[str]:
        """Write a model's files; returns the names of all files that `load` reads."""

    @abstractmethod
    def describe(self, model: OneStepSR) -> dict[str, Any]:
        """All that `build` needs, as JSON: written into a quantized artifact."""

    @abstractmethod
    def build(self, description: Mapping[str, Any]) -> OneStepSR:
        """The architecture that `describe` described, on the meta device, without weights."""

    @abstractmethod
    def architecture(self, model: str) -> OneStepSR:
        """A built-in model or a model folder on the meta device, without weights (for counting)."""


def get_family(name: str) -> Family:
    """The family of a registered name, or of "module:OBJECT", which is imported.

    Raises UserError where there is none: give only names that the user has written, never ones
    read from a downloaded file (see `family_of_file`).
    """
    module, _, attribute = FAMILIES.get(name, name).partition(":")
    if not attribute:
        raise UserError(
            f"model family {name!r} is unknown: give one of {', '.join(FAMILIES)}, or module:OBJECT"
        )
    try:
        family = getattr(importlib.import_module(module), attribute)
    except Exception as err:  # a foreign module can raise anything
        raise UserError(
            f"model family {name!r} cannot be imported ({err}); give module:OBJECT"
        ) from None
    if not isinstance(family, Family):
        raise UserError(f"model family {name!r} is a {type(family).__name__}, not a Family object")
    return family


def family_of_file(name: str, given: Family | None, source: str | Path) -> Family:
    """The family that a file names: `given`, or a registered one where none is given.

    A file makes nothing outside the registry be imported. Raises UserError for a name that is not
    registered, and where `given` is another family.
    """
    if given is not None and given.name != name:
        raise UserError(
            f"{source}: made by model family {name!r}, but {given.name!r} is asked for; "
            "set `family:` to the one that made it"
        )
    if given is None and name not in FAMILIES:
        raise UserError(
            f"{source}: model family {name!r} is not one of {', '.join(FAMILIES)}: name its "
            "module:OBJECT (`family:` in a configuration)"
        )
    return given or get_family(name)


def family_of_folder(folder: str | Path, given: Family | None = None) -> Family:
    """The family of a model folder, see `family_of_file`; a folder that names none is OSEDiff's."""
    path = Path(folder) / FAMILY_FILE
    if not path.is_file():
        return family_of_file(DEFAULT_FAMILY, given, path)
    value = read_json(path)
    name = value.get("family") if isinstance(value, dict) else None
    if not isinstance(name, str):
        raise UserError(f'{path}: expected {{"family": "<name>"}}, as passionsr writes it')
    return family_of_file(name, given, path)


def read_manifest(folder: Path) -> dict[str, str]:
    """File of a model folder -> its sha256; UserError if there is no manifest, or another file."""
    return read_hashes(folder / MANIFEST)
