"""The training recipe: resumable to the bit, seeded, and its pieces."""

import numpy as np
import pytest
import torch
from train_mini import __main__ as command_line
from train_mini import run as run_module
from train_mini.data import make_batch, read_photo_list, vary_colours
from train_mini.losses import LOSSES, chroma_means
from train_mini.recipe import AUTOENCODERS, STAGES, Stage, build_model, learning_rate
from train_mini.run import Run, set_scaling_factor

from passionsr.models.tiny import SmallShape, small_model
from passionsr.utils.files import UserError


@pytest.fixture
def pool():
    return np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)


# The mini model's levels and blocks, narrower: what the recipe does to it does not hang on widths.
NARROW = SmallShape(
    vae_channels=(8, 8, 16),
    unet_channels=(8, 16, 16),
    heads=(1, 2, 2),
    context=(8, 16),
    vae_groups=4,
    unet_groups=4,
)


@pytest.fixture
def short(monkeypatch):
    """Two steps per training stage, of a narrow model."""
    monkeypatch.setattr(run_module, "build_model", lambda seed: small_model(NARROW, seed))
    for name in STAGES:
        monkeypatch.setitem(STAGES, name, Stage(steps=2, batch=2, lr=1e-3))


def no_lpips(image, target):
    return (image - target).square().mean()


def test_resuming_gives_the_same_bytes(pool, short, tmp_path):
    """Stopped after a training stage and at a checkpoint inside one: the end is the same."""
    straight = Run(tmp_path / "a", 0, 1)
    straight.train({64: pool}, no_lpips)
    assert straight.stage == "done"
    Run(tmp_path / "b", 0, 1).train({64: pool}, no_lpips, stop_after="autoencoder")
    resumed = Run(tmp_path / "b", 0, 1)
    assert (resumed.stage, resumed.step) == ("latent", 0)

    class KilledError(Exception):
        pass

    def killed(model, up, hr, lpips, step):
        if step == 1:
            raise KilledError
        return original(model, up, hr, lpips, step)

    original = LOSSES["latent"]
    LOSSES["latent"] = killed
    try:
        with pytest.raises(KilledError):
            resumed.train({64: pool}, no_lpips)
    finally:
        LOSSES["latent"] = original
    again = Run(tmp_path / "b", 0, 1)
    assert (again.stage, again.step) == ("latent", 1)
    again.train({64: pool}, no_lpips)
    a, b = straight.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert straight.model.scaling_factor == again.model.scaling_factor


def test_the_decoder_is_frozen_after_the_autoencoder_stages(pool, short, tmp_path):
    last = AUTOENCODERS[-1]
    Run(tmp_path, 0, 1).train({64: pool}, no_lpips, stop_after=last)
    before = {k: v.clone() for k, v in Run(tmp_path, 0, 1).model.state_dict().items()}
    run = Run(tmp_path, 0, 1)
    run.train({64: pool}, no_lpips)
    for key, value in run.model.state_dict().items():
        frozen = key.startswith(("vae.decoder.", "vae.post_quant_conv.", "context"))
        assert torch.equal(value, before[key]) == frozen, key


def test_latents_get_unit_variance(pool, short, tmp_path):
    model = build_model(0)
    set_scaling_factor(model, pool, 0)
    with torch.no_grad():
        latents = torch.cat(
            [model.encode(make_batch(pool, "autoencoder", 10**6 + i, 0)[1]) for i in range(32)]
        )
    assert float(latents.std()) == pytest.approx(1.0, abs=1e-5)


def test_batches_depend_on_seed_stage_and_step_only(pool):
    up, hr = make_batch(pool, "sr", 3, 0)
    assert up.shape == hr.shape == (STAGES["sr"].batch, 3, 64, 64)
    again = make_batch(pool, "sr", 3, 0)
    assert torch.equal(up, again[0])
    assert torch.equal(hr, again[1])
    assert not torch.equal(hr, make_batch(pool, "sr", 4, 0)[1])
    # The LR is a degraded view of the same crop, not of another one.
    assert (up - hr).abs().mean() < (up - hr.flip(0)).abs().mean()


def test_learning_rate_schedule():
    stage = Stage(steps=100, batch=1, lr=1.0)
    rates = [learning_rate(stage, s) for s in range(100)]
    assert rates[0] == 0.5
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_photo_list_is_well_formed():
    rows = read_photo_list()
    assert len(rows) > 25
    assert len({name for _, name, _ in rows}) == len(rows)
    assert {factor for *_, factor in rows} <= {2, 3, 4}


def test_must_run_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="run this from the repository's root"):
        command_line.main(["--work", str(tmp_path)])


def test_varied_colours_keep_the_luma_mean_of_grey(pool):
    """A grey image stays grey; the same draw gives the same image, and not the original."""
    grey = np.full((8, 8, 3), 90, np.uint8)
    assert np.array_equal(vary_colours(grey, np.random.default_rng(0)), grey)
    image = pool[0]
    first, second = (vary_colours(image, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, image)


def test_chroma_means():
    image = torch.zeros(1, 3, 8, 8)
    image[:, 0, :4] = 1.0  # red above, black below
    chroma = chroma_means(image)
    assert chroma.shape == (1, 2, 2, 2)
    assert chroma[0, 0].tolist() == [[1, 1], [0, 0]]
    assert chroma[0, 1].abs().max() == 0
