"""OSEDiff's checkpoint: read strictly, its LoRA merged into SD2.1, saved as a model folder."""

from __future__ import annotations

import logging
import pickle
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from passionsr.models.folder import save_model
from passionsr.models.one_step import OneStepSR
from passionsr.models.osediff.family import OSEDIFF
from passionsr.models.osediff.sd21 import (
    check_empty_context,
    embed_prompt,
    find_base,
    has_text_encoder,
    load_base,
)
from passionsr.utils.contents import kind_of
from passionsr.utils.files import UserError, check_sha256, sha256_file, write_json
from passionsr.utils.finite import is_finite
from passionsr.utils.foreign_files import is_foreign
from passionsr.utils.outputs import check_output_folder

log = logging.getLogger(__name__)

LORA_ALPHA = 8  # peft's default: OSEDiff's LoraConfig names none, and the checkpoint holds none
ENTRIES = ("passionsr-fp", "osediff")
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.(?P<adapter>[^.]+)\.weight")
# part -> (names of its tensors in the released and in the older layout, its lists by adapter)
_LAYOUT = {
    "unet": (
        ("state_dict_unet", "unet_state_dict"),
        {
            "default_encoder": "unet_lora_encoder_modules",
            "default_decoder": "unet_lora_decoder_modules",
            "default_others": "unet_lora_others_modules",
        },
    ),
    "vae": (
        ("state_dict_vae", "vae_state_dict"),
        {"default_encoder": "vae_lora_encoder_modules"},
    ),
}
_BASE_LAYER = ".base_layer."


@dataclass(frozen=True)
class PartUpdate:
    """What a checkpoint changes in one part of the model.

    Attributes:
        rank: of its LoRA.
        lora: (module, adapter) -> (A, B).
        replaced: parameter name -> new value (the UNet's conv_in, which is trained as a whole).
    """

    rank: int
    lora: Mapping[tuple[str, str], tuple[Tensor, Tensor]]
    replaced: Mapping[str, Tensor]


def load_pickle(path: str | Path) -> Any:
    """torch.load of plain tensors and containers on the CPU; UserError for everything else.

    A file that asks for any other class or function is refused before it can run anything.
    """
    path = Path(path)
    if not path.is_file():
        found = "is a folder, expected a file of weights" if path.is_dir() else "file not found"
        raise UserError(f"{path}: {found}")
    instead = kind_of(path)
    if instead:
        raise UserError(
            f"{path}: not a checkpoint, truncated or damaged (it is {instead}); fetch it again"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        asked = re.search(r"GLOBAL (\S+)", str(err))
        if asked:
            raise UserError(
                f"{path}: refused, it asks for {asked[1]}, which a file of weights does not need"
            ) from None
        raise UserError(f"{path}: not a checkpoint, truncated or damaged; fetch it again") from None
    except Exception as err:  # a truncated file can fail anywhere in the zip and pickle readers
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0][:120]
        raise UserError(
            f"{path}: not a checkpoint, truncated or damaged ({reason}); fetch it again"
        ) from None


def read_checkpoint(path: str | Path, sha256: str | None = None) -> dict[str, PartUpdate]:
    """Read osediff.pkl in either spelling: {"unet": ..., "vae": ...}.

    sha256: expected hash of the file. Raises UserError for a wrong hash, a damaged or foreign file,
    and for lists and tensors that do not belong together.
    """
    path = Path(path)
    if sha256 is not None:
        check_sha256(path, sha256)
    raw = load_pickle(path)
    if not isinstance(raw, dict) or not all(isinstance(k, str) for k in raw):
        raise UserError(f"{path}: expected a dictionary of names, as OSEDiff's save_model writes")
    return {part: _read_part(path, raw, part) for part in _LAYOUT}


def _read_part(path: Path, raw: dict[str, Any], part: str) -> PartUpdate:
    spellings, lists = _LAYOUT[part]
    present = [s for s in spellings if s in raw]
    missing = [k for k in (f"rank_{part}", *lists.values()) if k not in raw]
    if len(present) != 1 or missing:
        wanted = missing or [" or ".join(spellings)]
        raise UserError(f"{path}: not OSEDiff's layout, {', '.join(wanted)} is missing")
    rank, state = raw[f"rank_{part}"], raw[present[0]]
    if type(rank) is not int or rank < 1:
        raise UserError(f"{path}: rank_{part} is {rank!r}, expected a positive integer")
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise UserError(f"{path}: {present[0]} is not a dictionary of tensors")
    listed: set[tuple[str, str]] = set()
    for adapter, key in lists.items():
        if not isinstance(raw[key], list) or not all(isinstance(m, str) for m in raw[key]):
            raise UserError(f"{path}: {key} is not a list of module names")
        listed |= {(module, adapter) for module in raw[key]}  # names stand there more than once
    sides: dict[tuple[str, str], dict[str, Tensor]] = {}
    replaced = {}
    for name, tensor in state.items():
        if not is_finite(tensor):
            raise UserError(f"{path}: {present[0]}: {name} holds NaN or infinite values")
        match = _LORA.fullmatch(name)
        if match and part == "vae" and match["adapter"] == "default_decoder":
            continue  # of the older layout; ignored by its own loader too
        if match and (match["module"], match["adapter"]) in listed:
            sides.setdefault((match["module"], match["adapter"]), {})[match["side"]] = tensor
        elif part == "unet" and name.startswith(f"conv_in{_BASE_LAYER}"):
            replaced[name.replace(_BASE_LAYER, ".")] = tensor
        else:
            raise UserError(f"{path}: {present[0]}: {name} belongs to no listed module")
    for module, adapter in sorted(listed):
        if set(sides.get((module, adapter), {})) != {"A", "B"}:
            raise UserError(
                f"{path}: {present[0]}: {module} is listed but has no complete lora_A / lora_B of "
                f"{adapter}"
            )
    if part == "unet" and set(replaced) != {"conv_in.weight", "conv_in.bias"}:
        raise UserError(f"{path}: {present[0]}: conv_in.base_layer.weight or .bias is missing")
    return PartUpdate(rank, {k: (s["A"], s["B"]) for k, s in sides.items()}, replaced)


def lora_delta(a: Tensor, b: Tensor, alpha: float = LORA_ALPHA) -> Tensor:
    """Alpha / r B A in the weight's shape.

    Args: a: (r, Cin) or (r, Cin, kh, kw). b: (Cout, r) or (Cout, r, 1, 1).
    """
    scaling = alpha / a.shape[0]
    return (scaling * (b.flatten(1) @ a.flatten(1))).reshape(b.shape[0], *a.shape[1:])


@torch.no_grad()
def merge(root: nn.Module, update: PartUpdate, source: str = "checkpoint") -> int:
    """Apply one part's update to its model in place; returns the number of LoRA layers merged.

    Everything is checked before anything is changed. Raises UserError for a module that the model
    does not have and for shapes that do not fit.
    """
    modules = dict(root.named_modules())
    parameters = dict(root.named_parameters())
    for name, value in update.replaced.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise UserError(
                f"{source}: {name} of shape {list(value.shape)} does not fit the base model"
            )
    for (name, adapter), (a, b) in update.lora.items():
        layer = modules.get(name)
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            raise UserError(f"{source}: the base model has no layer {name} (adapter {adapter})")
        shape, rank = layer.weight.shape, update.rank
        ones = (1,) * (len(shape) - 2)
        if a.shape != (rank, *shape[1:]) or b.shape != (shape[0], rank, *ones):
            raise UserError(
                f"{source}: {name}: lora_A {list(a.shape)} and lora_B {list(b.shape)} do not fit a "
                f"weight of {list(shape)} at rank {rank}"
            )
    for name, value in update.replaced.items():
        parameters[name].copy_(value)
    for (name, _), (a, b) in update.lora.items():
        modules[name].weight.add_(lora_delta(a.float(), b.float()))
    return len(update.lora)


def read_context(path: str | Path) -> Tensor:
    """A context tensor from .pt (plain tensor) or .safetensors (one tensor)."""
    path = Path(path)
    if path.suffix != ".safetensors":
        value = load_pickle(path)
    else:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            value = next(iter(load_file(path).values()), None)
        except (OSError, SafetensorError) as err:
            instead = kind_of(path) if path.is_file() else None
            reason = f"it is {instead}" if instead else str(err)[:120]
            raise UserError(f"{path}: cannot be read ({reason})") from None
    if not isinstance(value, Tensor):
        raise UserError(f"{path}: expected one tensor [1, 77, 1024]")
    return value


def _context(base: Path, supplied: str | Path | None, dim: int) -> tuple[Tensor, str]:
    """The empty prompt's embedding and its source: a supplied file before the text encoder."""
    if supplied is not None:
        return check_empty_context(read_context(supplied), dim, str(supplied)), str(supplied)
    if has_text_encoder(base):
        source = f"{base}/text_encoder"
        return check_empty_context(embed_prompt(base, ""), dim, source), source
    raise UserError(
        f"{base}: no text_encoder/ and tokenizer/ to compute the empty prompt's embedding: "
        "give --context, PassionSR's empty_context_embedding.pt"
    )


def _foreign(_: str, names: list[str]) -> list[str]:
    return [name for name in names if is_foreign(name)]


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A temporary folder that becomes `output` at the end, and is deleted on failure."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".tmp-{output.name}-"))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def import_osediff(
    output: str | Path,
    checkpoint: str | Path,
    base: str | None = None,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    context: str | Path | None = None,
    entry: str = "passionsr-fp",
) -> dict[str, Any]:
    """SD2.1-base + osediff.pkl -> a model folder for `load_model`; returns what import.json says.

    Args:
        output: folder to make; it must not exist.
        checkpoint: osediff.pkl.
        base: see `find_base`.
        revision: see `find_base`.
        sha256: expected hash of the checkpoint.
        context: file of the empty prompt's embedding.
        entry: "passionsr-fp", or "osediff" to keep the prompt branch (text_encoder/, tokenizer/).
    Raises UserError; nothing is left behind then.
    """
    output = Path(output)
    if entry not in ENTRIES:
        raise UserError(f"entry {entry!r} is unknown: give one of {', '.join(ENTRIES)}")
    if output.exists():
        raise UserError(f"{output} is there already; remove it or give another folder")
    check_output_folder(output)
    updates = read_checkpoint(checkpoint, sha256)
    folder = find_base(base, revision)
    if entry == "osediff" and not has_text_encoder(folder):
        raise UserError(
            f"{folder}: the prompt branch is absent (text_encoder/, tokenizer/); add them, or "
            "import --entry passionsr-fp"
        )
    vae, unet = load_base(folder)
    embedding, context_source = _context(folder, context, unet.config.cross_attention_dim)
    merged = {
        name: merge(part, updates[name], str(checkpoint))
        for name, part in (("unet", unet), ("vae", vae))
    }
    log.info("merged LoRA into %(unet)d layers of the UNet and %(vae)d of the VAE", merged)
    card = {
        "entry": entry,
        "base": str(folder),
        "checkpoint_sha256": sha256_file(checkpoint),
        "context": context_source,
        "lora_layers": merged,
        "rank": {name: update.rank for name, update in updates.items()},
        "lora_alpha": LORA_ALPHA,
    }
    with _new_folder(output) as temporary:
        if entry == "osediff":
            for part in ("text_encoder", "tokenizer"):
                shutil.copytree(folder / part, temporary / part, ignore=_foreign)
        write_json(temporary / "import.json", card)
        save_model(OneStepSR(vae, unet, embedding, family=OSEDIFF), temporary)
    return card
