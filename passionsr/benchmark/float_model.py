"""The float model that a configuration names, on its device."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from passionsr.benchmark.config import Config
from passionsr.models.family import get_family
from passionsr.utils.device import prepare_device

if TYPE_CHECKING:
    from passionsr.models.one_step import OneStepSR


def load_float_model(config: Config) -> OneStepSR:
    """The float model that a configuration names."""
    family = get_family(config.family)
    if config.model in family.built_in:
        return to_device(family.make(config.model), config)
    from passionsr.models.folder import load_model

    return to_device(load_model(config.model, family), config)


def to_device(model: OneStepSR, config: Config) -> OneStepSR:
    """`model` on the configuration's device, made ready by `prepare_device`."""
    prepare_device(config.device)
    return model.to(config.device)


def device_name(config: Config) -> str:
    """What a job ran on, for its record."""
    if config.device == "cpu":
        return platform.processor() or platform.machine()
    import torch

    return torch.cuda.get_device_name(config.device)
