"""The float model that a configuration names, on its device."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from passionsr.benchmark.config import Config
from passionsr.utils.files import (
    UserError,
)

if TYPE_CHECKING:
    from passionsr.models.one_step import OneStepSR


BUILT_IN = ("tiny", "sd21-random")  # models that are made, not read from a folder


def load_float_model(config: Config) -> OneStepSR:
    """The float model that a configuration names."""
    if config.model == "tiny":
        from passionsr.models.tiny import tiny_model

        model = tiny_model()
    elif config.model == "sd21-random":
        from passionsr.models.osediff.sd21 import sd21_model

        model = sd21_model(seed=0)
    else:
        from passionsr.models.folder import load_model

        model = load_model(config.model)
    return to_device(model, config)


def to_device(model: OneStepSR, config: Config) -> OneStepSR:
    """`model` on the configuration's device; UserError where torch has none."""
    if config.device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise UserError(
                f"device is {config.device}, but torch finds no GPU here; set device: cpu"
            )
    return model.to(config.device)


def device_name(config: Config) -> str:
    """What a job ran on, for its record."""
    if config.device == "cpu":
        return platform.processor() or platform.machine()
    import torch

    return torch.cuda.get_device_name(config.device)
