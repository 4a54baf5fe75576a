"""Tiles.

The official grid and blend, the VAE in tiles against the whole, sizes, and what stays in memory.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from vectors import load, relative

from passionsr.data.images import read_uint8, to_tensor, to_uint8, upscale, write_uint8
from passionsr.inference.colour import fix_colour
from passionsr.inference.super_resolve import InferenceOptions, model_input, super_resolve
from passionsr.inference.tiling import (
    DECODER_PAD,
    ENCODER_PAD,
    Tile,
    blended_eps,
    decode_tiled,
    encode_tiled,
    gaussian_weights,
    network_steps,
    run_tiles,
    spans,
    starts,
)
from passionsr.models.one_step import OneStepSR
from passionsr.utils.files import UserError

GRIDS = ["64x64", "65x64", "96x128", "130x100", "48x100"]


@pytest.mark.parametrize("side", [64, 96])
def test_official_weights(shared, side):
    case = load(shared, f"tile_weights_T{side}")
    ours = torch.from_numpy(gaussian_weights(side))
    assert ((ours - case["weights"]) / case["weights"]).abs().max() < 1e-12


@pytest.mark.parametrize("grid", GRIDS)
def test_official_grid_blend_and_x0(shared, tiny, grid):
    """Positions exact and in the order of the calls.

    Eps 1e-5, x0 1e-4 (vectors/README.md, section 8).
    """
    case = load(shared, f"tile_grid_{grid}_T64")
    latent, ramp = case["lat"], case["ramp"]
    seen = []

    def network(tile):
        side = tile.shape[2:]
        # channel 0 is y / 100, channel 1 x / 100: a tile knows where it was cut
        seen.append([round(float(tile[0, c, 0, 0]) * 100) for c in (0, 1)])
        return 0.25 * tile + ramp[: side[0], : side[1]]

    eps = blended_eps(network, latent, int(case["T"]), int(case["overlap"]))
    assert seen == case["pos_yx"].tolist()
    assert (len(seen) > 1) == bool(case["tiled"])
    assert (eps - case["eps"]).abs().max() < 1e-5
    x0 = OneStepSR.x0(tiny, latent, eps)
    assert relative(x0, case["x0"]) < 1e-4


def test_a_latent_narrower_than_the_overlap_ends():
    """The released loop does not end when min(h, w) <= overlap.

    Every latent must be covered once at least.
    """
    latent = torch.rand(1, 2, 20, 300)
    seen = []

    def network(tile):
        seen.append(tile.shape[2:])
        return tile

    assert torch.allclose(blended_eps(network, latent, 64, 32), latent, atol=1e-6)
    assert set(seen) == {(20, 20)}


@pytest.mark.parametrize("length", [64, 65, 100, 511, 512])
def test_starts_cover_the_axis(length):
    begin = starts(length, 64, 32)
    covered = {p for b in begin for p in range(b, b + 64)}
    assert covered == set(range(length))
    assert begin[-1] == length - 64


@pytest.mark.parametrize(("tile", "pad", "multiple"), [(64, 11, 1), (1024, 32, 8), (16, 11, 1)])
@pytest.mark.parametrize("length", [96, 200, 1160, 2048])
def test_spans_share_the_axis(length, tile, pad, multiple):
    made = spans(length, tile, pad, multiple)
    assert [p for s in made for p in range(s.inner, s.inner_end)] == list(range(length))
    for span in made:
        assert span.inner - span.outer in (0, pad)
        assert span.outer_end - span.inner_end in (0, pad) or span.outer_end == length
        assert span.inner_end - span.inner <= tile + 2 * pad + multiple
        assert all(v % multiple == 0 for v in (span.outer, span.inner, span.inner_end))


# -- VAE in tiles -------------------------------------------------------------------------------


def whole(length):
    return spans(length, length, 0)[0]


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_steps_are_the_network(tiny, part):
    """One tile that is the whole image.

    Diffusers' own forward, up to float32 rounding of the norms (1e-5).
    """
    net = getattr(tiny.vae, part)
    x = torch.rand(1, 3 if part == "encoder" else 4, 32, 48, generator=torch.manual_seed(0))
    found = []
    with torch.no_grad():
        for kind in ("pooled", "official"):
            run_tiles(
                net, [Tile(whole(32), whole(48))], lambda t: x, lambda t, y: found.append(y), kind,
                x.device,
            )  # fmt: skip
        expected = net(x)
    for ours in found:
        assert relative(ours, expected) < 1e-5


def test_the_steps_use_quantized_layers(tiny, tiny_batches):
    """Layers are looked up when they run, so that a quantized VAE is tiled like a float one."""
    from passionsr.baselines.minmax import MinMax
    from passionsr.methods.base import quantize_model
    from passionsr.quantization.spec import Scheme

    model, _, _ = quantize_model(MinMax(), tiny, Scheme.parse("W8A8"), "UV", tiny_batches, 0)
    image = tiny_batches[0].image[:1]
    latent = model.encode(image)
    found = []
    size = latent.shape[2:]
    with torch.no_grad():
        run_tiles(
            model.vae.decoder, [Tile(whole(size[0]), whole(size[1]))], lambda t: latent,
            lambda t, y: found.append(y), "pooled", latent.device,
        )  # fmt: skip
        assert relative(found[0], model.vae.decoder(latent)) < 1e-4


def no_attention(tiny):
    """A tiny VAE without attention: what is left between tiles are borders and group norms."""
    import copy

    model = copy.deepcopy(tiny)
    for net in (model.vae.encoder, model.vae.decoder):
        net.mid_block.attentions[0] = None
    return model


def smooth_image(height, width):
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / (9 + c) + y / (23 - c)) for c in range(3)]
    return np.stack(waves, 2).astype(np.uint8)


def decoded(model, latent, kind):
    """decode_tiled put together; every pixel is written once."""
    factor = model.latent_factor
    out = torch.full((1, 3, latent.shape[2] * factor, latent.shape[3] * factor), torch.nan)

    def emit(y, x, part):
        target = out[:, :, y : y + part.shape[2], x : x + part.shape[3]]
        assert target.isnan().all()
        target.copy_(part)

    decode_tiled(model, latent, 16, kind, emit)
    return out


def test_pooled_norms_are_those_of_the_whole(tiny, monkeypatch):
    """Without attention, and with pads wider than what a VAE half sees.

    Equal up to float32 rounding (1e-5).

    With the released pads (32 px, 11 latents) a little of the borders is left, at most 2e-2 on
    random weights. The official average is further off, because the variance between tiles is
    missing in it.
    """
    model, image = no_attention(tiny), smooth_image(96, 256)
    latent = torch.rand(1, 4, 40, 96, generator=torch.manual_seed(0)) - 0.5
    with torch.no_grad():
        codes, pixels = model.encode(to_tensor(image)), model.decode(latent)

        def off(kind):
            mean = encode_tiled(model, image, 64, kind)[0]
            return relative(mean, codes), relative(decoded(model, latent, kind), pixels)

        released = off("pooled")
        monkeypatch.setattr("passionsr.inference.tiling.ENCODER_PAD", 64)
        monkeypatch.setattr("passionsr.inference.tiling.DECODER_PAD", 16)
        wide, official = off("pooled"), off("official")
    assert max(wide) < 1e-5
    assert max(released) < 2e-2
    assert min(official) > 1e-3


def test_small_images_are_not_tiled(tiny):
    """Up to a tile and its pads nothing changes, to the bit."""
    image = smooth_image(32, 64 + 2 * ENCODER_PAD)
    with torch.no_grad():
        mean, _ = encode_tiled(tiny, image, 64, "official")
        assert torch.equal(mean, tiny.encode(to_tensor(image)))
        latent = torch.rand(1, 4, 8, 16 + 2 * DECODER_PAD)
        found = []
        decode_tiled(tiny, latent, 16, "official", lambda y, x, part: found.append(part))
        assert torch.equal(found[0], tiny.decode(latent))


def test_only_one_tile_is_computed_at_a_time(tiny, monkeypatch):
    """Feature maps that reach a convolution never grow with the image."""
    largest = []
    plain = torch.nn.Conv2d.forward

    def spy(self, x):
        largest.append(max(x.shape[2:]) * (self.in_channels > 4))
        return plain(self, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", spy)
    options = InferenceOptions(
        latent_tile=16, latent_overlap=8, encoder_tile=64, decoder_tile=16, resize="pad"
    )
    limit = max(64 + 2 * ENCODER_PAD, (16 + 2 * DECODER_PAD) * tiny.latent_factor)
    for side in (64, 128):
        largest.clear()
        super_resolve(tiny, smooth_image(side, side), options)
        assert 0 < max(largest) <= limit < 4 * side


# -- super_resolve ------------------------------------------------------------------------------


def test_default_is_whole_and_untouched(tiny):
    """Today's bytes: reflection at the right and bottom, one forward of the model."""
    lr = smooth_image(10, 13)
    multiple = tiny.size_multiple
    image = to_tensor(upscale(lr, 4))
    pads = (0, -52 % multiple, 0, -40 % multiple)
    with torch.no_grad():
        expected = to_uint8(tiny(torch.nn.functional.pad(image, pads, mode="reflect")))[:40, :52]
    assert np.array_equal(super_resolve(tiny, lr), expected)
    fixed = super_resolve(tiny, lr, InferenceOptions(colour_fix="adain"))
    assert np.array_equal(fixed, fix_colour(expected, upscale(lr, 4), "adain"))


def test_tiles_larger_than_the_image_change_nothing(tiny):
    lr = smooth_image(16, 24)
    options = InferenceOptions(latent_tile=64, encoder_tile=1024, decoder_tile=224)
    assert np.array_equal(super_resolve(tiny, lr, options), super_resolve(tiny, lr))


@pytest.mark.parametrize("shape", [(40, 72), (37, 50)])
def test_tiled_output_is_near_the_whole(tiny, shape):
    """Attention over a tile instead of the image is what remains.

    Bounded on the tiny model, not exact.
    """
    lr = smooth_image(*shape)
    options = InferenceOptions(latent_tile=24, latent_overlap=12, encoder_tile=64, decoder_tile=24)
    out = super_resolve(tiny, lr, options)
    assert out.shape == (shape[0] * 4, shape[1] * 4, 3)
    assert np.isfinite(out).all()


def test_official_sizes(tiny):
    """OSEDiff: a side below process_size / 4 is enlarged and brought back.

    Others are squeezed, not cut.
    """
    options = InferenceOptions(resize="official", process_size=64)
    lr = smooth_image(20, 27)  # at least 16: not enlarged
    factor = tiny.latent_factor
    image = model_input(lr, 4, 32, options)
    assert image.shape == (64, 96, 3)
    squeezed = Image.fromarray(upscale(lr, 4)).resize((96, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(image, np.asarray(squeezed))
    out = super_resolve(tiny, lr, options)
    assert out.shape == (80 - 80 % factor, 108 - 108 % factor, 3)
    small = smooth_image(8, 11)
    scale = 16 / 8
    enlarged = Image.fromarray(small).resize(
        (int(scale * 11), int(scale * 8)), Image.Resampling.BICUBIC
    )
    assert np.array_equal(model_input(small, 4, 1, options), upscale(np.asarray(enlarged), 4))
    assert super_resolve(tiny, small, options).shape == (32, 44, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent_tile": 32, "latent_overlap": 32}, "latent_overlap 32: give at least 0 and less"),
        ({"latent_tile": 0}, "^latent_tile 0: give 2 or more$"),
        ({"latent_tile": -64}, "^latent_tile -64: give 2 or more$"),
        ({"latent_overlap": -1}, "^latent_overlap -1: give 0 or more$"),
        ({"encoder_tile": 0}, "^encoder_tile 0: give 8 or more$"),
        ({"decoder_tile": -1}, "^decoder_tile -1: give 1 or more$"),
        ({"process_size": 3}, "^process_size 3: give 4 to 16384$"),
        ({"process_size": 10**20}, "^process_size 1(0{20}): give 4 to 16384$"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(UserError, match=message):
        InferenceOptions(**options)


def test_encoder_tiles_fall_between_latents(tiny):
    with pytest.raises(UserError, match="encoder tile 63 px: give a multiple of"):
        encode_tiled(tiny, smooth_image(96, 256), 63, "pooled")


def test_no_temporary_file_is_left(tiny, tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    super_resolve(tiny, smooth_image(40, 40), InferenceOptions(encoder_tile=64, decoder_tile=16))
    assert list(tmp_path.iterdir()) == []
    assert "forward" not in vars(tiny.vae.decoder.conv_norm_out)


def test_steps_end_with_the_output(tiny):
    assert network_steps(tiny.vae.decoder)[-1].norm is tiny.vae.decoder.conv_norm_out


def test_command_line(tiny, tmp_path):
    from passionsr.cli import main
    from passionsr.models.folder import save_model

    save_model(tiny, tmp_path / "model")
    write_uint8(tmp_path / "lr.png", smooth_image(40, 40))
    arguments = [
        "upscale",
        str(tmp_path / "lr.png"),
        str(tmp_path / "x.png"),
        "--model",
        str(tmp_path / "model"),
        "--latent-tile",
        "16",
        "--latent-overlap",
        "8",
        "--encoder-tile",
        "64",
        "--decoder-tile",
        "16",
        "--colour-fix",
        "wavelet",
    ]
    assert main(arguments) == 0
    options = InferenceOptions(
        latent_tile=16, latent_overlap=8, encoder_tile=64, decoder_tile=16, colour_fix="wavelet"
    )
    expected = super_resolve(tiny, smooth_image(40, 40), options)
    assert np.array_equal(read_uint8(tmp_path / "x.png"), expected)
    assert main([*arguments, "--latent-overlap", "16"]) == 2
