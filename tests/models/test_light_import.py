"""The light import of diffusers: what it leaves out, and that nothing else is lost by it."""

import subprocess
import sys
from pathlib import Path

from passionsr.methods.base import quantize_model
from passionsr.methods.passionsr import PassionSR
from passionsr.models.folder import save_model
from passionsr.models.light_import import CROWDED, OPTIONAL
from passionsr.quantization.artifact import save_quantized
from passionsr.quantization.spec import Scheme

W6A6 = Scheme.parse("W6A6")
ROOT = Path(__file__).resolve().parents[2]


def python(code, *arguments):
    """What a new process prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_what_is_left_out_comes_when_it_is_asked_for():
    """Optional packages, and the other modules of a package whose __init__ has not run."""
    code = f"""
import importlib, sys
from passionsr.models.osediff.family import OSEDIFF
OSEDIFF.import_networks()
print(sorted({OPTIONAL} & sys.modules.keys()))
import diffusers.models.unets, diffusers.models.unets.unet_2d_condition as ours
print(diffusers.models.unets.unet_2d_condition is ours)
print("diffusers.models.unets.unet_1d" in sys.modules)
print(diffusers.models.unets.UNet1DModel.__name__)
print(diffusers.models.unets.UNet2DConditionModel is ours.UNet2DConditionModel)
try:
    diffusers.models.transformers.nothing
except AttributeError as err:
    print(err)
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.hooks import ModelHook
import importlib.metadata, scipy.stats, torch._dynamo
print("diffusers" in importlib.metadata.packages_distributions())
from transformers import CLIPTextConfig
""".replace(str(OPTIONAL), f"set({OPTIONAL})")
    assert python(code).splitlines() == [
        "[]",
        "True",
        "False",
        "UNet1DModel",
        "True",
        "module 'diffusers.models.transformers' has no attribute 'nothing'",
        "True",
    ]


def test_diffusers_that_is_there_already_is_left_as_it_is():
    """In a process that has imported diffusers whole, its classes are used."""
    code = f"""
import sys
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet1DModel
import accelerate
before = {{name: sys.modules.get(name) for name in {CROWDED} + {OPTIONAL}}}
from passionsr.models.osediff.family import OSEDIFF
OSEDIFF.import_networks()
print(all(sys.modules.get(name) is module for name, module in before.items()))
print(type(OSEDIFF.make("tiny").vae) is AutoencoderKL)
"""
    assert python(code).splitlines() == ["True", "True"]


def test_the_library_leaves_nothing_out():
    """Who calls `load_model` in a process of his own can use all of diffusers there."""
    code = """
import sys
from passionsr.models.folder import load_model
load_model("models/mini")
import diffusers.utils.import_utils as found
print(found.is_transformers_available(), found.is_accelerate_available())
"""
    assert python(code) == "True True\n"


def test_a_light_model_is_the_whole_one(tiny, tiny_batches, tmp_path):
    """The same image, to the byte, of the float model and of a quantized one."""
    code = """
import sys
import numpy as np
if sys.argv[1] == "whole":
    import accelerate, transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel
from passionsr.benchmark.standalone import read_model
from passionsr.inference.super_resolve import super_resolve
from passionsr.quantization import quantizer
if sys.argv[1] == "whole":
    quantizer.worth_kernels.left = 0  # numba's loops from the first value on
from pathlib import Path
lr = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
for folder in sys.argv[2:]:
    sys.stdout.write(super_resolve(read_model(Path(folder)), lr).tobytes().hex() + "\\n")
print("passionsr.quantization.cpu_kernels" in sys.modules)
"""
    save_model(tiny, tmp_path / "model")
    quantized, _, _ = quantize_model(PassionSR(epochs=0), tiny, W6A6, "UV", tiny_batches)
    save_quantized(quantized, tmp_path / "artifact", {})
    folders = tmp_path / "model", tmp_path / "artifact"
    *whole, loops = python(code, "whole", *folders).splitlines()
    *light, chain = python(code, "light", *folders).splitlines()
    assert (loops, chain) == ("True", "False")
    assert light == whole
    assert len(set(light)) == 2
