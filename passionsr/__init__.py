"""Post-training quantization of one-step diffusion super-resolution: library code."""

__version__ = "0.1.0"
