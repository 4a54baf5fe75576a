"""LET's border term on maps of every size: single rows and columns, odd sizes, strides."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from passionsr.benchmark.config import load_methods
from passionsr.calibration.batches import make_batches
from passionsr.inference.options import InferenceOptions
from passionsr.inference.super_resolve import super_resolve
from passionsr.methods.base import load_method, quantize_model
from passionsr.methods.passionsr import PassionSR
from passionsr.quantization.artifact import load_quantized, save_quantized
from passionsr.quantization.equivalent_transform import (
    ConvGeometry,
    LearnedScale,
    shift_response,
    whole_border,
)
from passionsr.quantization.layer import MAP_SIZE, LayerConfig, QuantizedLayer
from passionsr.quantization.modules import as_float
from passionsr.quantization.quantizer import observing
from passionsr.quantization.spec import Form, Scheme

CONVS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "3x3-stride2": {"kernel_size": 3, "padding": 1, "stride": 2},
    "3x3-stride3": {"kernel_size": 3, "padding": 1, "stride": 3},
    "3x3-unpadded-stride2": {"kernel_size": 3, "stride": 2},
    "3x5": {"kernel_size": (3, 5), "padding": (1, 2)},
    "3x1-padded-on-one-axis": {"kernel_size": (3, 1), "padding": (1, 0), "stride": (2, 1)},
    "5x5-stride2": {"kernel_size": 5, "padding": 2, "stride": 2},
    "4x4-stride2": {"kernel_size": 4, "padding": 1, "stride": 2},
    "7x7": {"kernel_size": 7, "padding": 3},
    "3x3-dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "3x3-widely-padded": {"kernel_size": 3, "padding": 2},
    "1x1": {"kernel_size": 1},
    "1x1-padded": {"kernel_size": 1, "padding": 1},
}
SIZES = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 7), (8, 1), (3, 2), (3, 3), (4, 5), (5, 4), (6, 6),
         (9, 12), (11, 7)]  # fmt: skip


def layer_of(name, bits=6):
    torch.manual_seed(2)
    conv = nn.Conv2d(6, 5, **CONVS[name]).double()
    config = LayerConfig(
        weight_bits=bits, act_bits=bits, form=Form.REAL_OFFSET, let=True, split=2,
        quantize_bias=True,
    )  # fmt: skip
    quantized = QuantizedLayer(copy.deepcopy(conv), config).double()
    with torch.no_grad():
        quantized.transform.log_scale.uniform_(-1, 1)
        quantized.transform.offset.normal_()
    return conv, quantized


def sizes_of(conv):
    """The sizes that the float convolution takes."""
    g = ConvGeometry.of(conv)
    return [s for s in SIZES if all(s[i] + 2 * g.padding[i] >= g.reach(i) for i in range(2))]


@pytest.mark.parametrize("name", CONVS)
def test_let_is_equivalent_at_every_size(name):
    conv, quantized = layer_of(name)
    for size in sizes_of(conv):
        x = torch.randn(2, 6, *size, dtype=torch.float64)
        with as_float(quantized), torch.no_grad():
            torch.testing.assert_close(quantized(x), conv(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CONVS)
def test_a_border_map_serves_every_size_of_its_residue(name):
    """And says so where it lacks a row, which is never silently another's."""
    conv, quantized = layer_of(name)
    g, offset = ConvGeometry.of(conv), quantized.transform.offset.detach()
    interior = (conv.weight.sum((2, 3)) @ offset).reshape(1, -1, 1, 1)
    answered = 0
    for made_for, size in itertools.product(
        [(64 - i, 64 - j) for i in range(g.stride[0]) for j in range(g.stride[1])], sizes_of(conv)
    ):
        small = shift_response(offset, conv.weight, g, made_for) - interior
        found = whole_border(small, g, made_for, size)
        constant = offset.reshape(1, -1, 1, 1).expand(1, -1, *size)
        expected = F.conv2d(constant, conv.weight, None, g.stride, g.padding, g.dilation) - interior
        if found is None:
            assert any((made_for[i] - size[i]) % g.stride[i] for i in range(2))
            continue
        answered += 1
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert answered >= len(sizes_of(conv))


@pytest.mark.parametrize("name", CONVS)
def test_freezing_keeps_the_output_at_every_size(name):
    """Calibrated at that size; the frozen map may be summed in another order."""
    for size in sizes_of(layer_of(name)[0]):
        _, quantized = layer_of(name)
        x = torch.randn(2, 6, *size, dtype=torch.float64)
        quantized.init_weights()
        with observing(quantized), torch.no_grad():
            quantized(x)
        with torch.no_grad():
            before = quantized(x)
            quantized.freeze()
            torch.testing.assert_close(quantized(x), before, rtol=1e-11, atol=1e-11)


def test_another_residue_than_the_calibrated_one():
    """A strided convolution, frozen at even sizes, at odd ones: from the quantized weight."""
    _, quantized = layer_of("3x3-stride2")
    x = torch.randn(2, 6, 12, 10, dtype=torch.float64)
    quantized.init_weights()
    with observing(quantized), torch.no_grad():
        quantized(x)
    with torch.no_grad():
        quantized.freeze()
        assert quantized.config.map_size == MAP_SIZE
        weight = quantized.weight_quantizer.dequantize(quantized.weight_codes)
        bias = quantized.bias_quantizer.dequantize(quantized.bias_codes)
        o = (quantized.transform.offset / quantized.transform.scale).reshape(1, -1, 1, 1)
        for size in ((1, 1), (3, 3), (7, 4), (4, 7), (11, 13)):
            part = torch.randn(2, 6, *size, dtype=torch.float64)
            activation = quantized.act_quantizer(quantized.transform.input(part))
            response = F.conv2d(o.expand(1, -1, *size), weight, None, 2, 1)
            interior = (weight.sum((2, 3)) @ o.reshape(-1)).reshape(1, -1, 1, 1)
            expected = F.conv2d(activation, weight, bias, 2, 1) + response - interior
            torch.testing.assert_close(quantized(part), expected, rtol=1e-11, atol=1e-11)


# -- whole models ---------------------------------------------------------------------------------

# Height and width of the upscaled LR: below, at and above one latent per side; odd numbers of
# latents, which the UNet's strided convolution halves; sides that the VAE rounds down.
IMAGES = [(4, 4), (4, 8), (8, 4), (8, 8), (4, 36), (12, 12), (20, 12), (5, 7), (16, 24)]


def randomise(model, spread=0.5):
    """Random s and o for every layer and attention."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LearnedScale):
                for parameter in module.parameters():
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.copy_(spread * noise.to(parameter.dtype))


@pytest.mark.parametrize("scope", ["U", "UV"])
def test_the_model_is_equivalent_at_every_size(scope, tiny):
    """Before quantization, to 1e-5 in float32: the size of what x0 = 14.6 (z - eps) amplifies."""
    prepared, _ = PassionSR().prepare(tiny, Scheme.parse("W4A4"), scope)
    randomise(prepared, 0.1)
    for size in IMAGES:
        image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with as_float(prepared), torch.no_grad():
            torch.testing.assert_close(prepared(image), tiny(image), rtol=0, atol=1e-5)


METHODS = load_methods("config/methods.yaml")
FAST = {
    "PassionSR": {"epochs": 1},
    "LSQ": {"epochs": 1},
    "QDiffusion": {"weight_steps": 2, "act_steps": 2},
    "EfficientDM": {"steps": 2},
    "PTQ4DM": {"candidates": 5},
}
EVERY = ["minmax", "ptq4dm", "lsq", "lsq_plus", "qdiffusion", "efficientdm", "passionsr",
         "passionsr_no_let", "passionsr_no_dqc", "passionsr_no_lbq", "official_all"]  # fmt: skip
RELEASED = InferenceOptions(resize="official", process_size=4)


@pytest.mark.parametrize("size", [(4, 4), (12, 4)])
@pytest.mark.parametrize("name", EVERY)
def test_every_method_on_the_smallest_images(name, size, tiny, tmp_path):
    """Calibrated on one latent, or on three in a column; then any size, from the artifact, too."""
    image, target = torch.rand(2, 1, 3, *size, generator=torch.Generator().manual_seed(1))
    batches = make_batches(tiny, [image], 1, 0, [target])
    entry = METHODS[name]
    fast = FAST.get(entry.target.partition(":")[2], {})
    method = load_method(entry.target, {**fast, **entry.options})
    model, _, _ = quantize_model(method, tiny, Scheme.parse("W8A8"), "UV", batches)
    save_quantized(model, tmp_path, {})
    loaded = load_quantized(tmp_path)
    for height, width in ((1, 1), (1, 3), (5, 2)):
        lr = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).numpy()
        for options in (InferenceOptions(), RELEASED):
            made = super_resolve(loaded, lr, options)
            assert made.shape == (4 * height, 4 * width, 3)
            assert (made == super_resolve(model, lr, options)).all()


def test_the_artifact_says_what_its_border_maps_are_made_for(tiny, tmp_path):
    """Only where it matters, so that artifacts of even sizes are what they were."""
    found = {}
    for side in (8, 12):
        batches = make_batches(tiny, [torch.rand(1, 3, side, side)], 1, 0)
        method = PassionSR(epochs=1)
        model, _, _ = quantize_model(method, tiny, Scheme.parse("W8A8"), "UV", batches)
        save_quantized(model, tmp_path / str(side), {})
        loaded = load_quantized(tmp_path / str(side))
        sizes = [
            {n: m.config.map_size for n, m in x.named_modules() if isinstance(m, QuantizedLayer)}
            for x in (model, loaded)
        ]
        assert sizes[0] == sizes[1]
        found[side] = {n: s for n, s in sizes[1].items() if s != MAP_SIZE}
        assert ('"map_size"' in (tmp_path / str(side) / "scheme.json").read_text()) == (side == 12)
    assert found == {8: {}, 12: {"unet.down_blocks.0.downsamplers.0.conv": (63, 63)}}
