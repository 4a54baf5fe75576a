"""OneStepSR's constants and the model folder format."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from passionsr.inference.super_resolve import super_resolve
from passionsr.models.folder import load_model, save_model
from passionsr.models.osediff.family import OSEDIFF
from passionsr.utils.files import UserError, sha256_file


def test_constants_of_the_schedule(tiny):
    """The published gains follow from a rounded alpha, hence 2e-5."""
    assert OSEDIFF.alpha() == pytest.approx(0.00466010, abs=5e-9)
    assert tiny.latent_gain == pytest.approx(14.64882, abs=2e-5)
    assert tiny.eps_gain == pytest.approx(14.61465, abs=2e-5)


def test_x0_equals_diffusers_one_step(tiny):
    """The closed form against DDPMScheduler's own x0 prediction (float32.

    1e-4 of values near 15).
    """
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )
    generator = torch.Generator().manual_seed(0)
    z, eps = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    expected = scheduler.step(eps, 999, z).pred_original_sample
    torch.testing.assert_close(tiny.x0(z, eps), expected, rtol=1e-4, atol=1e-4)


def test_x0_vector(shared, tiny):
    """The official closed form.

    1e-5 relative (float64 schedule, tolerance of the vectors' README).
    """
    case = np.load(shared / "vectors" / "x0_t999.npz")
    z, eps = torch.tensor(case["z"]).double(), torch.tensor(case["eps_in"]).double()
    expected = torch.tensor(case["ref_x0"])
    assert (tiny.x0(z, eps) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_any_image_size(tiny):
    """Odd sizes are padded for the model and cut again."""
    lr = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    assert super_resolve(tiny, lr).shape == (36, 52, 3)


def test_model_folder_round_trip(tiny, tmp_path):
    save_model(tiny, tmp_path)
    loaded = load_model(tmp_path)
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(loaded(image), tiny(image))
    assert loaded.alpha == pytest.approx(tiny.alpha, rel=1e-12)


@pytest.fixture
def folder(tiny, tmp_path):
    save_model(tiny, tmp_path / "m")
    return tmp_path / "m"


def test_missing_model_names_the_remedy(tmp_path):
    with pytest.raises(UserError, match="no model here"):
        load_model(tmp_path)


def test_changed_weights_are_refused(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="sha256 is"):
        load_model(folder)


def test_missing_weights_are_refused(folder):
    shutil.rmtree(folder / "vae")
    with pytest.raises(UserError, match=r"vae.* file not found"):
        load_model(folder)


def test_nan_weights_are_refused(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["conv_in.bias"][0] = math.nan
    save_file(state, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["unet/diffusion_pytorch_model.safetensors"] = sha256_file(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"unet\.conv_in\.bias holds NaN"):
        load_model(folder)
