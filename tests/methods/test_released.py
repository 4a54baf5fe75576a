"""The switches that reproduce released behaviour: each does what it says, alone."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from vectors import load

from passionsr.benchmark.config import load_methods
from passionsr.calibration.batches import make_batches
from passionsr.calibration.checkpoints import NoCheckpoints
from passionsr.calibration.fit import FitConfig, FitLog, FitStage, ParamGroup, every_step, fit
from passionsr.calibration.sub_models import in_sequence
from passionsr.methods.base import quantize_model
from passionsr.methods.passionsr import PassionSR, official_values
from passionsr.methods.released import (
    ReleasedParts,
    ReleasedQuantizer,
    ReleasedTransform,
    fake_quantize_stale,
    once_per_epoch,
)
from passionsr.quantization.artifact import load_quantized, save_quantized
from passionsr.quantization.functional import round_half_away, scale_of
from passionsr.quantization.layer import QuantizedLayer
from passionsr.quantization.quantizer import Quantizer, quantizers
from passionsr.quantization.spec import Form, QuantSpec, Scheme
from passionsr.utils.files import UserError

# Without undo_worse, which is no difference of its own.
OFFICIAL = {k: v for k, v in official_values().items() if k != "undo_worse"}
FAST = {"epochs": 1, "let_lr": 1e-3, "lbq_lr": 1e-3}
W6A6 = Scheme.parse("W6A6")
LBQ = [f"lbq_{k}_b{b}" for k in ("act", "weight_conv", "weight_linear") for b in (8, 6, 4)]


@pytest.fixture(scope="module")
def batches(tiny):
    generator = torch.Generator().manual_seed(3)
    images, hrs = (
        [torch.rand(1, 3, 32, 32, generator=generator) for _ in range(4)] for _ in range(2)
    )
    return make_batches(tiny, images, 2, 0, hrs)


def relative(got, want):
    return float((got.flatten() - want.flatten()).abs().max() / (1 + want.abs().max()))


@pytest.mark.parametrize("name", LBQ)
def test_stale_zero_point_vectors(shared, name):
    """First forward after the bounds moved (zero point of the old scale), then the second.

    Outputs and gradients.
    """
    v = load(shared, name)
    levels = 2 ** int(v["bits"]) - 1
    for call, previous in (
        ("clip1", v["prev_delta"]),
        ("clip2", (v["x_max"] - v["x_min"]) / levels),
    ):
        x, lower, upper = (v[k].clone().requires_grad_(True) for k in ("x", "x_min", "x_max"))
        y = fake_quantize_stale(x, lower, upper, levels, previous)
        (y * v["G"]).sum().backward()
        assert relative(y, v[f"{call}_y"]) < 1e-10
        assert relative(x.grad, v[f"{call}_gx"]) < 1e-10
        assert relative(upper.grad, v[f"{call}_gmax"]) < 1e-9
        assert relative(lower.grad, v[f"{call}_gmin"]) < 1e-9


def test_a_quantizer_remembers_the_last_scale_until_it_settles():
    x = torch.linspace(-1, 2, 50)
    quantizer = ReleasedQuantizer(QuantSpec(bits=4, form=Form.INT_ZP), (), stale=True)
    quantizer.set_bounds(torch.tensor([-1.0]), torch.tensor([2.0]))
    first = quantizer(x)
    with torch.no_grad():
        quantizer.upper.mul_(0.6)
    stale = quantizer(x)
    fresh = quantizer(x)
    assert not torch.equal(stale, fresh)
    quantizer.fold_scale_into_bounds()
    assert torch.equal(quantizer(x), fresh)
    assert torch.equal(quantizer(x), fresh)
    assert not torch.equal(first, fresh)


def chain_of_operations(x, lower, upper, levels, previous):
    """The released forward pass, operation by operation, for autograd to differentiate."""

    def straight_through(t):
        return t + (round_half_away(t) - t).detach()

    scale = scale_of(lower, upper, levels)
    zero = straight_through(lower / previous)
    codes = straight_through(x / scale) - zero
    ends = torch.zeros_like(codes), torch.full_like(codes, float(levels))
    codes = torch.where(codes < 0, ends[0], torch.where(codes > levels, ends[1], codes))
    return (codes + zero) * scale


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("bounds", [(), (6, 1, 1, 1), (1, 4, 1, 1), (6, 4, 9, 9)])
@pytest.mark.parametrize("width", [0.0, 1.0])
def test_stale_gradients_are_the_chains(bounds, width, learned):
    """To the bit; a range without width, whose floor stops the scale's gradient.

    A range for each value.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, 9, 9, generator=generator)
    grad = torch.randn(x.shape, generator=generator)
    lower = -width * (0.3 + torch.rand(bounds, generator=generator))
    upper = width * (0.5 + torch.rand(bounds, generator=generator))
    previous = scale_of(lower, upper, 15) * 1.4
    found = []
    for run in (chain_of_operations, fake_quantize_stale):
        leaf = x.clone().requires_grad_(True)
        ends = [b.clone().requires_grad_(learned) for b in (lower, upper)]
        out = run(leaf, *ends, 15, previous)
        out.backward(grad)
        found.append([out, leaf.grad, *([b.grad for b in ends] if learned else [])])
    assert (found[1][1] == 0).any()
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_stale_zero_point_keeps_its_input_only():
    """And the scale of its own forward pass, whatever passes came after."""
    x = torch.linspace(-1, 2, 50, requires_grad=True)
    quantizer = ReleasedQuantizer(
        QuantSpec(bits=4, form=Form.INT_ZP), (), stale=True
    ).requires_grad_(True)
    quantizer.set_bounds(torch.tensor([-0.8]), torch.tensor([1.7]))
    previous = (quantizer.upper - quantizer.lower).detach()[0] / 15
    quantizer(x.detach())
    with torch.no_grad():
        quantizer.upper.mul_(0.6)
    sizes = []
    pack = torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    )
    with pack:
        out = quantizer(x)
    quantizer(x.detach())  # its scale is not the backward pass's
    (out * x.detach()).sum().backward()
    assert sizes.count(50) == 1
    leaf, low, high = (
        t.detach().clone().requires_grad_(True) for t in (x, quantizer.lower, quantizer.upper)
    )
    chain = chain_of_operations(leaf, low, high, 15, previous)
    (chain * leaf.detach()).sum().backward()
    assert torch.equal(out, chain)
    for one, other in ((x, leaf), (quantizer.lower, low), (quantizer.upper, high)):
        assert torch.equal(one.grad, other.grad)


def test_gradients_add_up_over_an_epoch():
    """zero_grad="epoch": the k-th step of an epoch uses the sum of its first k gradients."""
    batches = [1.0, 2.0, 4.0]
    seen = {}
    for mode, clears in (("step", every_step), ("epoch", once_per_epoch)):
        parameter = nn.Parameter(torch.tensor([0.0]))
        seen[mode] = []
        parameter.register_post_accumulate_grad_hook(
            lambda p, mode=mode: seen[mode].append(float(p.grad))
        )
        # the loss is linear, so gradients are the batches' own numbers
        config = FitConfig(lr=0.1, epochs=2, clears_gradients=clears)
        fit(
            [ParamGroup([parameter])],
            lambda b, p=parameter: b * p.sum(),
            batches,
            config,
            FitStage("t", FitLog()),
        )
    assert seen["step"] == [1, 2, 4, 1, 2, 4]
    assert seen["epoch"] == [1, 3, 7, 1, 3, 7]


def state_with(options, tiny, batches):
    """Of a model calibrated so that every switch can show.

    Some do if the offset has moved, or in the second epoch.
    """
    method = PassionSR(**{**FAST, "epochs": 2, "let_lr": 1e-2, "undo_worse": False}, **options)
    model, _, _ = quantize_model(method, tiny, W6A6, "UV", batches)
    return model.state_dict()


@pytest.fixture(scope="module")
def plain(tiny, batches):
    return state_with({}, tiny, batches)


@pytest.mark.parametrize("switch", OFFICIAL)
def test_each_switch_changes_the_result(switch, plain, tiny, batches):
    """A switch that made no difference would be a switch that is not wired."""
    switched = state_with({switch: OFFICIAL[switch]}, tiny, batches)
    assert not all(torch.equal(plain[k], switched[k]) for k in plain if k in switched)


def test_what_no_switch_changes_is_the_same(plain, tiny, batches):
    """So that a difference above is the switch's."""
    again = state_with({}, tiny, batches)
    assert again.keys() == plain.keys()
    assert all(torch.equal(plain[k], again[k]) for k in plain)


def test_the_row_of_all_switches_has_all():
    row = load_methods("config/methods.yaml")["official_all"]
    assert vars(PassionSR(**row.options)) == {
        **vars(PassionSR()),
        **OFFICIAL,
        "undo_worse": False,
        "official": True,
    }


def test_official_leaves_what_is_given():
    """A switch that is set to another value than its default is not touched."""
    method = PassionSR(official=True, lbq_form="int_zp", lbq_reinit_after_let="sample", epochs=5)
    assert (method.lbq_form, method.lbq_reinit_after_let) == ("int_zp", "sample")
    assert (method.epochs, method.zero_grad) == (5, "epoch")


def test_each_part_is_used_where_it_belongs(tiny):
    """Of layers and attentions, of the switch's kind only."""
    model, _ = PassionSR(official=True).prepare(tiny, W6A6, "UV")
    assert {type(q) for q in quantizers(model.unet)} == {ReleasedQuantizer}
    layers = [m for m in model.modules() if isinstance(m, QuantizedLayer)]
    for layer in layers:
        split = bool(layer.config.split) and not layer.is_conv
        assert layer.act_quantizer.half_of_axis == split
        assert isinstance(layer.transform, ReleasedTransform) != layer.is_conv
    plain, _ = PassionSR().prepare(tiny, W6A6, "UV")
    assert {type(q) for q in quantizers(plain.unet)} == {Quantizer}


def test_an_artifact_names_its_parts(tiny, batches, tmp_path):
    """Nothing but this package's parts is imported for an artifact.

    Whatever its scheme.json says.
    """
    method = PassionSR(quantize_bias="official", epochs=0)
    model, _, _ = quantize_model(method, tiny, W6A6, "U", batches)
    save_quantized(model, tmp_path, {})
    scheme = json.loads((tmp_path / "scheme.json").read_text())
    parts = scheme["layers"]["unet.conv_in"]["parts"]
    assert parts.pop("class") == "passionsr.methods.released:ReleasedParts"
    assert parts == vars(ReleasedParts(float_shift=True))
    for target in (
        "os:system",
        "passionsr.methods.released:fake_quantize_stale",
        "passionsr.no:No",
    ):
        scheme["layers"]["unet.conv_in"]["parts"] = {"class": target}
        (tmp_path / "scheme.json").write_text(json.dumps(scheme))
        with pytest.raises(UserError, match=f"parts '{target}' of a quantized layer are unknown"):
            load_quantized(tmp_path)


def test_settings_of_another_version(tiny, batches, tmp_path):
    """One that was off does not matter; one that was on, or an unknown form, is one clear line."""
    model, _, _ = quantize_model(PassionSR(epochs=0), tiny, W6A6, "U", batches)
    save_quantized(model, tmp_path, {})
    scheme = json.loads((tmp_path / "scheme.json").read_text())

    def load(**changes):
        changed = {n: {**layer, **changes} for n, layer in scheme["layers"].items()}
        (tmp_path / "scheme.json").write_text(json.dumps({**scheme, "layers": changed}))
        return load_quantized(tmp_path)

    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert torch.equal(load(official=[])(image), model(image))
    for changes in ({"official": ["bias"]}, {"form": "int_zp_stale"}):
        with pytest.raises(UserError, match=r"LayerConfig of another version .*: calibrate again"):
            load(**changes)


def test_official_as_a_whole_saves_and_loads(tiny, batches, tmp_path):
    method = PassionSR(official=True, **FAST)
    model, log, _ = quantize_model(method, tiny, W6A6, "UV", batches)
    assert all(np.isfinite(r["loss"]) for r in log.rows)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = model(image)
        save_quantized(model, tmp_path, {})
        loaded = load_quantized(tmp_path)
        assert torch.equal(loaded(image), expected)  # no preheat forward needed
        assert torch.equal(loaded(image), expected)


def test_eps_loss_is_the_x0_loss_over_the_squared_gain(tiny, batches):
    """On the teacher's own latents: 213.6 times, to float32's 1e-3 after the cancellation."""
    ratios = []
    for space in ("eps", "x0"):
        method = PassionSR(unet_let_loss=space)
        prepared, _ = method.prepare(tiny, W6A6, "U")
        for sub, inputs, _ in in_sequence(prepared, batches, "U"):
            method._init_ranges(sub, inputs, NoCheckpoints())
            with torch.no_grad():
                ratios.append(float(method._loss(prepared, sub, "let")((inputs[0], batches[0]))))
    assert ratios[1] / ratios[0] == pytest.approx(tiny.eps_gain**2, rel=1e-3)


def test_hr_target_needs_ground_truth(tiny):
    without = make_batches(tiny, [torch.rand(1, 3, 32, 32)], 1, 0)
    with pytest.raises(UserError, match="needs ground truth"):
        quantize_model(PassionSR(decoder_target="hr", **FAST), tiny, W6A6, "UV", without)


@pytest.mark.parametrize("name", ["lbq_form", "zero_grad", "quantize_bias", "act_range_init"])
def test_unknown_values_are_refused(name):
    with pytest.raises(UserError, match=f'option {name}: "wrong" given, expected '):
        PassionSR(**{name: "wrong"})
