"""Sizes and per-layer sensitivity."""

import torch
from torch import nn

from passionsr.baselines.minmax import MinMax
from passionsr.calibration.checkpoints import NoCheckpoints
from passionsr.methods.base import quantize_model
from passionsr.quantization.diagnostics import model_bytes, sensitivity
from passionsr.quantization.layer import QuantizedLayer
from passionsr.quantization.spec import Scheme
from passionsr.quantization.swap import match_layers


def test_size_counts_bits_of_codes_and_everything_else_in_full(tiny, tiny_batches):
    sizes, codes = {}, {}
    for bits in (4, 8):
        scheme = Scheme.parse(f"W{bits}A{bits}")
        model, _, _ = quantize_model(MinMax(), tiny, scheme, "UV", tiny_batches)
        sizes[bits] = model_bytes(model)
        layers = [m for m in model.modules() if isinstance(m, QuantizedLayer)]
        codes[bits] = sum(m.weight_codes.numel() * m.config.weight_bits for m in layers)
    # Only the codes differ between the two.
    assert sizes[8] - sizes[4] == (codes[8] - codes[4]) // 8
    # By hand for W8A8: a byte per weight, 4 bytes per bias and norm parameter, two bounds per
    # channel and layer.
    layers = match_layers(tiny, "UV")
    weights = sum(m.weight.numel() for _, m in layers)
    biases = sum(m.bias.numel() for _, m in layers if m.bias is not None)
    everything = sum(p.numel() for p in tiny.parameters())
    bounds = sum(2 * m.weight.shape[0] + 2 for _, m in layers)
    attention = 8 * sum(m.__class__.__name__ == "Attention" for m in tiny.unet.modules())
    norms = everything - weights - biases
    assert sizes[8] == weights + 4 * (biases + norms + bounds + attention)


def test_sensitivity_is_per_layer_and_falls_with_bits(tiny, tiny_batches):
    results = {}
    for scheme in ("W3A3", "W12A12"):
        model, _ = MinMax().prepare(tiny, Scheme.parse(scheme), "UV")
        MinMax().calibrate(model, tiny_batches, "UV", NoCheckpoints())
        rows = sensitivity(model, tiny_batches[0].image)
        results[scheme] = {r["layer"]: r["psnr_fp"] for r in rows}
    assert list(results["W3A3"]) == [
        n for n, m in model.named_modules() if isinstance(m, QuantizedLayer)
    ]
    assert all(results["W12A12"][n] > results["W3A3"][n] for n in results["W3A3"])
    # One layer alone does less harm than all of them (dB of the worst layer against the whole).
    quantized, _, _ = quantize_model(MinMax(), tiny, Scheme.parse("W3A3"), "UV", tiny_batches)
    image = tiny_batches[0].image
    with torch.no_grad():
        error = nn.functional.mse_loss(quantized(image), tiny(image))
    assert -10 * float(error.log10()) < sorted(results["W3A3"].values())[len(results["W3A3"]) // 2]
