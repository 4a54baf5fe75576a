"""Model folders <-> OneStepSR. Local files only; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

from passionsr.models.family import (
    FAMILY_FILE,
    MANIFEST,
    Family,
    family_of_folder,
    read_manifest,
)
from passionsr.models.loading import reading_model
from passionsr.models.one_step import OneStepSR
from passionsr.utils.files import UserError, check_sha256, sha256_file, write_json
from passionsr.utils.finite import check_finite


def load_model(folder: str | Path, family: Family | None = None) -> OneStepSR:
    """Load a folder that `save_model` wrote, in eval mode and float32.

    family.json names the model's family (OSEDiff where it is missing), manifest.json the sha256 of
    every file; all of them are checked.

    Args:
        folder: the model folder.
        family: the family to read it with; left out, the registered one that the folder names.
    Raises UserError for a missing folder or file, a wrong hash, another or unknown family, or
    weights that are not finite.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder}: no model here (manifest.json is missing); give the folder of a model saved "
            "by passionsr, for example models/mini"
        )
    for name, digest in read_manifest(folder).items():
        check_sha256(folder / name, digest)
    chosen = family_of_folder(folder, family)
    with reading_model(f"{folder}: not a whole model of family {chosen.name}"):
        model = chosen.load(folder).eval().requires_grad_(False)
    # Out of the memory-mapped file: kernels are chosen by alignment, so results would depend on it.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    check_finite(model.state_dict().items(), str(folder), "make or fetch the model again")
    return model


def save_model(model: OneStepSR, folder: str | Path) -> None:
    """Write a model folder that `load_model` reads; the manifest is written last."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    write_json(folder / FAMILY_FILE, {"family": model.family.name})
    names = [FAMILY_FILE, *model.family.save(model, folder)]
    write_json(folder / MANIFEST, {name: sha256_file(folder / name) for name in names})
