"""The GPU of a process: whether there is one, and its arithmetic set to exact and repeatable."""

from __future__ import annotations

import os

from passionsr.utils.files import UserError


def prepare_device(device: str, strict: bool = True) -> None:
    """Make torch ready for "cpu", "cuda" or "cuda:<number>"; call it before anything is put there.

    On a GPU float32 means float32 (torch allows TF32, 10 bits of mantissa, in convolutions by
    default) and the same work gives the same bytes: cuBLAS gets the workspace that this takes,
    cuDNN looks for no fastest kernel, and torch takes deterministic kernels or raises. Nothing
    changes on a CPU.

    Args:
        device: see above; with a number it becomes the process's current GPU.
        strict: False warns where an operation has no deterministic kernel, in place of raising;
            for code that is not ours (metrics).
    Raises UserError where torch finds no GPU, or none of that number.
    """
    if device == "cpu":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"device is {device}, but torch finds no GPU here; set device: cpu")
    number = torch.device(device).index
    count = torch.cuda.device_count()
    if number is not None and number >= count:
        raise UserError(
            f"device is {device}, but torch finds {count} GPU(s) here: give cuda or cuda:0 to "
            f"cuda:{count - 1}"
        )
    exact_arithmetic(strict)
    if number is not None:
        torch.cuda.set_device(number)


def exact_arithmetic(strict: bool = True) -> None:
    """No TF32, deterministic kernels: the settings of `prepare_device`, in one place."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=not strict)
    # Otherwise every torch.empty is filled with NaN first.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
