"""Calibration data, sub-models in sequence, the training loop, reconstruction, checkpoints."""
