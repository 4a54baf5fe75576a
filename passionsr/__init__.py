"""Post-training quantization of one-step diffusion super-resolution: library code."""

__version__ = "0.2.0"  # the one place; pyproject.toml reads it
