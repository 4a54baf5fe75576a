"""Quantization primitives: torch only; no model, no file, no logging."""

from passionsr.quant.observers import RangeObserver
from passionsr.quant.primitives import dequantize, fake_quantize, quantize, round_half_away
from passionsr.quant.quantizers import Phase, Quantizer, observing, set_phase
from passionsr.quant.spec import Form, QuantSpec, Scheme

__all__ = [
    "Form",
    "Phase",
    "QuantSpec",
    "Quantizer",
    "RangeObserver",
    "Scheme",
    "dequantize",
    "fake_quantize",
    "observing",
    "quantize",
    "round_half_away",
    "set_phase",
]
