"""The numba loops against the chain of torch operations.

Which is their oracle and serves every other device and type.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from passionsr.methods.released import ReleasedQuantizer
from passionsr.quantization import cpu_functions, cpu_kernels
from passionsr.quantization import quantizer as quantizers
from passionsr.quantization.observers import RangeObserver
from passionsr.quantization.quantizer import Phase, Quantizer, can_fuse
from passionsr.quantization.spec import Form, QuantSpec

FORMS = list(Form)
LAYOUTS = {  # shape of the tensor, the quantizer's options, its channels
    "tensor": ((3, 7, 11), {}, ()),
    "tensor, long": ((2, 5000), {}, ()),  # more than one block of a sum
    "channel": ((6, 4, 3, 3), {"per_channel": True}, (6, 4)),
    "split weight": ((6, 4, 3, 3), {"per_channel": True, "split": 1}, (6, 4)),
    "split linear weight": ((6, 10), {"per_channel": True, "split": 5}, (6, 10)),
    "split map": ((2, 5, 4, 4), {"split": 2}, (5,)),
    "split map, large": (
        (2, 5, 32, 64),
        {"split": 3},
        (5,),
    ),  # loops of their own, blocks cut short
    "split tokens' channels": ((2, 5, 8), {"split": 3, "channel_axis": -1}, (8,)),
    "split tokens' channels, many": ((7, 300, 24), {"split": 9, "channel_axis": -1}, (24,)),
    "halves of dim 1": ((2, 5, 8), {"split": 4}, (8,)),
}


def quantizer_of(layout, form, dtype, bits=4):
    _, options, channels = LAYOUTS[layout]
    spec = QuantSpec(bits=bits, form=form, **options)
    if layout == "halves of dim 1":
        return ReleasedQuantizer(spec, channels, stale=False, half_of_axis=True).to(dtype)
    return Quantizer(spec, channels).to(dtype)


def run(monkeypatch, quantizer, x, grad, fuse):
    """(values, gradients of x, lower and upper), fused or by the chain."""
    ran = []
    rows = cpu_functions.fake_quantize_rows
    with monkeypatch.context() as patch:
        patch.setattr(quantizers, "can_fuse", lambda *tensors: fuse and can_fuse(*tensors))
        patch.setattr(
            cpu_functions, "fake_quantize_rows", lambda *args: ran.append(1) or rows(*args)
        )
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(True)
        quantizer.requires_grad_(True).zero_grad()
        out = quantizer(leaf)
        out.backward(grad)
    assert bool(ran) == fuse
    return out.detach(), leaf.grad, quantizer.lower.grad.clone(), quantizer.upper.grad.clone()


def random(shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


# Values and the gradient of x are one result per value: no tolerance. Bound gradients are sums of
# up to 10,000 terms in another order: 1e-4 in float32 and 1e-10 in float64 bound the difference
# amply.
@pytest.mark.parametrize("clipping", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_is_the_chain(monkeypatch, layout, form, dtype, clipping):
    x, grad = (random(LAYOUTS[layout][0], dtype, seed) for seed in (0, 1))
    quantizer = quantizer_of(layout, form, dtype)
    low, high = quantizer.observe(x)
    inside = (high - low) * (0.25 if clipping else -0.05)
    quantizer.set_bounds(low + inside, high - inside)
    chain = run(monkeypatch, quantizer, x, grad, fuse=False)
    loops = run(monkeypatch, quantizer, x, grad, fuse=True)
    assert torch.equal(loops[0], chain[0])
    assert torch.equal(loops[1], chain[1])
    assert (loops[1] != grad).any() == clipping
    tolerance = 1e-4 if dtype is torch.float32 else 1e-10
    for one, other in zip(loops[2:], chain[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bits", [8, 16])
def test_many_levels(monkeypatch, bits):
    x, grad = (random((3, 7, 11), torch.float32, seed) for seed in (0, 1))
    quantizer = quantizer_of("tensor", Form.REAL_OFFSET, torch.float32, bits)
    quantizer.set_bounds(*quantizer.observe(x))
    chain = run(monkeypatch, quantizer, x, grad, fuse=False)
    loops = run(monkeypatch, quantizer, x, grad, fuse=True)
    assert torch.equal(loops[0], chain[0])


@pytest.mark.parametrize("layout", ["split tokens' channels, many", "split map, large"])
def test_a_small_group_beside_a_large_one(monkeypatch, layout):
    """Sums of one group must not lose their digits to the other's.

    1e-4 of each gradient's own size (float32 sums).
    """
    shape, options, _ = LAYOUTS[layout]
    x, grad = (random(shape, torch.float32, seed) for seed in (0, 1))
    channels = grad.movedim(options.get("channel_axis", 1), -1)
    channels[..., : options["split"]] *= 1e-6
    quantizer = quantizer_of(layout, Form.REAL_OFFSET, torch.float32)
    quantizer.set_bounds(*(bound * 0.7 for bound in quantizer.observe(x)))
    exact = run(monkeypatch, quantizer.double(), x.double(), grad.double(), fuse=False)
    loops = run(monkeypatch, quantizer.float(), x, grad, fuse=True)
    for one, other in zip(loops[2:], exact[2:], strict=True):
        assert other[0].abs() < 1e-3 * other[1].abs()
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=0)


@pytest.mark.parametrize("learned", ["bounds", "factors", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_factors_are_as_the_product(form, dtype, learned):
    """Q(x f) in one pass over x, and Q of the product.

    Rows of 77, which do not divide a block of sums.
    """
    x, grad = (random((2, 3, 40, 77), dtype, seed) for seed in (0, 1))
    factors = random((77,), dtype, 2).abs() + 0.5
    quantizer = quantizer_of("tensor", form, dtype)
    quantizer.set_bounds(*(bound * 0.5 for bound in quantizer.observe(x * factors)))
    quantizer.requires_grad_(learned != "factors")
    found = []
    for fuse in (False, True):
        leaf, f = x.clone().requires_grad_(True), factors.clone()
        f.requires_grad_(learned != "bounds")
        quantizer.zero_grad()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, s=saved: s.append(t.data_ptr()) or t if t.numel() == x.numel() else t,
            lambda t: t,
        ):
            out = quantizer(leaf, f) if fuse else quantizer(leaf * f)
        out.backward(grad)
        assert not fuse or set(saved) == {leaf.data_ptr(), out.data_ptr()}
        found.append([out.detach(), leaf.grad, f.grad, quantizer.lower.grad, quantizer.upper.grad])
    product, fused_ones = found
    assert (fused_ones[1] != grad * factors).any()
    for one, other in zip(fused_ones[:2], product[:2], strict=True):
        assert torch.equal(one, other)
    tolerance = 1e-4 if dtype is torch.float32 else 1e-10
    for one, other in zip(fused_ones[2:], product[2:], strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one != 0).all()
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("phase", list(Phase))
def test_factors_in_every_phase(phase):
    """Where nothing is fused, too: passed through, observed, under a stale zero point."""
    x, factors = random((4, 5), torch.float32, 0), random((5,), torch.float32, 1)
    for stale in (False, True):
        results = []
        for arguments in ((x * factors,), (x, factors)):
            spec = QuantSpec(bits=4, form=Form.INT_ZP if stale else Form.AFFINE)
            quantizer = ReleasedQuantizer(spec, (), stale=True) if stale else Quantizer(spec)
            quantizer.phase = phase
            quantizer.observer = RangeObserver("ema")
            results += [quantizer(*arguments), quantizer.observer.lower]
        assert torch.equal(results[0], results[2])
        assert torch.equal(results[0], x * factors) == (phase is not Phase.QUANTIZED)
        assert (results[1] is not None) == (phase is Phase.OBSERVING)
        assert results[1] == results[3]


def test_fewer_channels_than_a_split(monkeypatch):
    """All of them are in the first group, as in the chain: nothing is written past them."""
    quantizer = Quantizer(QuantSpec(bits=4, split=6), (8,))
    x, grad = (random((2, 5, 3), torch.float32, seed) for seed in (0, 1))
    chain = run(monkeypatch, quantizer, x, grad, fuse=False)
    loops = run(monkeypatch, quantizer, x, grad, fuse=True)
    for one, other in zip(loops, chain, strict=True):
        torch.testing.assert_close(one, other)


def test_a_range_per_row_has_no_leading_dimensions():
    with pytest.raises(ValueError, match="do not go together"):
        cpu_functions.fake_quantize_rows(
            torch.zeros(8), torch.zeros(2, 1), torch.ones(2, 1), 3, Form.AFFINE, (2, 2, 2), 2
        )


# From here on 1e-6, relative: single roundings of float32 in formulas of a few terms.
@pytest.mark.parametrize("form", FORMS)
def test_ties_bounds_and_what_is_not_finite(monkeypatch, form):
    """Halves between codes, the bounds themselves, zeros of both signs, infinities.

    NaN stays NaN.
    """
    quantizer = quantizer_of("tensor", form, torch.float32)
    quantizer.set_bounds(torch.tensor([-4.0]), torch.tensor([11.0]))
    x = torch.tensor([-4.0, -3.5, -2.5, -0.5, -0.0, 0.0, 0.5, 1.5, 10.5, 11.0, 11.5, -4.5])
    grad = torch.arange(1.0, len(x) + 1)
    chain = run(monkeypatch, quantizer, x, grad, fuse=False)
    loops = run(monkeypatch, quantizer, x, grad, fuse=True)
    for one, other in zip(loops, chain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    assert torch.equal(loops[0], chain[0])
    odd = torch.tensor([float("inf"), -float("inf"), float("nan")])
    with torch.no_grad():
        assert quantizer(odd)[:2].tolist() == [11.0, -4.0]
        assert quantizer(odd)[2].isnan()


@pytest.mark.parametrize("form", FORMS)
def test_a_range_without_width(monkeypatch, form):
    quantizer = quantizer_of("tensor", form, torch.float32)
    quantizer.set_bounds(torch.tensor([0.0]), torch.tensor([0.0]))
    x, grad = torch.tensor([0.0, 1e-7, 1.0, -1.0]), torch.ones(4)
    chain = run(monkeypatch, quantizer, x, grad, fuse=False)
    loops = run(monkeypatch, quantizer, x, grad, fuse=True)
    for one, other in zip(loops, chain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_strided_tensors(monkeypatch):
    """Attention's heads are a transposed view, and so is their gradient."""
    x, grad = (random((3, 7, 11), torch.float32, seed) for seed in (0, 1))
    quantizer = quantizer_of("tensor", Form.AFFINE, torch.float32)
    view = run(monkeypatch, quantizer, x.transpose(0, 2), grad.transpose(0, 2), fuse=True)
    plain = run(monkeypatch, quantizer, x, grad, fuse=True)
    for one, other in zip(view[:2], plain[:2], strict=True):
        assert torch.equal(one, other.transpose(0, 2))


def test_learned_scales_get_their_gradients(monkeypatch):
    """Bounds that are computed from scale and zero point."""
    x, grad = (random((3, 7, 11), torch.float64, seed) for seed in (0, 1))
    quantizer = quantizer_of("tensor", Form.LSQ, torch.float64)
    found = []
    for fuse in (False, True):
        parameters = quantizer.learn_scale()
        with monkeypatch.context() as patch:
            patch.setattr(quantizers, "can_fuse", lambda *_, fuse=fuse: fuse)
            for parameter in parameters:
                parameter.requires_grad_(True)
            quantizer(x).backward(grad)
        found.append([p.grad for p in parameters])
    for one, other in zip(*found, strict=True):
        assert (one != 0).all()
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("x", "bound"),
    [
        (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16)),
        (torch.zeros(2), torch.zeros(1, dtype=torch.float64)),
        (torch.zeros(2, device="meta"), torch.zeros(1, device="meta")),
    ],
)
def test_the_chain_serves_the_rest(x, bound):
    assert not can_fuse(x, bound)
    assert can_fuse(torch.zeros(2), torch.zeros(1))


def test_nothing_needs_a_folder_to_write_to():
    """A read-only installation without a home compiles in memory."""
    code = (
        "import numba.core.caching as caching\n"
        "caching.CompileResultCacheImpl._locator_classes = []  # as where no folder can be "
        "written to\n"
        "import torch\n"
        "from passionsr.quantization.quantizer import Quantizer\n"
        "from passionsr.quantization.spec import QuantSpec\n"
        "quantizer = Quantizer(QuantSpec(bits=2))  # -1 to 1: codes -2 to 1 of steps of 2/3\n"
        "print([round(v, 3) for v in quantizer(torch.tensor([-1.0, 0.1, 1.0])).tolist()])\n"
        "from passionsr.quantization import cpu_kernels\n"
        "kernel = cpu_kernels.forward_of(torch.float32, cpu_kernels.EVEN)\n"
        "assert type(kernel._cache) is caching.NullCache, kernel._cache\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.strip() == "[-1.333, 0.0, 0.667]"


def test_a_damaged_cache_costs_time_only(monkeypatch):
    """A file cut short by a power failure: compiled again, in memory."""
    calls = []

    def njit(signature, cache=False, **options):
        calls.append(cache)
        if cache:
            raise EOFError("Ran out of input")
        return lambda function: function

    monkeypatch.setattr(cpu_kernels, "njit", njit)
    kernel = cpu_kernels._compiled(lambda: 7, torch.float32, lambda t: ())
    assert calls == [True, False]
    assert kernel() == 7


def test_every_variant_has_its_own_cache_file():
    """Numba numbers the variants of one file without a lock.

    Two processes could swap two of them.
    """
    kernels = [
        f(dtype, kind, *rest)
        for dtype in (torch.float32, torch.float64)
        for kind in set(cpu_kernels.KINDS.values())
        for f, rest in (
            (cpu_kernels.forward_of, ()),
            (cpu_kernels.backward_of, (True,)),
            (cpu_kernels.backward_of, (False,)),
        )
    ]
    names = [kernel._cache._impl.filename_base for kernel in kernels]
    assert len(set(names)) == len(names)
