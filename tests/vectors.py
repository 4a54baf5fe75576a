"""The official classes' numbers, as the tests read them.

One file has no test: qd_act_sym_max_b8, because symmetric Q-Diffusion is not offered.
"""

import numpy as np
import torch


def load(shared, name):
    """The arrays of one vector file as tensors."""
    data = np.load(shared / "vectors" / f"{name}.npz")
    return {k: torch.as_tensor(data[k]) for k in data.files}


def relative(got, want):
    """Largest difference over the largest magnitude."""
    return float((got.flatten() - want.flatten()).abs().max() / want.abs().max().clamp_min(1e-12))
