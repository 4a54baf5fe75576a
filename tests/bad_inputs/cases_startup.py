"""Environments in which a command must start as ever: what it does not use may be broken."""

import re
from pathlib import Path

import numpy as np
from bad_inputs.table import BadInput
from PIL import Image

from passionsr.models.folder import save_model
from passionsr.models.light_import import OPTIONAL
from passionsr.models.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]
UPSCALE = ("passionsr", "upscale", "lr.png", "sr.png", "--model", "model")


def with_model(folder):
    """A float model and an LR image."""
    save_model(tiny_model(), folder / "model")
    lr = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(lr).save(folder / "lr.png")


def broken(folder, packages, cwd="."):
    """`env` in `cwd` with packages that are installed, and that cannot be imported."""
    for name in packages:
        (folder / "broken" / name).mkdir(parents=True)
        (folder / "broken" / name / "__init__.py").write_text("raise OSError('no libcudart.so')\n")
        (folder / "broken" / f"{name}-9.9.dist-info").mkdir()
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n"
        (folder / "broken" / f"{name}-9.9.dist-info" / "METADATA").write_text(about)
    return ["$", "env", "-C", str(cwd), f"PYTHONPATH={folder / 'broken'}:{ROOT}"]


def broken_optional(folder):
    with_model(folder)
    return [*broken(folder, [name for name in OPTIONAL if "." not in name]), *UPSCALE]


def nowhere_to_write(folder):
    """A quantized model; neither a home, nor numba's folder, nor bytecode can be written."""
    from passionsr.cli import main

    with_model(folder)
    options = ("--method", "minmax", "--scheme", "W8A8", "--calibration", ".", "--model", "model")
    assert main(["quantize", "artifact", *options]) == 0
    (folder / "file").touch()
    places = ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "HF_HOME", "TORCH_HOME")
    settings = [f"{name}={folder / 'file' / 'x'}" for name in places]
    return ["$", "env", "PYTHONDONTWRITEBYTECODE=1", *settings, *UPSCALE[:-1], "artifact"]


def of_configuration(*command):
    def prepare(folder):
        return [*broken(folder, ["torch", "diffusers", "numba"], ROOT), *command]

    return prepare


ROWS = [
    BadInput(
        kind=16,
        given="transformers, scipy and others that cannot be imported",
        prepare=broken_optional,
        answer="sr.png",
        status=0,
        made=("sr.png",),
    ),
    BadInput(
        kind=16,
        given="no folder that can be written to",
        prepare=nowhere_to_write,
        answer="sr.png",
        status=0,
        made=("sr.png",),
    ),
    BadInput(
        kind=16,
        given="check, with a broken torch",
        prepare=of_configuration("passionsr", "check", "config/test.yaml"),
        answer="config/test.yaml: 4 runs, results in results/test",
        status=0,
    ),
    BadInput(
        kind=16,
        given="plan, with a broken torch",
        prepare=of_configuration("passionsr", "plan", "config/mini-full.yaml", "--gpus", "8"),
        answer=re.compile(r"- memory: jobs here may take"),
        status=0,
    ),
    BadInput(
        kind=16,
        given="help, with a broken torch",
        prepare=of_configuration("passionsr", "quantize", "--help"),
        answer=re.compile(r"\S"),
        status=0,
    ),
]
