"""Save and load quantized models: integer codes in safetensors, the scheme in JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from passionsr.models.family import DEFAULT_FAMILY, Family, family_of_file
from passionsr.models.loading import reading_model
from passionsr.models.one_step import OneStepSR
from passionsr.quantization.attention import AttentionConfig, QuantizedAttention
from passionsr.quantization.layer import MAP_SIZE, LayerConfig, QuantizedLayer
from passionsr.quantization.modules import freeze_empty
from passionsr.quantization.parts import parts_from_plain, parts_to_plain
from passionsr.quantization.spec import Form
from passionsr.quantization.swap import match_attention, match_layers
from passionsr.utils.files import (
    UserError,
    atomic_path,
    check_sha256,
    read_json,
    sha256_file,
    write_json,
)
from passionsr.utils.finite import check_finite

FORMAT = 1
WEIGHTS, SCHEME = "model.safetensors", "scheme.json"
C = TypeVar("C", LayerConfig, AttentionConfig)


def _plain(config: LayerConfig | AttentionConfig) -> dict[str, Any]:
    plain = {k: getattr(v, "value", v) for k, v in dataclasses.asdict(config).items()}
    if plain.get("map_size") == MAP_SIZE:
        del plain["map_size"]  # as in artifacts that are older than it
    return {**plain, "parts": parts_to_plain(config.parts)}


def _config(kind: type[C], plain: dict[str, Any]) -> C:
    """What `_plain` was made of. UserError for a setting that this version does not know."""
    known = {f.name for f in dataclasses.fields(kind)}
    parts = parts_from_plain(plain.get("parts"))
    try:
        # Settings of an older version that were off do not matter.
        given = {k: v for k, v in plain.items() if k in known or v}
        if "map_size" in given:
            given["map_size"] = tuple(given["map_size"])
        forms = {k: Form(given[k]) for k in ("form", "act_form") if given.get(k)}
        return kind(**{**given, **forms, "parts": parts})
    except (TypeError, ValueError) as err:
        raise UserError(
            f"{SCHEME}: a {kind.__name__} of another version ({err}): calibrate again"
        ) from None


def save_quantized(model: OneStepSR, folder: str | Path, info: dict[str, Any]) -> None:
    """Write a frozen model to `folder`: model.safetensors, then scheme.json with its sha256.

    Args: info: what made it (method, scheme, scope, options ...), kept as given.
    Raises UserError, before anything is written, for NaN or infinite values in the model.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    layers, attention = {}, {}
    for name, part in model.named_modules():
        if isinstance(part, QuantizedLayer):
            assert part.frozen, f"{name} is not frozen"
            layers[name] = _plain(part.config)
        elif isinstance(part, QuantizedAttention):
            attention[name.removesuffix(".processor")] = _plain(part.config)
    state = {k: v.contiguous().clone() for k, v in model.state_dict().items()}
    check_finite(
        state.items(),
        f"{folder}: not written, for the quantized model cannot be used",
        "check the float model and the calibration images, or lower the learning rates",
    )
    with atomic_path(folder / WEIGHTS) as tmp:
        save_file(state, tmp)
    write_json(
        folder / SCHEME,
        {
            "format": FORMAT,
            "info": info,
            "family": model.family.name,
            **model.family.describe(model),
            "layers": layers,
            "attention": attention,
            "sha256": sha256_file(folder / WEIGHTS),
        },
    )


def family_of_artifact(folder: str | Path, given: Family | None = None) -> Family:
    """The family of an artifact, see `family_of_file`; one that names none is OSEDiff's."""
    path = Path(folder) / SCHEME
    return family_of_file(_read_scheme(path)["family"], given, path)


def load_quantized(folder: str | Path, family: Family | None = None) -> OneStepSR:
    """Rebuild a saved model; its first forward is bit-identical to the one before saving.

    Args:
        folder: what `save_quantized` wrote.
        family: the family to rebuild it with; left out, the registered one that scheme.json names
            (OSEDiff in artifacts that name none).
    Raises UserError for a missing or damaged file, one of another format version, values that are
    not finite, or another or unknown family.
    """
    folder = Path(folder)
    scheme = _read_scheme(folder / SCHEME)
    check_sha256(folder / WEIGHTS, scheme["sha256"])
    chosen = family_of_artifact(folder, family)
    with reading_model(f"{folder}: {SCHEME} and {WEIGHTS} are not those of one model"):
        return _rebuild(chosen, scheme, folder / WEIGHTS)


def _read_scheme(path: Path) -> dict[str, Any]:
    """The content of scheme.json; UserError for another file, or another version of it."""
    scheme = read_json(path)
    found = scheme.get("format") if isinstance(scheme, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{path}: format is {found}, expected {FORMAT}: an artifact of another version or "
            "program; calibrate again"
        )
    whole = {"family": DEFAULT_FAMILY, **scheme}  # old artifacts name no family
    for name, kind in (("layers", dict), ("attention", dict), ("sha256", str), ("family", str)):
        if not isinstance(whole.get(name), kind):
            raise UserError(f"{path}: {name} is missing or no {kind.__name__}; calibrate again")
    return whole


def _rebuild(family: Family, scheme: dict[str, Any], weights: Path) -> OneStepSR:
    from safetensors.torch import load_file

    # On the meta device: there are no float weights, the file has all there is.
    model = family.build(scheme)
    modules = dict(match_layers(model, "UV"))
    for name, config in scheme["layers"].items():
        parent, _, leaf = name.rpartition(".")
        layer = QuantizedLayer(modules[name], _config(LayerConfig, config))
        setattr(model.get_submodule(parent), leaf, layer)
    attentions: dict[str, Any] = dict(match_attention(model))
    for name, config in scheme["attention"].items():
        attentions[name].set_processor(QuantizedAttention(_config(AttentionConfig, config)))
    state = {k: v.clone() for k, v in load_file(weights).items()}  # out of the mapped file
    check_finite(state.items(), str(weights), "calibrate again")
    freeze_empty(model, state)
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False)
