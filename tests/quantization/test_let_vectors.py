"""LET layers and attention scales against the official classes' own numbers (vectors.

Sections 2 and 3).
"""

import pytest
import torch
from torch import nn
from vectors import load

from passionsr.methods.released import ReleasedParts
from passionsr.quantization.attention import AttentionConfig, QuantizedAttention
from passionsr.quantization.equivalent_transform import ALPHA
from passionsr.quantization.layer import LayerConfig, QuantizedLayer
from passionsr.quantization.modules import as_float
from passionsr.quantization.parts import STANDARD
from passionsr.quantization.quantizer import observing
from passionsr.quantization.spec import Form

KINDS = ["conv3x3", "conv3x3s2", "conv1x1", "linear2d", "linear3d"]
BUGS = ReleasedParts(added_offset=True, one_maximum=True, split_tokens=True, float_shift=True)
FLOAT_SHIFT = ReleasedParts(float_shift=True)


def build(v, bits=8, parts=BUGS, split=False):
    weight = v["W"]
    if int(v["is_conv"]):
        stride, padding = int(v["stride"]), int(v["padding"])
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], stride, padding)
    else:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias="b" in v)
    layer = layer.double()
    layer.weight.data = weight
    if "b" in v:
        layer.bias.data = v["b"]
    config = LayerConfig(
        weight_bits=bits, act_bits=bits, form=Form.INT_ZP, let=True, quantize_bias=True,
        split=weight.shape[1] // 2 if split else 0, parts=parts,
    )  # fmt: skip
    quantized = QuantizedLayer(layer, config).double()
    set_let(quantized, v)
    return quantized


def set_let(quantized, v):
    with torch.no_grad():
        quantized.transform.log_scale.copy_(v["s"].flatten().log())
        quantized.transform.offset.copy_(v["o"].flatten())


def close(got, want, tolerance):
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * (1 + float(want.abs().max())))


@pytest.mark.parametrize("kind", KINDS)
def test_let_without_quantizers(shared, kind):
    """The right form equals the plain layer; the official one carries its documented error."""
    v = load(shared, f"let_{kind}_fp")
    right, official = build(v, parts=STANDARD), build(v)
    for layer, want in (
        (right, "ref_out_let_right"),
        (right, "out_plain"),
        (official, "out_let"),
    ):
        with as_float(layer), torch.no_grad():
            close(layer(v["x"]), v[want], 1e-10)
    close(v["out_let"] - v["ref_out_let_right"], v["ref_linear_error"], 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_let_scale_initialisation(shared, kind):
    v = load(shared, f"let_{kind}_fp")
    layer = build(v)
    with torch.no_grad():
        layer.transform.offset.zero_()
        assert float(v["alpha"]) == ALPHA
        layer.start_collecting("ratio")
        with as_float(layer):
            layer(v["x"])
            close(layer.transform.scale, v["s_init"].flatten(), 1e-10)
            layer(v["x2"])
        layer.stop_collecting()
    close(layer.transform.scale, v["s_upd"].flatten(), 1e-10)


QUANTIZED = [f"{k}_q_b{b}_split{s}" for k in KINDS for b in (8, 6) for s in (0, 1)]


@pytest.mark.parametrize("name", [*QUANTIZED, "linear3d_q_b6_split1_nobias"])
def test_let_with_quantizers(shared, name):
    """Codes of activations, weights and biases exactly.

    Outputs and the gradients of s, o and x to 1e-9.
    """
    v = load(shared, f"let_{name}")
    layer = build(v, int(v["bits"]), split=bool(v["split"]))
    layer.init_weights()
    with observing(layer, "first"), torch.no_grad():
        layer(v["x"])
    for parameter in (layer.transform.log_scale, layer.transform.offset):
        parameter.requires_grad_(True)
    x = v["x"].clone().requires_grad_(True)
    out = layer(x)
    close(out, v["out_q"], 1e-9)
    (out * v["G"]).sum().backward()
    with torch.no_grad():
        codes = layer.act_quantizer.codes(layer.transform.input(v["x"]))
        assert torch.equal(codes.long(), v["act_codes"])
        weight = layer.weight_quantizer.codes(layer.transform.weight(layer.weight))
        assert torch.equal(weight.long(), v["w_codes"])
        if "b" in v:
            assert torch.equal(layer.bias_quantizer.codes(layer.bias).long(), v["b_codes"])
    close(x.grad, v["gx"], 1e-9)
    close(layer.transform.offset.grad, v["go"].flatten(), 1e-9)
    # ours is the gradient of log s
    close(layer.transform.log_scale.grad, (v["gs"] * v["s"]).flatten(), 1e-9)
    if "ref_out_q_right" in v:
        right = build(v, int(v["bits"]), parts=FLOAT_SHIFT, split=bool(v["split"]))
        right.init_weights()
        with observing(right, "first"), torch.no_grad():
            right(v["x"])
        with torch.no_grad():
            close(right(v["x"]), v["ref_out_q_right"], 1e-9)
            codes = right.act_quantizer.codes(right.transform.input(v["x"]))
        assert torch.equal(codes.long(), v["ref_act_codes_right"])


class Attention(nn.Module):
    """What a processor needs of diffusers' Attention."""

    def __init__(self, v):
        super().__init__()
        self.heads = int(v["heads"])

        def linear(weight, bias=None):
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None).double()
            layer.weight.data = weight
            if bias is not None:
                layer.bias.data = bias
            return layer

        self.to_q, self.to_k, self.to_v = (linear(v[n]) for n in ("Wq", "Wk", "Wv"))
        self.to_out = nn.ModuleList([linear(v["Wo"], v["bo"]), nn.Identity()])
        self.scale = (v["Wq"].shape[0] // self.heads) ** -0.5


@pytest.mark.parametrize("name", ["self_b8", "self_b6", "cross_b8", "cross_b6"])
def test_attention_vectors(shared, name):
    v = load(shared, f"attn_{name}")
    attention = Attention(v).requires_grad_(False)
    processor = QuantizedAttention(
        AttentionConfig(
            act_bits=int(v["bits"]), form=Form.INT_ZP, let=True, head_dim=v["s_qk_init"].shape[0],
            let_tokens=v["ctx"].shape[1],
        )
    ).double()  # fmt: skip

    def run(x, ctx):
        return processor(attention, x, ctx if int(v["cross"]) else None)

    with torch.no_grad(), as_float(processor):
        assert float(v["alpha"]) == ALPHA
        processor.start_collecting("ratio")
        close(run(v["x"], v["ctx"]), v["out_plain"], 1e-10)
        close(processor.s_qk.scale, v["s_qk_init"], 1e-10)
        close(processor.s_v.scale, v["s_vw_init"], 1e-10)
        run(v["x2"], v["ctx2"])
        close(processor.s_qk.scale, v["s_qk_upd"], 1e-10)
        close(processor.s_v.scale, v["s_vw_upd"], 1e-10)
        processor.stop_collecting()
        close(run(v["x"], v["ctx"]), v["out_plain"], 1e-10)  # equivalent for any scales
        # The quantized pass: s_j belongs to the P behind quantized q and k.
        processor.s_qk.log_scale.copy_(v["s_qk_init"].log())
        processor.s_v.log_scale.copy_(v["s_vw_q"].log())
    for letter in "qkPv":
        bounds = (v[f"{letter}_min"].reshape(1), v[f"{letter}_max"].reshape(1))
        getattr(processor, letter.lower()).set_bounds(*bounds)
    seen = {}

    def see(letter, x, factors=None):
        seen[letter] = x if factors is None else x * factors

    handles = [
        getattr(processor, letter).register_forward_pre_hook(
            lambda _, args, letter=letter: see(letter, *args)
        )
        for letter in "qkpv"
    ]
    for scale in (processor.s_qk, processor.s_v):
        scale.log_scale.requires_grad_(True)
    out = run(v["x"], v["ctx"])
    for handle in handles:
        handle.remove()
    close(out, v["out_q"], 1e-9)
    for letter in "qkPv":
        got = getattr(processor, letter.lower()).codes(seen[letter.lower()]).long()
        assert torch.equal(got.flatten(0, 1), v[f"{letter}_codes"])
    close(seen["p"].flatten(0, 1), v["P_tq"], 1e-9)
    close(seen["v"].flatten(0, 1), v["v_tq"], 1e-9)
    (out * v["G"]).sum().backward()
    close(processor.s_qk.log_scale.grad, v["gs_qk"] * v["s_qk_init"], 1e-9)
    close(processor.s_v.log_scale.grad, v["gs_vw"] * v["s_vw_q"], 1e-9)
