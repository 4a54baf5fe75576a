"""Contract of every registered method on the tiny model, and PassionSR's own invariants."""

import copy
import dataclasses
import functools
import itertools
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from passionsr.benchmark.config import load_methods, parse_scheme
from passionsr.benchmark.training_step import step_ratios
from passionsr.calibration.checkpoints import NoCheckpoints
from passionsr.calibration.fit import FitConfig, FitLog, FitStage, ParamGroup, fit, mean_loss
from passionsr.calibration.range_passes import RangeRule, init_let, set_ranges
from passionsr.calibration.sub_models import in_sequence, output_loss, parts_of, sub_quantizers
from passionsr.methods.base import load_method, quantize_model
from passionsr.methods.passionsr import PassionSR, lbq_groups, let_groups, official_values
from passionsr.quantization.artifact import load_quantized, save_quantized
from passionsr.quantization.attention import QuantizedAttention
from passionsr.quantization.equivalent_transform import LearnedScale
from passionsr.quantization.layer import QuantizedLayer
from passionsr.quantization.modules import quantized_modules
from passionsr.quantization.quantizer import Quantizer
from passionsr.quantization.spec import Scheme
from passionsr.quantization.swap import match_attention, match_layers, match_patterns
from passionsr.utils.files import UserError, sha256_file

METHODS = load_methods("config/methods.yaml")
# Steps large enough to move every parameter visibly within the few steps of a test.
FAST = {
    "passionsr.methods.passionsr:PassionSR": {"epochs": 1, "let_lr": 1e-3, "lbq_lr": 1e-3},
    "passionsr.baselines.lsq:LSQ": {"epochs": 1, "act_lr": 1e-3, "weight_lr": 1e-4},
    "passionsr.baselines.qdiffusion:QDiffusion": {"weight_steps": 3, "act_steps": 2, "vae_crop": 4},
    "passionsr.baselines.efficientdm:EfficientDM": {"steps": 3, "lora_lr": 0.01},
}


# What the fits of a class may learn, by the ends of parameter names; anything else must keep its
# bits.
LEARNT = {
    "passionsr.baselines.minmax:MinMax": (),
    "passionsr.baselines.ptq4dm:PTQ4DM": (),
    "passionsr.baselines.lsq:LSQ": (".scale", ".zero_point"),
    "passionsr.baselines.qdiffusion:QDiffusion": (".0.v", ".scale"),
    "passionsr.baselines.efficientdm:EfficientDM": (".0.a", ".0.b", ".scale", ".zero_point"),
    "passionsr.methods.passionsr:PassionSR": (".log_scale", ".offset", ".lower", ".upper"),
}


def build(name, **options):
    entry = METHODS[name]
    return load_method(entry.target, {**FAST.get(entry.target, {}), **entry.options, **options})


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# A method with one released switch each: its class goes through everything below without it, so
# half of the cases will do.
SWITCHES = [n for n, entry in METHODS.items() if entry.ablation == "released"]
OTHERS = [n for n in METHODS if n not in SWITCHES]


CASES = [
    *itertools.product(OTHERS, ("W8A8", "W4A4"), ("U", "UV")),
    *itertools.product(SWITCHES, ("W8A8",), ("U",)),
    *itertools.product(SWITCHES, ("W4A4",), ("UV",)),
]


@pytest.fixture(scope="module")
def calibrated(tiny, tiny_batches):
    """(row, scheme, scope) -> what `quantize_model` returns, made once; tests do not change it."""

    @functools.cache
    def made(name, scheme, scope):
        before = state(tiny)
        result = quantize_model(build(name), tiny, parse_scheme(scheme), scope, tiny_batches)
        # The float model is untouched, to the bit.
        assert same(state(tiny), before)
        return result

    return made


@pytest.mark.parametrize(("name", "scheme", "scope"), CASES)
def test_contract(name, scheme, scope, tiny, calibrated, tmp_path):
    model, log, report = calibrated(name, scheme, scope)
    # Everything in scope, and nothing else, was swapped.
    names = [n for n, _ in match_layers(tiny, scope)]
    assert [r.name for r in report if r.kind != "attention"] == names
    assert {r.name for r in report if r.kind == "attention"} == {
        n for n, _ in match_attention(tiny)
    }
    if scope == "U":
        assert same(state(tiny.vae), state(model.vae))
    # Codes are integers of the promised width; the 8-bit exceptions are exactly PassionSR's.
    bits = int(scheme[1])
    for layer_name, part in model.named_modules():
        if isinstance(part, QuantizedLayer):
            assert part.weight_codes.dtype == torch.uint8
            assert int(part.weight_codes.max()) < 2**part.config.weight_bits
            exception = layer_name in (
                "unet.time_embedding.linear_1", "unet.conv_out", "vae.quant_conv",
                "vae.post_quant_conv", "vae.encoder.conv_out", "vae.decoder.conv_out",
            )  # fmt: skip
            assert part.config.weight_bits == part.config.act_bits == (8 if exception else bits)
    # No gradient left; each stage's loss is finite.
    assert not any(p.requires_grad for p in model.parameters())
    assert all(torch.isfinite(torch.tensor(r["loss"])) for r in log.rows)
    # Save -> load -> first forward equals the forward before saving; the second equals the first.
    image = torch.rand(2, 3, 48, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = model(image)
        save_quantized(model, tmp_path, {"name": name})
        loaded = load_quantized(tmp_path)
        assert torch.equal(loaded(image), expected)
        assert torch.equal(loaded(image), expected)
        # It does quantize: not the float model's output.
        assert not torch.equal(expected, tiny(image))


# What papers and released code do that no row of config/methods.yaml has: (method, options, whose
# it is).
VARIANTS = [
    ("lsq", {"exceptions": "native"}, "LSQ: first and last layer at 8 bits"),
    ("lsq", {"lsq_init": "paper", "per_channel": False}, "LSQ: one step per layer, Sec. 2.1"),
    ("lsq", {"optimizer": "sgd"}, "LSQ: SGD with the gradient scale, Sec. 2.2"),
    ("lsq_plus", {"optimizer": "sgd"}, "LSQ+: the same"),
    ("ptq4dm", {"symmetric": False, "candidates": 5}, "PTQ4DM: the text's 2-D search"),
    ("ptq4dm", {"exceptions": "native"}, "PTQ4DM: first and last weight at 8 bits"),
    ("ptq4dm", {"exceptions": "native", "act_quant_site": "output"}, "PTQ4DM: released"),
    ("qdiffusion", {"weight_init": "max", "act_init": "ema"}, "Q-Diffusion: --running_stat"),
    ("qdiffusion", {"act_init": "max", "sm_bits": 16}, "Q-Diffusion: P at 16 bits, for SD"),
    ("qdiffusion", {"exceptions": "native"}, "Q-Diffusion: no 8-bit layers"),
    ("efficientdm", {"exceptions": "native"}, "EfficientDM: float and 8-bit layers"),
    ("passionsr", {"lbq_form": "int_zp"}, "PassionSR: integer zero point"),
    (
        "passionsr",
        {"let_scale_init": "smoothquant"},
        "PassionSR: the initialisation its text names",
    ),
    ("passionsr", {"let_latent_size": 8}, "PassionSR: s_j of self-attention"),
    ("passionsr", {"lr_unit": "level"}, "PassionSR: learning rates in levels"),
]


def test_every_option_is_used():
    """By a row of the registry, a budget or a configuration, or else by a variant above."""
    used = {}
    for entry in METHODS.values():
        used.setdefault(entry.target, set()).update(entry.options)
        if entry.options.get("official"):  # sets all that have an official value
            used[entry.target].update(official_values())
    budgets = list(yaml.safe_load(Path("config/budgets.yaml").read_text()).values())
    for path in Path("config").glob("*.yaml"):
        budgets.append((yaml.safe_load(path.read_text()) or {}).get("budget"))
    for budget in budgets:
        for target, options in (budget if isinstance(budget, dict) else {}).items():
            used[target].update(options)
    for name, options, _ in VARIANTS:
        used[METHODS[name].target].update(options)
    for target, names in used.items():
        assert {f.name for f in dataclasses.fields(load_method(target))} == names, target


@pytest.mark.parametrize(
    ("name", "options", "variant"),
    VARIANTS,
    ids=lambda v: "-".join(v) if isinstance(v, dict) else v,
)
def test_every_option_counts_and_is_saved(
    name, options, variant, calibrated, tiny, tiny_batches, tmp_path
):
    """An option changes the artifact, and what it makes survives saving.

    The first forward is the one before.
    """
    method = build(name, **options)
    model, log, _ = quantize_model(method, tiny, Scheme.parse("W4A4"), "UV", tiny_batches)
    default, _, _ = calibrated(name, "W4A4", "UV")
    assert not same(model.state_dict(), default.state_dict())
    assert all(torch.isfinite(torch.tensor(r["loss"])) for r in log.rows)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = model(image)
        save_quantized(model, tmp_path, {})
        loaded = load_quantized(tmp_path)
        assert torch.equal(loaded(image), expected)
        assert torch.equal(loaded(image), expected)


@dataclasses.dataclass(frozen=True)
class WatchedFit:
    """One fit of a calibration: names of its parameters, and of all that changed; its losses."""

    chosen: set
    changed: set
    before: float
    after: float
    undo_worse: bool


def watch(method, tiny, batches):
    """(log, a WatchedFit of every fit) of a calibration at W4A4 UV."""
    module = sys.modules[type(method).__module__]
    prepared, _ = method.prepare(tiny, Scheme.parse("W4A4"), "UV")
    fits = []

    def noted(groups, loss, pairs, config, *rest):
        names = {id(p): n for n, p in prepared.named_parameters()}
        before = mean_loss(loss, pairs)
        kept = state(prepared)
        fit(groups, loss, pairs, config, *rest)
        changed = {k for k, v in prepared.state_dict().items() if not torch.equal(kept[k], v)}
        chosen = {names[id(p)] for g in groups for p in g.params}
        after = mean_loss(loss, pairs)
        fits.append(WatchedFit(chosen, changed, before, after, config.undo_worse))

    with pytest.MonkeyPatch.context() as patch:
        if hasattr(module, "fit"):
            patch.setattr(module, "fit", noted)
        log = method.calibrate(prepared, batches, "UV", NoCheckpoints())
    return log, fits


@pytest.fixture(scope="module")
def watched(tiny, tiny_batches):
    """Row -> `watch` of it, made once."""
    return functools.cache(lambda name: watch(build(name), tiny, tiny_batches))


@pytest.mark.parametrize("name", OTHERS)
def test_only_what_is_learnt_moves(name, watched):
    """In every fit its own parameters move and nothing else.

    The float weights and biases are never among them.
    """
    target = METHODS[name].target
    _, fits = watched(name)
    for one in fits:
        assert not any(n.endswith(("weight", "bias", "original")) for n in one.chosen)
        assert all(n.endswith(LEARNT.get(target, "")) for n in one.chosen)
        assert one.changed <= one.chosen
    assert any(one.changed for one in fits) == bool(LEARNT.get(target, True))


@pytest.mark.parametrize("name", OTHERS)
def test_no_stage_ends_above_its_start(name, watched, tiny, tiny_batches):
    """For every method: a fit stage whose steps are far too large is undone, and says so."""
    rates = [
        f.name
        for f in dataclasses.fields(build(name))
        if f.name.endswith("_lr") and f.name != "relative_lr"
    ]
    runs = [watched(name)]
    if rates:
        options = dict.fromkeys(rates, 10.0)
        runs.append(watch(build(name, **options), tiny, tiny_batches))
    for log, fits in runs:
        # AdaRound starts from the float weights: its log compares rounded with rounded.
        assert all(one.after <= one.before for one in fits if one.undo_worse)
        assert all(r["loss_after"] <= r["loss_before"] for r in log.stages)
    assert any(r["undone"] for r in log.stages) == bool(rates)


@pytest.mark.parametrize("name", OTHERS)
def test_same_seed_same_bytes(name, calibrated, tiny, tiny_batches, tmp_path):
    again = quantize_model(build(name), tiny, Scheme.parse("W4A4"), "UV", tiny_batches)
    digests = set()
    for attempt, (model, _, _) in (("a", calibrated(name, "W4A4", "UV")), ("b", again)):
        save_quantized(model, tmp_path / attempt, {})
        digests.add(sha256_file(tmp_path / attempt / "model.safetensors"))
    assert len(digests) == 1


@pytest.mark.parametrize("name", OTHERS)
def test_activation_levels(name, calibrated, tiny_batches):
    """At most 2^b distinct values leave every activation quantizer (per half where split)."""
    model, _, _ = calibrated(name, "W4A4", "UV")
    counts = {}

    def count(quantizer, _, out):
        groups = [out]
        if quantizer.spec.groups > 1:
            axis = quantizer.spec.channel_axis
            index = quantizer.group_of(out.shape[axis])
            groups = [out.index_select(axis, (index == g).nonzero().flatten()) for g in (0, 1)]
        counts[quantizer] = max(len(g.unique()) for g in groups)

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, Quantizer)]
    with torch.no_grad():
        model(tiny_batches[0].image)
    for handle in handles:
        handle.remove()
    assert len(counts) > 50
    assert all(n <= 2**q.spec.bits for q, n in counts.items())


def test_more_bits_are_closer_to_float(calibrated, tiny, tiny_batches):
    image = tiny_batches[0].image
    errors = []
    with torch.no_grad():
        for scheme in ("W4A4", "W6A6", "W8A8"):
            model, _, _ = calibrated("minmax", scheme, "UV")
            errors.append(float((model(image) - tiny(image)).square().mean()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_sixteen_bits_match_float(tiny, tiny_batches):
    """Calibrated on the batch itself, so that nothing is clipped: 1e-3 on images in [0, 1]."""
    method = build("minmax")
    for batch in tiny_batches:
        model, _, _ = quantize_model(method, tiny, Scheme.parse("W16A16"), "UV", [batch])
        with torch.no_grad():
            assert (model(batch.image) - tiny(batch.image)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("baselines.nothing:X", {}, "cannot be imported"),
        ("passionsr.baselines.minmax:Nothing", {}, "cannot be imported"),
        (
            "passionsr.baselines.minmax:MinMax",
            {"speed": 9},
            "unknown option speed; known: none, it has no options",
        ),
        (
            "passionsr.baselines.efficientdm:EfficientDM",
            {"rank": 8},
            "unknown option rank; known: act_lr, act_zp, exceptions",
        ),
        (
            "passionsr.methods.passionsr:PassionSR",
            {"let": "maybe"},
            'option let: "maybe" given, expected true or false',
        ),
        (
            "passionsr.methods.passionsr:PassionSR",
            {"lbq_reinit_after_let": "never"},
            'option lbq_reinit_after_let: "never" given, expected true or false or sample',
        ),
        (
            "passionsr.baselines.lsq:LSQ",
            {"optimizer": "x"},
            'option optimizer: "x" given, expected one of adam, sgd',
        ),
    ],
)
def test_unknown_method_or_option(target, options, message):
    with pytest.raises(UserError, match=message):
        load_method(target, options)


def test_pattern_that_matches_nothing():
    assert match_patterns(["a.b", "a.c"], ["a.*"]) == {"a.b", "a.c"}
    with pytest.raises(UserError, match=r"'a\.x' matches no layer"):
        match_patterns(["a.b"], ["a.x"])


# -- PassionSR ------------------------------------------------------------------------------------


def record_stages(method, tiny, batches, monkeypatch):
    """Run a calibration and note which parameters each stage changed."""
    from passionsr.methods import passionsr as passion

    prepared, _ = method.prepare(tiny, Scheme.parse("W4A4"), "UV")
    names = {id(p): n for n, p in prepared.named_parameters()}
    moved = {}

    def spy(groups, loss_fn, pairs, config, stage):
        before = state(prepared)
        fit(groups, loss_fn, pairs, config, stage)
        after = state(prepared)
        moved[stage.name] = {k for k in before if not torch.equal(before[k], after[k])}
        allowed = {names[id(p)] for g in groups for p in g.params}
        assert moved[stage.name] <= allowed

    monkeypatch.setattr(passion, "fit", spy)
    log = method.calibrate(prepared, batches, "UV", NoCheckpoints())
    return moved, log


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({}, ["encoder.let", "encoder.lbq", "unet.let", "unet.lbq", "decoder.let", "decoder.lbq"]),
        ({"let": False}, ["encoder.lbq", "unet.lbq", "decoder.lbq"]),
        ({"lbq": False}, ["encoder.let", "unet.let", "decoder.let"]),
        ({"dqc": False}, ["encoder.let+lbq", "unet.let+lbq", "decoder.let+lbq"]),
    ],
    ids=["full", "no_let", "no_lbq", "no_dqc"],
)
def test_stage_isolation(options, stages, tiny, tiny_batches, monkeypatch):
    """LET stages move only s and o, LBQ stages only bounds, each inside its sub-model (DQC)."""
    # Also a stage that ends higher shows what it moved.
    method = PassionSR(epochs=1, let_lr=1e-3, lbq_lr=1e-3, undo_worse=False, **options)
    moved, log = record_stages(method, tiny, tiny_batches, monkeypatch)
    assert list(moved) == stages
    prefix = {
        "encoder": ("vae.encoder.", "vae.quant_conv."),
        "unet": ("unet.",),
        "decoder": ("vae.decoder.", "vae.post_quant_conv."),
    }
    for stage, names in moved.items():
        part, kind = stage.split(".")
        assert names, stage
        assert all(n.startswith(prefix[part]) for n in names)
        endings = {"let": ("log_scale", "offset"), "lbq": ("lower", "upper")}
        allowed = tuple(e for k, v in endings.items() if k in kind.split("+") for e in v)
        assert all(n.endswith(allowed) for n in names)
    # Without DQC one stage of twice the epochs: the ablation compares equal effort.
    steps = {s["stage"]: s["steps"] for s in log.stages}
    expected = 2 if method.let and method.lbq and method.dqc else 4
    assert set(steps.values()) == {expected}


@pytest.mark.parametrize("scheme", ["W8A8", "W4A4"])
def test_a_step_in_levels(scheme, tiny, tiny_batches):
    """Adam's first step is its step size, whatever the gradient.

    With lr_unit "level" the same number of levels at any bits.

    1e-3: float32 bounds of a few units, moved by 1e-3 of them at 8 bits.
    """
    prepared, _ = PassionSR().prepare(tiny, Scheme.parse(scheme), "UV")
    sub, inputs, items = next(in_sequence(prepared, tiny_batches, "UV"))
    init_let(sub, inputs)
    set_ranges(sub, inputs)
    config = FitConfig(steps=1, undo_worse=False)
    layers = [p for p in parts_of(sub) if isinstance(p, QuantizedLayer)]
    units = {}  # of each parameter: what one level is
    for layer in layers:
        q, s = layer.act_quantizer, layer.transform
        units[s.log_scale] = 1 / q.spec.levels
        units[s.offset] = float((q.upper - q.lower).mean() / q.spec.levels * s.scale.mean())
    for quantizer in sub_quantizers(sub):
        for bound in (quantizer.lower, quantizer.upper):
            units[bound] = float((quantizer.upper - quantizer.lower).mean()) / quantizer.spec.levels
    before = {p: p.clone() for p in units}
    for groups in (let_groups(sub, 0.25, "level"), lbq_groups(sub, 0.25, "level")):
        fit(groups, output_loss(sub), items, config, FitStage("step", FitLog()))
    moved = [float((p - before[p]).abs().max()) / unit for p, unit in units.items()]
    assert max(moved) <= 0.25 * 1.001
    at_all = [m for m in moved if m > 0]
    assert len(at_all) > len(moved) / 2
    assert sorted(at_all)[len(at_all) // 2] == pytest.approx(0.25, rel=1e-2)


def test_ranges_are_estimated_again_between_let_and_lbq(tiny, tiny_batches):
    """Paper 3.4.1.

    With LBQ's steps at zero the final bounds are the min / max under the final LET.
    """
    method = PassionSR(epochs=1, let_lr=1e-2, lbq_lr=0.0)
    prepared, _ = method.prepare(tiny, Scheme.parse("W8A8"), "UV")
    method.calibrate(prepared, tiny_batches, "UV", NoCheckpoints())
    layers = [m for m in prepared.modules() if isinstance(m, QuantizedLayer)]
    for layer in layers:
        weight = layer.transform.weight(layer.weight)
        lower, upper = layer.weight_quantizer.observe(weight)
        torch.testing.assert_close(layer.weight_quantizer.lower, lower, rtol=0, atol=0)
        torch.testing.assert_close(layer.weight_quantizer.upper, upper, rtol=0, atol=0)


def test_released_re_initialisation_by_sample(tiny, tiny_batches):
    """The U script.

    What is left after a LET stage are the extremes of the last sample under the final LET.
    """
    method = PassionSR(epochs=1, let_lr=1e-2, lbq_lr=0.0, lbq_reinit_after_let="sample")
    prepared, _ = method.prepare(tiny, Scheme.parse("W8A8"), "U")
    method.calibrate(prepared, tiny_batches, "U", NoCheckpoints())
    found = bounds_of(prepared)
    ((sub, inputs, _),) = in_sequence(prepared, tiny_batches, "U")
    set_ranges(sub, inputs[-1:], RangeRule(mode="first"))
    assert all(torch.equal(a, b) for a, b in zip(found, bounds_of(prepared), strict=True))
    set_ranges(sub, inputs[:1], RangeRule(mode="first"))
    assert not all(torch.equal(a, b) for a, b in zip(found, bounds_of(prepared), strict=True))


def test_released_script_keeps_its_ranges_after_let(tiny, tiny_batches):
    """lbq_reinit_after_let=False.

    With LBQ's steps at zero the bounds are those from before LET was trained.
    """
    found = []
    for epochs in (0, 1):
        method = PassionSR(epochs=epochs, let_lr=1e-2, lbq_lr=0.0, lbq_reinit_after_let=False)
        prepared, _ = method.prepare(tiny, Scheme.parse("W8A8"), "U")
        method.calibrate(prepared, tiny_batches, "U", NoCheckpoints())
        found.append((bounds_of(prepared), prepared.unet.conv_in.transform.log_scale))
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))
    assert not torch.equal(found[0][1], found[1][1])


def test_released_ranges_are_those_of_the_first_batch_and_its_scales(tiny, tiny_batches):
    """8.6.4: layers keep the ranges of batch one under its s, s drifts on.

    Attention has the EMA of every batch.
    """
    official, _ = PassionSR(act_range_init="official").prepare(tiny, Scheme.parse("W8A8"), "U")
    right, _ = PassionSR().prepare(tiny, Scheme.parse("W8A8"), "U")
    for model, mode in ((official, "official"), (right, "ema")):
        method = PassionSR(epochs=0, act_range_init=mode, lbq_reinit_after_let=False)
        method.calibrate(model, tiny_batches, "U", NoCheckpoints())
    scale = official.unet.conv_in.transform.log_scale
    assert torch.equal(scale, right.unet.conv_in.transform.log_scale)
    first, _ = PassionSR().prepare(tiny, Scheme.parse("W8A8"), "U")
    ((sub, inputs, _),) = in_sequence(first, tiny_batches, "U")
    init_let(sub, inputs[:1])
    assert not torch.equal(scale, first.unet.conv_in.transform.log_scale)
    set_ranges(sub, inputs[:1], RangeRule(mode="first"))
    for layer, expected in zip(layers_of(official), layers_of(first), strict=True):
        for name in ("act_quantizer", "weight_quantizer"):
            assert torch.equal(getattr(layer, name).upper, getattr(expected, name).upper)
    tops = [
        [m.q.upper for m in model.modules() if isinstance(m, QuantizedAttention)]
        for model in (official, first)
    ]
    assert not any(torch.equal(a, b) for a, b in zip(*tops, strict=True))


def test_the_released_decoder_target_is_ground_truth(tiny, tiny_batches):
    method = PassionSR(decoder_target="hr")
    prepared, _ = method.prepare(tiny, Scheme.parse("W8A8"), "UV")
    *_, (sub, inputs, _) = in_sequence(prepared, tiny_batches, "UV")
    loss = method._loss(prepared, sub, "let")((inputs[0], tiny_batches[0]))
    with torch.no_grad():
        expected = (sub.run(inputs[0]) - tiny_batches[0].hr).square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scope", ["U", "UV"])
def test_released_decay_of_the_unet_stage(scope, tiny, tiny_batches, monkeypatch):
    """8.3: the second epoch runs at 0.1 of the rate in the U script, at 0.2 in the UV script."""
    decays = []

    def spy(groups, loss_fn, pairs, config, stage):
        assert config.schedule == "halves"
        decays.append((stage.name.split(".")[0], config.decay))

    monkeypatch.setattr("passionsr.methods.passionsr.fit", spy)
    method = PassionSR()
    prepared, _ = method.prepare(tiny, Scheme.parse("W8A8"), scope)
    method.calibrate(prepared, tiny_batches, scope, NoCheckpoints())
    decay = {"U": 0.1, "UV": 0.2}[scope]
    assert dict(decays) == {"unet": decay, **({} if scope == "U" else {"encoder": 1, "decoder": 1})}
    config = FitConfig(epochs=2, schedule="halves", decay=decay)
    assert [config.factor(step, 2) for step in range(4)] == [1, 1, decay, decay]


def bounds_of(model):
    return [
        b.clone() for m in model.modules() if isinstance(m, Quantizer) for b in (m.lower, m.upper)
    ]


def layers_of(model):
    return [m for m in model.modules() if isinstance(m, QuantizedLayer)]


def test_prepared_passionsr_is_equivalent_without_quantizers(tiny, tiny_batches):
    """LET of every layer and attention, random s and o.

    The whole model's output stays (float64, 1e-8).
    """
    from passionsr.quantization.modules import as_float

    model = copy.deepcopy(tiny).double()
    prepared, _ = PassionSR().prepare(model, Scheme.parse("W4A4"), "UV")
    prepared.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in prepared.modules():
            if isinstance(module, LearnedScale):
                for parameter in module.parameters():
                    parameter.copy_(
                        torch.randn(parameter.shape, generator=generator).double() * 0.5
                    )
        image = tiny_batches[0].image.double()
        with as_float(prepared):
            torch.testing.assert_close(prepared(image), model(image), rtol=0, atol=1e-8)


def test_unet_is_split_and_vae_is_not(tiny):
    prepared, report = PassionSR().prepare(tiny, Scheme.parse("W6A6"), "UV")
    assert all(bool(r.split) == r.name.startswith("unet.") for r in report if r.kind != "attention")
    conv_in = prepared.unet.conv_in
    assert conv_in.config.weight_bits == 6  # conv_in is no exception
    assert conv_in.act_quantizer.lower.shape == (2,)


def test_self_attention_tokens_follow_the_latent_size(tiny):
    fixed, _ = PassionSR(let_latent_size=8).prepare(tiny, Scheme.parse("W8A8"), "UV")
    free, _ = PassionSR().prepare(tiny, Scheme.parse("W8A8"), "UV")
    for model, expected in ((fixed, {64, 16}), (free, {None})):
        parts = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedAttention)}
        tokens = {n: m.config.let_tokens for n, m in parts.items()}
        assert all(t == 5 for n, t in tokens.items() if ".attn2." in n)
        assert {t for n, t in tokens.items() if ".attn1." in n} == expected
    with pytest.raises(UserError, match="calibrated for 64"), torch.no_grad():
        fixed.predict_eps(torch.zeros(1, 4, 16, 16))


def test_the_step_benchmark_times_every_kind_of_training(tiny):
    lines = step_ratios(tiny, repeats=1).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == ["LET", "LBQ", "LET + LBQ"]
    for line in lines:
        assert all(float(cell) > 0 for cell in line.split("|")[2:5])


# -- fit ------------------------------------------------------------------------------------------


def test_fit_moves_only_its_parameters_by_adams_step():
    """With a constant gradient every Adam step is lr long (to its epsilon, 1e-8)."""
    a, b = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3))
    log = FitLog()
    config = FitConfig(epochs=2, lr=0.5)
    fit(
        [ParamGroup([a], 0.1)],
        lambda x: (a * x + b).sum(),
        [torch.ones(3)] * 2,
        config,
        FitStage("s", log),
    )
    torch.testing.assert_close(a.detach(), torch.full((3,), -0.2), rtol=1e-6, atol=0)
    assert torch.equal(b.detach(), torch.zeros(3))
    assert not a.requires_grad
    assert [r["step"] for r in log.rows] == [0, 1, 2, 3]
    assert log.stages[0]["loss_after"] < log.stages[0]["loss_before"]


def test_fit_refuses_a_loss_that_is_not_finite():
    a = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(FloatingPointError, match=r"unet\.let: the loss is nan at step 0"):
        fit([ParamGroup([a])], lambda x: a.sum() * x, [torch.tensor(float("nan"))],
            FitConfig(epochs=1, lr=1.0), FitStage("unet.let", FitLog()))  # fmt: skip
    assert not a.requires_grad


def test_fit_gradients_do_not_accumulate():
    """The released loops zero gradients once per epoch.

    With SGD-like equal gradients Adam would hide it,
    so the gradients themselves are watched."""
    a = torch.nn.Parameter(torch.zeros(1))
    seen = []
    a.register_post_accumulate_grad_hook(lambda p: seen.append(float(p.grad)))
    fit(
        [ParamGroup([a])],
        lambda x: (a * x).sum(),
        [torch.ones(1)] * 3,
        FitConfig(epochs=1, lr=1.0),
        FitStage("s", FitLog()),
    )
    assert seen == [1.0, 1.0, 1.0]


# -- export ---------------------------------------------------------------------------------------


@pytest.fixture
def saved(calibrated, tmp_path):
    model, _, _ = calibrated("minmax", "W4A4", "UV")
    save_quantized(model, tmp_path, {"why": "test"})
    return tmp_path


def test_artifact_is_integer_codes_and_smaller(saved, tiny):
    from safetensors import safe_open

    with safe_open(saved / "model.safetensors", "pt") as file:
        codes = [k for k in file.keys() if k.endswith("weight_codes")]  # noqa: SIM118
        assert len(codes) == len(match_layers(tiny, "UV"))
        assert all(file.get_tensor(k).dtype == torch.uint8 for k in codes)
        assert not any(k.endswith(".weight") and "norm" not in k for k in file.keys())  # noqa: SIM118
    assert json.loads((saved / "scheme.json").read_text())["info"] == {"why": "test"}


def test_damaged_artifact_is_refused(saved):
    path = saved / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="sha256 is"):
        load_quantized(saved)


def test_other_format_is_refused(saved):
    scheme = json.loads((saved / "scheme.json").read_text())
    (saved / "scheme.json").write_text(json.dumps({**scheme, "format": 99}))
    with pytest.raises(UserError, match="format is 99, expected 1"):
        load_quantized(saved)


def test_all_parts_are_reported(tiny):
    prepared, report = build("minmax").prepare(tiny, Scheme.parse("W8A8"), "UV")
    assert len(report) == len(quantized_modules(prepared))
