"""Quantization primitives: torch only; no model, no file, no logging."""
