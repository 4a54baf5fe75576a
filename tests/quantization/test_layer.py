"""QuantizedLayer and QuantizedAttention: exact equivalences, integer arithmetic, freezing."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from passionsr.methods.released import ReleasedParts
from passionsr.quantization import attention
from passionsr.quantization.attention import AttentionConfig, QuantizedAttention
from passionsr.quantization.equivalent_transform import init_scale
from passionsr.quantization.functional import scale_of
from passionsr.quantization.layer import LayerConfig, QuantizedLayer
from passionsr.quantization.modules import as_float, quantized_modules
from passionsr.quantization.parts import STANDARD
from passionsr.quantization.quantizer import Phase, observing, set_phase
from passionsr.quantization.spec import Form
from passionsr.utils.files import UserError

LAYERS = {
    "conv3x3": (nn.Conv2d(6, 5, 3, padding=1), (2, 6, 9, 12)),
    "conv3x3-stride2": (nn.Conv2d(6, 5, 3, stride=2, padding=1), (2, 6, 12, 10)),
    "conv3x3-stride2-odd": (nn.Conv2d(6, 5, 3, stride=2, padding=1), (2, 6, 11, 13)),
    "conv3x3-unpadded": (nn.Conv2d(6, 5, 3, stride=2), (2, 6, 11, 9)),
    "conv5x5": (nn.Conv2d(6, 5, 5, padding=2), (1, 6, 16, 11)),
    "conv1x1": (nn.Conv2d(6, 5, 1, bias=False), (2, 6, 7, 7)),
    "conv3x3-smaller-than-border-map": (nn.Conv2d(6, 5, 3, padding=1), (1, 6, 2, 2)),
    "linear2d": (nn.Linear(6, 5), (3, 6)),
    "linear3d": (nn.Linear(6, 5, bias=False), (2, 7, 6)),
}


def make(kind, dtype=torch.float64, **config):
    layer, shape = LAYERS[kind]
    torch.manual_seed(1)
    layer = copy.deepcopy(layer).to(dtype)
    settings = {"weight_bits": 8, "act_bits": 8, "form": Form.REAL_OFFSET, **config}
    quantized = QuantizedLayer(layer, LayerConfig(**settings)).to(dtype)
    x = torch.randn(shape, dtype=dtype)
    if settings.get("let"):
        with torch.no_grad():
            quantized.transform.log_scale.uniform_(-2, 2)
            quantized.transform.offset.normal_()
    return layer, quantized, x


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_let_is_equivalent_without_quantizers(kind, dtype, tolerance):
    """Relative to the output's magnitude; random s > 0 and o."""
    layer, quantized, x = make(kind, dtype, let=True, split=2, quantize_bias=True)
    with as_float(quantized):
        out = quantized(x)
    expected = layer(x)
    assert (out - expected).abs().max() <= tolerance * (1 + expected.abs().max())


def test_wrong_offset_sign_would_be_seen():
    """The released linear layer adds o: its error is exactly 2 W o, far above the tolerance."""
    layer, quantized, x = make("linear2d", let=True)
    with torch.no_grad():
        offset = quantized.transform.offset.clone()
        released = layer(x + offset) + layer.weight @ offset
    torch.testing.assert_close(released - layer(x), (2 * layer.weight @ offset).expand(3, -1))
    assert (released - layer(x)).abs().max() > 0.1


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bits", [4, 8])
def test_integer_path_equals_fake_quantization(kind, bits):
    """scale_a scale_w sum (qa - za)(qw - zw), padding included, with integers: 1e-5 relative."""
    layer, quantized, x = make(kind, form=Form.AFFINE, weight_bits=bits, act_bits=bits)
    quantized.init_weights(include_zero=True)
    with observing(quantized, include_zero=True):
        quantized(x)
    act, weight = quantized.act_quantizer, quantized.weight_quantizer
    n = 2**bits - 1
    act_scale = (act.upper - act.lower) / n
    act_zero = -torch.round(act.lower / act_scale)
    weight_scale = (weight.upper - weight.lower) / n  # (Cout, 1)
    weight_zero = -torch.round(weight.lower / weight_scale)
    qx = (act.codes(x).long() - act_zero.long()).double()  # padding adds exact zeros
    shape = [-1, *[1] * (layer.weight.ndim - 1)]
    qw = (weight.codes(layer.weight).long() - weight_zero.long().reshape(shape)).double()
    if quantized.is_conv:
        sums = F.conv2d(qx, qw, None, layer.stride, layer.padding)
        out = sums * act_scale * weight_scale.reshape(1, -1, 1, 1)
        out = out if layer.bias is None else out + layer.bias.reshape(1, -1, 1, 1)
    else:
        out = F.linear(qx, qw) * act_scale * weight_scale.reshape(-1)
        out = out if layer.bias is None else out + layer.bias
    torch.testing.assert_close(quantized(x), out, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("let", [False, True])
def test_freezing_keeps_the_output(kind, let):
    """Codes dequantize by the very arithmetic of the training forward: equal bits without LET.

    With LET the border response may be summed in another order on the fixed map: 1e-12 relative
    (float64).
    """
    _, quantized, x = make(kind, let=let, split=2, quantize_bias=True, weight_bits=6, act_bits=6)
    quantized.init_weights()
    with observing(quantized):
        quantized(x)
    before = quantized(x)
    quantized.freeze()
    assert quantized.weight is None
    assert quantized.weight_codes.dtype == torch.uint8
    if let:
        torch.testing.assert_close(quantized(x), before, rtol=1e-12, atol=1e-12)
    else:
        assert torch.equal(quantized(x), before)
    assert torch.equal(quantized(x), quantized(x))


def test_frozen_border_map_serves_smaller_feature_maps():
    """2 x 2 is borders without an interior, which the frozen map has.

    A single row sees both paddings at once.
    """
    _, quantized, x = make("conv3x3-smaller-than-border-map", let=True)
    maps = [x, x[:, :, :1], x[:, :, :, :1], x[:, :, :1, :1]]
    before = [quantized(part) for part in maps]
    quantized.freeze()
    for part, expected in zip(maps, before, strict=True):
        torch.testing.assert_close(quantized(part), expected, rtol=1e-12, atol=1e-12)


def test_bias_is_quantized_with_the_interior_shift():
    """Paper Eq. 5: Q(b + W o), per tensor at weight bits: at most 2^b distinct biases."""
    _, quantized, _x = make("conv3x3", let=True, quantize_bias=True, weight_bits=2)
    quantized.init_weights()
    bias, _, _ = quantized._bias_and_border((9, 12))
    assert len(quantized.bias_quantizer(bias).unique()) <= 4
    quantized.freeze()
    assert quantized.bias_codes.max() <= 3


def test_let_statistics_for_every_rank():
    """Per-channel maxima over all other dims, also for (N, C) inputs."""
    for kind in ("linear2d", "linear3d", "conv3x3"):
        layer, quantized, x = make(kind, let=True)
        quantized.start_collecting("ratio")
        quantized(x)
        axis = 1 if quantized.is_conv else x.ndim - 1
        amax_x = x.abs().amax([d for d in range(x.ndim) if d != axis])
        amax_w = layer.weight.abs().amax([d for d in range(layer.weight.ndim) if d != 1])
        torch.testing.assert_close(quantized.transform.scale, (amax_x / amax_w) ** 0.3)
        quantized(2 * x)  # EMA: 0.9 old + 0.1 new
        expected = (amax_x / amax_w) ** 0.3 * (0.9 + 0.1 * 2**0.3)
        torch.testing.assert_close(quantized.transform.scale, expected)


def test_smoothquant_and_ratio_agree_at_one_half():
    amax_x, amax_w = torch.tensor([3.0, 0.2]), torch.tensor([0.5, 0.7])
    torch.testing.assert_close(
        init_scale(amax_x, amax_w, "ratio", 0.5), init_scale(amax_x, amax_w, "smoothquant", 0.5)
    )
    assert not torch.allclose(
        init_scale(amax_x, amax_w, "ratio"), init_scale(amax_x, amax_w, "smoothquant")
    )


def attention_pair(cross=True, **config):
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    plain = Attention(
        query_dim=8, cross_attention_dim=6 if cross else None, heads=2, dim_head=4
    ).double()
    quantized = copy.deepcopy(plain)
    tokens = 5 if cross else 7
    processor = QuantizedAttention(
        AttentionConfig(
            act_bits=8, head_dim=4, let_tokens=tokens, **{"form": Form.REAL_OFFSET, **config}
        )
    ).double()
    quantized.set_processor(processor)
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    context = torch.randn(2, 5, 6, dtype=torch.float64) if cross else None
    return plain, quantized, processor, x, context


@pytest.mark.parametrize("cross", [True, False])
def test_attention_let_is_equivalent(cross):
    plain, quantized, processor, x, context = attention_pair(cross, let=True)
    with torch.no_grad():
        processor.s_qk.log_scale.uniform_(-1, 1)
        processor.s_v.log_scale.uniform_(-1, 1)
    with as_float(quantized):
        out = quantized(x, context)
    torch.testing.assert_close(out, plain(x, context), rtol=1e-10, atol=1e-10)


def test_attention_probabilities_come_from_quantized_q_and_k():
    """With 2-bit q and k, P differs from the float softmax."""
    _plain, quantized, processor, x, context = attention_pair()
    with observing(quantized):
        quantized(x, context)
    seen = {}
    processor.p.register_forward_hook(lambda _, args, out: seen.update(p=args[0]))
    quantized(x, context)
    quantized_p = seen["p"]
    with set_phase(quantized, Phase.FLOAT):
        quantized(x, context)
    assert not torch.equal(quantized_p, seen["p"])
    torch.testing.assert_close(quantized_p.sum(-1), torch.ones_like(quantized_p.sum(-1)))


@pytest.mark.parametrize("piece", [100, 1000, 7 * 7 * 3])
@pytest.mark.parametrize("let", [False, True])
def test_attention_in_pieces_is_attention(monkeypatch, piece, let):
    """The same values and gradients, products and sums in another order (float64.

    1e-9 is ample).
    """
    _, quantized, processor, x, _ = attention_pair(cross=False, let=let)
    if let:
        with torch.no_grad():
            processor.s_qk.log_scale.uniform_(-1, 1)
            processor.s_v.log_scale.uniform_(-1, 1)
    with observing(quantized):
        quantized(x)
    processor.requires_grad_(True)

    def step():
        x.grad = None
        processor.zero_grad()
        out = quantized(x.requires_grad_(True))
        out.square().sum().backward()
        return out.detach(), [x.grad, *(p.grad.clone() for p in processor.parameters())]

    out, gradients = step()
    assert out.unique().numel() > 1
    monkeypatch.setattr(attention, "KEPT_MAPS", 0)
    monkeypatch.setattr(attention, "piece_size", lambda like: piece)
    seen = []
    processor.p.register_forward_hook(lambda *_: seen.append(1))
    pieces, piece_gradients = step()
    assert not seen  # P was not made at once
    torch.testing.assert_close(pieces, out, rtol=1e-9, atol=1e-12)
    for one, other in zip(piece_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(quantized(x), out, rtol=1e-9, atol=1e-12)


STALE = ReleasedParts(stale_zero_point=True)


def kept_of_size(elements, run):
    """What `run` makes, and how many tensors of that size it keeps for its gradient."""
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        return run(), list(kept.values()).count(elements)


@pytest.mark.parametrize(
    ("form", "parts", "let"),
    [
        (Form.REAL_OFFSET, STANDARD, False),
        (Form.LSQ, STANDARD, False),
        (Form.INT_ZP, STALE, False),
        (Form.INT_ZP, STALE, True),
    ],
)
def test_a_large_quantized_p_is_made_again(monkeypatch, form, parts, let):
    """To the bit, and not kept; a stale zero point is that of the first time."""
    _, quantized, processor, x, _ = attention_pair(cross=False, form=form, parts=parts, let=let)
    with observing(quantized):
        quantized(x)
    processor.requires_grad_(True)
    found = []
    for piece in (1 << 18, 10):
        monkeypatch.setattr(attention, "PIECE", piece)
        for quantizer in (processor.q, processor.k, processor.p, processor.v):
            for previous in quantizer.forward_state():
                with torch.no_grad():
                    previous.copy_(1.3 * scale_of(quantizer.lower, quantizer.upper, 255))
        x.grad = None
        processor.zero_grad()
        out, maps = kept_of_size(2 * 2 * 7 * 7, lambda: quantized(x.requires_grad_(True)))
        out.square().sum().backward()
        found.append((maps, [out.detach(), x.grad, *(p.grad for p in processor.parameters())]))
    (kept, whole), (kept_again, again) = found
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    assert (kept, kept_again) == (3 if let else 2, 1)


def test_a_scaled_p_is_not_kept():
    """With LET: P and Q(P s), not P s."""
    _, quantized, processor, x, _ = attention_pair(cross=False, let=True)
    with observing(quantized):
        quantized(x)
    processor.requires_grad_(True)
    _, maps = kept_of_size(2 * 2 * 7 * 7, lambda: quantized(x.requires_grad_(True)))
    assert maps == 2


def test_statistics_of_p_are_taken_of_the_whole(monkeypatch):
    _, quantized, processor, x, _ = attention_pair(cross=False)
    monkeypatch.setattr(attention, "piece_size", lambda like: 10)
    sizes = []
    processor.p.register_forward_hook(lambda _, args, out: sizes.append(args[0].shape))
    with torch.no_grad(), observing(quantized):
        quantized(x)
    assert sizes == [(2, 2, 7, 7)]


def test_attention_refuses_another_token_count():
    _, quantized, _, x, context = attention_pair(let=True)
    with pytest.raises(UserError, match="6 key tokens but its LET scale was calibrated for 5"):
        quantized(x, torch.cat([context, context[:, :1]], 1))


def test_every_module_is_found():
    model = nn.Sequential(QuantizedLayer(nn.Linear(2, 2), LayerConfig(weight_bits=8, act_bits=8)))
    assert len(quantized_modules(model)) == 1
