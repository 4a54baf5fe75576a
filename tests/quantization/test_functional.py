"""The fake-quantize function against hand numbers.

Torch's own operator and the official vectors.
"""

import numpy as np
import pytest
import torch

from passionsr.methods.released import ReleasedQuantizer
from passionsr.quantization.functional import dequantize, fake_quantize, quantize, round_half_away
from passionsr.quantization.observers import RangeObserver
from passionsr.quantization.quantizer import Phase, Quantizer, observing, set_phase
from passionsr.quantization.spec import Form, QuantSpec, Scheme

# REAL_ZP is left out: its codes are no integers, by design.
FORMS = [form for form in Form if form is not Form.REAL_ZP]


def test_hand_numbers():
    # 2 bits over [-1, 2]: scale 1, grid -1 0 1 2. -1.4 and 2.6 saturate, 0.5 is a tie.
    x = torch.tensor([-1.4, -0.6, 0.5, 1.2, 2.6])
    lower, upper = torch.tensor(-1.0), torch.tensor(2.0)
    away = fake_quantize(x, lower, upper, 3, Form.INT_ZP)
    even = fake_quantize(x, lower, upper, 3, Form.AFFINE)
    assert away.tolist() == [-1, -1, 1, 1, 2]
    assert even.tolist() == [-1, -1, 0, 1, 2]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_grid_is_reproduced_and_idempotent(form, bits):
    n = 2**bits - 1
    lower, upper = torch.tensor(-0.7, dtype=torch.float64), torch.tensor(1.9, dtype=torch.float64)
    codes = torch.arange(n + 1, dtype=torch.float64)
    values = dequantize(codes, lower, upper, n, form)
    assert torch.equal(quantize(values, lower, upper, n, form), codes)
    x = torch.linspace(-2, 3, 1001, dtype=torch.float64)
    once = fake_quantize(x, lower, upper, n, form)
    assert torch.equal(fake_quantize(once, lower, upper, n, form), once)
    assert len(once.unique()) <= n + 1
    inside = (x >= lower) & (x <= upper)
    step = (upper - lower) / n
    # real_offset's grid ends at both bounds: half a step. A rounded zero point shifts the grid by
    # up to half a step, so a bound can be a whole step away.
    limit = step / 2 if form is Form.REAL_OFFSET else step
    assert ((once - x)[inside].abs() <= limit + 1e-12).all()


def test_affine_matches_torch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, generator=generator)
    scale, zero_point = 0.03125, 77  # a power of two: both sides divide exactly
    lower = torch.tensor(-zero_point * scale)
    upper = lower + 255 * scale
    ours = fake_quantize(x, lower, upper, 255, Form.AFFINE)
    theirs = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)
    assert torch.equal(ours, theirs)


def test_round_half_away():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert round_half_away(x).tolist() == [-3, -2, -1, 1, 2, 3]


@pytest.mark.parametrize("bits", [0, 1, 17, 33])
def test_unsupported_bits_are_refused(bits):
    with pytest.raises(ValueError, match=f"bit width {bits} is not supported"):
        QuantSpec(bits=bits)


@pytest.mark.parametrize("text", ["W6", "w6a6", "W6A6x", "A6W6", ""])
def test_malformed_scheme_is_refused(text):
    with pytest.raises(ValueError, match="is not of the form"):
        Scheme.parse(text)


VECTORS = [
    f"lbq_{kind}_b{bits}" for kind in ("act", "weight_conv", "weight_linear") for bits in (8, 6, 4)
]


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("form", [Form.REAL_OFFSET, Form.INT_ZP], ids=lambda f: f.value)
def test_lbq_vectors(shared, name, form):
    """Codes exactly.

    Outputs and gradients to 1e-10 in float64 (tolerance of the vectors' README).
    """
    case = np.load(shared / "vectors" / f"{name}.npz")
    x = torch.tensor(case["x"], requires_grad=True)
    lower = torch.tensor(case["x_min"], requires_grad=True)
    upper = torch.tensor(case["x_max"], requires_grad=True)
    n = 2 ** int(case["bits"]) - 1
    prefix = f"ref_{form.value}_"
    codes = quantize(x.detach(), lower.detach(), upper.detach(), n, form)
    assert np.array_equal(codes.numpy(), case[prefix + "codes"])
    out = fake_quantize(x, lower, upper, n, form)
    out.backward(torch.tensor(case["G"]))
    for ours, key in (
        (out.detach(), "y"),
        (x.grad, "gx"),
        (upper.grad, "gmax"),
        (lower.grad, "gmin"),
    ):
        np.testing.assert_allclose(ours.numpy(), case[prefix + key], rtol=0, atol=1e-10)


def test_lbq_ties_vector(shared):
    """Ties go away from zero, exactly as in the official class."""
    case = np.load(shared / "vectors" / "lbq_ties_b8.npz")
    x, lower, upper = (torch.tensor(case[k]) for k in ("x", "x_min", "x_max"))
    assert np.array_equal(quantize(x, lower, upper, 255, Form.INT_ZP).numpy(), case["codes"])
    assert np.array_equal(fake_quantize(x, lower, upper, 255, Form.INT_ZP).numpy(), case["y"])
    even = quantize(x, lower, upper, 255, Form.AFFINE).numpy()
    assert (even != case["codes"]).sum() > 0  # the vector does tell the two roundings apart


def test_ema_vector(shared):
    """0.95 / 0.05, first batch sets the range: the official running range."""
    case = np.load(shared / "vectors" / "lbq_act_ema_b6.npz")
    observer = RangeObserver("ema")
    for i in range(3):
        x = torch.tensor(case[f"x{i}"])
        observer.update(x.min(), x.max())
        np.testing.assert_allclose(float(observer.upper), case["ema_x_max"][i], rtol=0, atol=1e-10)
        np.testing.assert_allclose(float(observer.lower), case["ema_x_min"][i], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("form", "stale"),
    [(Form.REAL_OFFSET, False), (Form.INT_ZP, False), (Form.INT_ZP, True)],
    ids=["real_offset", "int_zp", "int_zp_stale"],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_gradient_table(form, stale, bits):
    """docs/methods.md#learned-bounds, written out, on 5000 samples of which a third is clipped.

    Float64, 1e-9.
    """
    generator = torch.Generator().manual_seed(bits)
    x = 1.5 * torch.randn(5000, dtype=torch.float64, generator=generator)
    upstream = torch.randn(5000, dtype=torch.float64, generator=generator)
    low, high, n = -1.3, 1.7, 2**bits - 1
    spec = QuantSpec(bits=bits, form=form)
    quantizer = (ReleasedQuantizer(spec, (), stale=True) if stale else Quantizer(spec)).double()
    quantizer.set_bounds(torch.tensor([low]), torch.tensor([high]))
    low, high = float(quantizer.lower), float(quantizer.upper)
    with torch.no_grad():
        quantizer(x)  # the stale form's previous scale is the present one
    x.requires_grad_(True)
    quantizer.requires_grad_(True)
    quantizer(x).backward(upstream)
    u = x.detach()
    alpha = (high - low) / n
    if form is Form.REAL_OFFSET:
        t = (u - low) / alpha
        rho, below, above = round_half_away(t) - t, u < low, u > high
        clipped_below, clipped_above = (0.0, 1.0), (1.0, 0.0)
    else:
        z = float(round_half_away(torch.tensor(low / alpha, dtype=torch.float64)))
        codes = round_half_away(u / alpha) - z
        rho, below, above = round_half_away(u / alpha) - u / alpha, codes < 0, codes > n
        e = z / n if stale else (z - low / alpha) / n
        clipped_below, clipped_above = (e, 1 - e), (1 + e, -e)
    inside = ~below & ~above
    below, above = below.double(), above.double()
    assert 1000 < int((~inside).sum()) < 3000
    to_upper = torch.where(inside, rho / n, clipped_below[0] * below + clipped_above[0] * above)
    to_lower = torch.where(inside, -rho / n, clipped_below[1] * below + clipped_above[1] * above)
    for grad, local in ((quantizer.upper.grad, to_upper), (quantizer.lower.grad, to_lower)):
        assert float(grad) == pytest.approx(float((upstream * local).sum()), rel=1e-9, abs=1e-9)
    torch.testing.assert_close(x.grad, upstream * inside, rtol=0, atol=1e-9)


def test_sixteen_bits_are_within_a_step():
    """Bounds at the data's extremes, |x_hat - x| <= alpha."""
    x = torch.randn(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for form in (Form.REAL_OFFSET, Form.INT_ZP):
        out = fake_quantize(x, x.min(), x.max(), 2**16 - 1, form)
        assert float((out - x).abs().max()) <= float(x.max() - x.min()) / (2**16 - 1)


def test_finite_differences_outside():
    """Clipped values: the analytic bound gradient equals the numeric one (real_offset, float64)."""
    x = torch.tensor([-3.0, 4.0], dtype=torch.float64)
    lower = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    upper = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([0.7, 1.3], dtype=torch.float64)

    def loss(low, high):
        return (fake_quantize(x, low, high, 15, Form.REAL_OFFSET) * weights).sum()

    loss(lower, upper).backward()
    for parameter, shifted in (
        (lower, lambda h: loss(lower.detach() + h, upper.detach())),
        (upper, lambda h: loss(lower.detach(), upper.detach() + h)),
    ):
        numeric = (shifted(1e-6) - shifted(-1e-6)) / 2e-6
        assert float(parameter.grad) == pytest.approx(float(numeric), abs=1e-8)


def test_gradient_reaches_elements_exactly_at_the_bound():
    """torch >= 2.14 gives clamp a zero gradient at its bound.

    Codes 0 and n sit there after rounding.
    """
    # LSQ counts the bounds themselves as clipped, by its own definition (LSQ Eq. 3).
    for form in [f for f in FORMS if f is not Form.LSQ]:
        x = torch.tensor([0.0, 1.0, 3.0], requires_grad=True)
        fake_quantize(x, torch.tensor(0.0), torch.tensor(3.0), 3, form).sum().backward()
        assert x.grad.tolist() == [1, 1, 1]


def test_groups_have_their_own_ranges():
    quantizer = Quantizer(QuantSpec(bits=8, split=2, form=Form.REAL_OFFSET), (5,))
    x = torch.randn(2, 5, 3, 3)
    x[:, 2:] *= 100
    quantizer.set_bounds(*quantizer.observe(x))
    assert torch.equal(quantizer.upper, torch.stack([x[:, :2].max(), x[:, 2:].max()]))
    error = (quantizer(x) - x).abs()
    step = (quantizer.upper - quantizer.lower) / 255
    # float32 rounding of x / scale adds a little to half a step
    assert error[:, :2].max() <= step[0] * 0.501
    assert error[:, 2:].max() <= step[1] * 0.501


def test_per_channel_weight_bounds():
    weight = torch.randn(6, 4, 3, 3)
    quantizer = Quantizer(QuantSpec(bits=4, per_channel=True, split=2), (6, 4))
    lower, upper = quantizer.observe(weight)
    assert torch.equal(lower[:, 0], weight[:, :2].amin((1, 2, 3)))
    assert torch.equal(upper[:, 1], weight[:, 2:].amax((1, 2, 3)))
    quantizer.set_bounds(lower, upper, include_zero=True)
    out = quantizer(weight)
    for channel in range(6):
        assert len(out[channel, :2].unique()) <= 16
        assert len(out[channel, 2:].unique()) <= 16


def test_phases_are_restored_and_observing_sets_bounds():
    quantizer = Quantizer(QuantSpec(bits=8))
    batches = [torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 4.0])]
    with observing(quantizer, "ema", include_zero=True, momentum=0.5):
        for batch in batches:
            assert torch.equal(quantizer(batch), batch)
    assert quantizer.phase is Phase.QUANTIZED
    assert (float(quantizer.lower), float(quantizer.upper)) == (-2.0, 3.0)
    with pytest.raises(RuntimeError, match="stop"), set_phase(quantizer, Phase.FLOAT):
        raise RuntimeError("stop")
    assert quantizer.phase is Phase.QUANTIZED


def test_constant_tensor_has_a_scale():
    quantizer = Quantizer(QuantSpec(bits=8))
    zero = torch.zeros(3)
    quantizer.set_bounds(*quantizer.observe(zero))
    assert torch.equal(quantizer(zero), zero)
