"""Range searches and learned scales against the official vectors (Q-Diffusion, EfficientDM, PTQ4DM.

LSQ).
"""

from functools import partial

import pytest
import torch
from vectors import load, relative

import passionsr.quantization.range_search as search_module
from passionsr.baselines.lsq import gradient_scale
from passionsr.quantization.functional import fake_quantize
from passionsr.quantization.observers import RangeObserver
from passionsr.quantization.quantizer import Phase, Quantizer, observing, set_phase
from passionsr.quantization.range_search import (
    BINS,
    POWER,
    shrink_search,
    symmetric_search,
    two_sided_search,
)
from passionsr.quantization.spec import Form, QuantSpec


def quantizer_for(v, form=Form.AFFINE, bits="n_bits", x="x"):
    channels = tuple(v[x].shape[:2]) if int(v.get("channel_wise", 0)) else ()
    spec = QuantSpec(bits=int(v[bits]), form=form, per_channel=bool(channels))
    return Quantizer(spec, channels).to(v[x].dtype)


def check(quantizer, v, x="x", y="y", codes="codes", where=None):
    """Codes exactly; step and values to 1e-6 relative, the README's tolerance."""
    got = quantizer.codes(v[x]).long()
    same = got == v[codes]
    assert same[slice(None) if where is None else where].all()
    span = float(v[y].abs().max())
    close = (quantizer(v[x]) - v[y]).abs() <= 2e-6 * span
    assert close[slice(None) if where is None else where].all()


def step_of(quantizer):
    return (quantizer.upper - quantizer.lower) / quantizer.spec.levels


QD_MSE = [
    *(f"qd_weight_{kind}_mse_b{b}" for kind in ("conv", "linear") for b in (8, 6, 4)),
    *(f"qd_act_mse_b{b}" for b in (8, 6, 4)),
    "ed_weight_conv_mse_b4",
    *(f"ed_act_mse_b{b}" for b in (8, 6, 4)),
]


@pytest.mark.parametrize("name", QD_MSE)
def test_shrink_search(shared, name):
    v = load(shared, name)
    quantizer = quantizer_for(v)
    quantizer.set_bounds(*quantizer.search(v["x"], shrink_search))
    torch.testing.assert_close(
        step_of(quantizer).flatten(), v["delta"].flatten(), rtol=1e-6, atol=0
    )
    check(quantizer, v)


@pytest.mark.parametrize("bits", [8, 6])
def test_shrink_search_of_softmax_starts_at_zero(shared, bits):
    v = load(shared, f"qd_softmax_zero_mse_b{bits}")
    quantizer = quantizer_for(v)
    quantizer.set_bounds(*quantizer.search(v["x"], partial(shrink_search, from_zero=True)))
    assert float(quantizer.lower) == 0
    check(quantizer, v)


MAX = [
    *(f"qd_weight_{kind}_max_b{b}" for kind in ("conv", "linear") for b in (8, 6, 4)),
    *(f"ed_weight_{kind}_max_b{b}" for kind in ("conv", "linear") for b in (8, 6, 4)),
    "qd_act_max_b8",
]


@pytest.mark.parametrize("name", MAX)
def test_min_max_with_zero(shared, name):
    """`max` init: one consistent range that holds zero.

    Equal to the official one where x.min <= 0.
    """
    v = load(shared, name)
    quantizer = quantizer_for(v)
    quantizer.set_bounds(*quantizer.observe(v["x"]), include_zero=True)
    check(quantizer, v)


def test_official_max_of_a_positive_tensor_clips(shared):
    """Released: the raw step with a zero-included zero point.

    Ours covers the range (not offered).
    """
    v = load(shared, "qd_act_max_positive_b8")
    quantizer = quantizer_for(v)
    quantizer.set_bounds(*quantizer.observe(v["x"]), include_zero=True)
    ours = (quantizer(v["x"]) - v["x"]).abs().max()
    official = (v["y"] - v["x"]).abs().max()
    assert ours <= step_of(quantizer) < official


@pytest.mark.parametrize("name", ["qd_act_ema_b8", "qd_act_ema_b6", "qd_softmax_zero_ema_b8"])
def test_running_range(shared, name):
    """--running_stat: EMA 0.95 of minima and maxima, started at those of the first batch."""
    v = load(shared, name)
    observer = RangeObserver("ema", float(v["momentum"]))
    low = torch.zeros(1) if int(v["always_zero"]) else None
    for i, x in enumerate((v["x0"], v["x0"], v["x1"], v["x2"])):
        observer.update(x.min().reshape(1) if low is None else low, x.max().reshape(1))
        if i:
            torch.testing.assert_close(
                observer.upper.double(), v["x_max_after"][i - 1 : i], rtol=1e-6, atol=0
            )
            quantizer = quantizer_for(v, x="x0")
            quantizer.set_bounds(observer.lower, observer.upper)
            torch.testing.assert_close(
                step_of(quantizer).double(), v["delta_after"][i - 1 : i], rtol=1e-6, atol=0
            )
            torch.testing.assert_close(quantizer(x), v[f"y{i - 1}"], rtol=0, atol=1e-5)


def test_ties_go_to_even(shared):
    v = load(shared, "qd_ties_b8")
    quantizer = quantizer_for(v)
    lower = -v["zero_point"] * v["delta"]
    quantizer.set_bounds(lower.reshape(1), (lower + 255 * v["delta"]).reshape(1))
    assert torch.equal(quantizer.codes(v["x"]).long(), v["codes"])
    assert torch.equal(quantizer(v["x"]), v["y"])


def backward(quantizer, x, upstream):
    x = x.clone().requires_grad_()
    for parameter in (quantizer.scale, quantizer.zero_point):
        parameter.requires_grad_(True)
    y = quantizer(x)
    (y * upstream).sum().backward()
    return y.detach(), x.grad, quantizer.scale.grad, quantizer.zero_point.grad


def test_learned_step_gradient_of_qdiffusion(shared):
    v = load(shared, "qd_act_grad_b6")
    quantizer = quantizer_for(v)
    lower = (-v["zero_point"] * v["delta"]).reshape(1)
    quantizer.set_bounds(lower, lower + 63 * v["delta"])
    quantizer.learn_scale()
    assert torch.equal(quantizer.codes(v["x"]).long(), v["codes"])
    y, gx, gscale, _ = backward(quantizer, v["x"], v["G"])
    assert relative(y, v["y"]) < 2e-6
    assert relative(gx, v["gx"]) < 1e-4
    assert relative(gscale, v["gdelta"]) < 1e-4


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("suffix", ["", "_given"])
def test_real_zero_point_of_efficientdm(shared, bits, suffix):
    """The released form: the zero point moves as a real number."""
    v = load(shared, f"ed_act_mse_b{bits}")
    quantizer = quantizer_for(v, Form.REAL_ZP)
    quantizer.learn_scale()
    with torch.no_grad():
        quantizer.scale.copy_(v[f"delta{suffix}"].reshape(1))
        quantizer.zero_point.copy_(v["zp_given" if suffix else "zero_point"].reshape(1))
    y, gx, gscale, gzero = backward(quantizer, v["x"], v["G"])
    assert relative(y, v[f"y{suffix}"]) < 2e-6
    assert relative(gx, v[f"gx{suffix}"]) < 1e-4
    assert relative(gscale, v[f"gdelta{suffix}"]) < 1e-4
    scale = float(v["G"].abs().sum() * v[f"delta{suffix}"])
    assert float((gzero - v[f"gzp{suffix}"]).abs().max()) < 1e-5 * scale


LSQ = [
    f"lsq_{kind}_b{b}"
    for kind in ("weight_pt", "weight_pc", "act_signed", "act_unsigned")
    for b in (8, 6, 4)
]


@pytest.mark.parametrize("name", LSQ)
def test_lsq_gradients(shared, name):
    """Codes exactly; values to 1e-12, gradients to 1e-9 (float64.

    The scale is recovered from two bounds); g to 1e-12.
    """
    v = load(shared, name)
    per_channel = bool(v["per_channel"])
    spec = QuantSpec(bits=int(v["bits"]), form=Form.LSQ, per_channel=per_channel)
    quantizer = Quantizer(spec, tuple(v["v"].shape[:2]) if per_channel else ()).double()
    s = v["s"].reshape(quantizer.lower.shape)
    quantizer.set_bounds(-v["Qn"] * s, v["Qp"] * s)
    quantizer.learn_scale()
    assert torch.equal(quantizer.codes(v["v"]).long() - v["Qn"], v["codes"])
    y, gv, gs, _ = backward(quantizer, v["v"], v["G"])
    assert relative(y, v["y"]) < 1e-12
    assert torch.equal(gv, v["gv"])
    assert relative(gs, v["gs_raw"]) < 1e-9
    g = gradient_scale(quantizer, int(v["N"]))
    assert g == pytest.approx(float(v["g"]), rel=1e-12)
    assert relative(g * gs, v["gs"]) < 1e-9


P4 = [
    *(f"p4_weight_{kind}_sym_b{b}" for kind in ("conv", "linear") for b in (8, 6, 4)),
    *(f"p4_act_{kind}_b{b}" for kind in ("asym2d", "sym") for b in (8, 6, 4)),
    "p4_act_pos_b8",
    "p4_act_neg_b8",
    "p4_act_sym_pos_b6",
    "p4_weight_conv_asym2d_b4",
]


def p4_search(v):
    return symmetric_search if int(v["symmetric"]) else two_sided_search


@pytest.mark.parametrize("name", P4)
def test_ptq4dm_search(shared, name):
    v = load(shared, name)
    quantizer = quantizer_for(v)
    quantizer.set_bounds(*quantizer.search(v["x"], p4_search(v)))
    ends = torch.stack([quantizer.lower.flatten(), quantizer.upper.flatten()])
    want = torch.stack([v["range_min"].flatten(), v["range_max"].flatten()])
    torch.testing.assert_close(ends, want, rtol=1e-6, atol=1e-7)
    check(quantizer, v, where=v["ambiguous"] == 0 if "ambiguous" in v else None)


@pytest.mark.parametrize("name", ["p4_act_ema_asym_b6", "p4_act_ema_sym_b8", "p4_act_ema_asym_b4"])
def test_ptq4dm_running_range(shared, name):
    """Search per batch, then r <- 0.9 r + 0.1 new, through the observer that calibration uses."""
    v = load(shared, name)
    quantizer = quantizer_for(v, x="x0")
    find = partial(Quantizer.search, search=p4_search(v))
    with observing(quantizer, momentum=0.9, find=find):
        for i in range(3):
            quantizer(v[f"x{i}"])
            low, high = find(quantizer, v[f"x{i}"])
            torch.testing.assert_close(low, v["found_lo"][i : i + 1], rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(high, v["found_hi"][i : i + 1], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(quantizer.lower.data, v["lo_after"][-1:], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(quantizer.upper.data, v["hi_after"][-1:], rtol=1e-6, atol=1e-7)
    v["x"] = v["x2"]
    check(quantizer, v, y="y2")


@pytest.mark.parametrize("search", [shrink_search, symmetric_search, two_sided_search])
def test_search_invariants(search):
    """Never worse than min-max; scaling x scales the range; channel order does not matter."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(5, 300, generator=generator, dtype=torch.float64) ** 3
    spec = QuantSpec(bits=4)
    lower, upper = search(x, spec)

    def score(low, high):
        quantizer = Quantizer(QuantSpec(bits=4, per_channel=True), (5, 300)).double()
        quantizer.set_bounds(low[:, None], high[:, None])
        return (quantizer(x) - x).abs().pow(POWER).mean(1)

    low, high = x.amin(1), x.amax(1)
    if search is symmetric_search:
        low, high = -x.abs().amax(1), x.abs().amax(1)
    # 1e-9: the same number summed in another order
    assert (score(lower, upper) <= score(low, high) * (1 + 1e-9)).all()
    scaled = search(x * 8, spec)  # a power of two: exact
    assert torch.equal(torch.stack(scaled), torch.stack([lower, upper]) * 8)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(torch.stack(search(x[order], spec)), torch.stack([lower, upper])[:, order])


def test_histogram_finds_nearly_the_same_range():
    """A long row is condensed to BINS bins.

    The score of the range found is within 1 % of the exact search's.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.silu(torch.randn(1, 4 * BINS, generator=generator) * 3)
    spec = QuantSpec(bits=6)
    long = symmetric_search(x, spec)
    candidates = torch.arange(1, 101) / 100 * x.abs().max()
    quantizer = Quantizer(spec)
    scores = []
    for t in candidates:
        quantizer.set_bounds(-t.reshape(1), t.reshape(1))
        scores.append(float((quantizer(x) - x).abs().pow(POWER).mean()))
    quantizer.set_bounds(*long)
    found = float((quantizer(x) - x).abs().pow(POWER).mean())
    assert found <= min(scores) * 1.01


def test_settle_keeps_the_function():
    """What was learned as (scale, zero_point) quantizes the same once it is bounds again."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 500, generator=generator)
    quantizer = Quantizer(QuantSpec(bits=6, per_channel=True, split=3), (4, 500))
    quantizer.set_bounds(*quantizer.observe(x))
    scale, zero_point = quantizer.learn_scale()
    with torch.no_grad():
        scale.mul_(0.8)
        zero_point.add_(0.3)
        before = quantizer(x)
        quantizer.fold_scale_into_bounds()
        assert quantizer.scale is None
        assert torch.equal(quantizer(x), before)
    with set_phase(quantizer, Phase.FLOAT):
        assert torch.equal(quantizer(x), x)


def test_fewer_candidates_are_a_coarser_search():
    """1 candidate is the extremes; the widths of 4 are among those of 8, so 8 are never worse."""
    rows = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
    spec = QuantSpec(bits=4, per_channel=True)
    extremes = rows.abs().amax(1)
    errors = []
    for count in (1, 4, 8):
        lower, upper = symmetric_search(rows, spec, count)
        share = upper / extremes * count
        torch.testing.assert_close(share, share.round(), rtol=1e-6, atol=0)
        bounds = lower[:, None], upper[:, None], spec.levels, spec.form
        errors.append((fake_quantize(rows, *bounds) - rows).abs().pow(POWER).mean(1))
    assert bool((errors[0] >= errors[1]).all() and (errors[1] >= errors[2]).all())
    assert not torch.equal(errors[0], errors[2])


@pytest.mark.parametrize(
    "piece", [120, 1050]
)  # one candidate of two ranges; three of seven, and a last one alone
@pytest.mark.parametrize("search", [shrink_search, symmetric_search, two_sided_search])
def test_blocks_do_not_change_what_is_found(monkeypatch, search, piece):
    """Ranges and candidates are scored a block at a time; a long row by its histogram."""
    generator = torch.Generator().manual_seed(1)
    spec = QuantSpec(bits=3, per_channel=True)
    for rows in (
        torch.randn(7, 50, generator=generator),
        torch.randn(1, BINS + 9, generator=generator),
    ):
        with monkeypatch.context() as patch:
            whole = search(rows, spec)
            patch.setattr(search_module, "piece_size", lambda like: piece)
            for one, other in zip(search(rows, spec), whole, strict=True):
                assert torch.equal(one, other)
