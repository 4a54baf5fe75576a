"""The settings of a GPU, and whose memory is measured, where torch only says that there is one."""

import os

import pytest
import torch

from passionsr.utils import system
from passionsr.utils.device import prepare_device
from passionsr.utils.files import UserError


def settings():
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs, says torch; the list of those that were chosen. Every setting comes back."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    places = (
        (torch.backends.cuda.matmul, "allow_tf32"),
        (torch.backends.cudnn, "allow_tf32"),
        (torch.backends.cudnn, "benchmark"),
        (torch.backends.cudnn, "deterministic"),
        (torch.utils.deterministic, "fill_uninitialized_memory"),
    )
    before = [(place, name, getattr(place, name)) for place, name in places]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield chosen
    torch.use_deterministic_algorithms(False)
    for place, name, value in before:
        setattr(place, name, value)


def test_a_gpu_computes_in_float32_and_the_same_twice(gpus):
    prepare_device("cuda")
    assert settings() == (False, False, False, True, False)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert gpus == []  # torch's own choice
    prepare_device("cuda:1")
    assert gpus == [1]


def test_metrics_only_warn(gpus):
    prepare_device("cuda", strict=False)
    assert settings() == (False, False, False, True, True)


def test_a_cpu_keeps_its_settings(gpus):
    before = settings()
    prepare_device("cpu")
    assert settings() == before
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_a_gpu_that_is_not_there(gpus):
    with pytest.raises(UserError, match=r"^device is cuda:2, but torch finds 2 GPU\(s\) here: "):
        prepare_device("cuda:2")
    assert settings()[3] is False  # nothing was set


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda", 1)])
def test_memory_of_a_gpu(device, monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch.cuda, "max_memory_allocated", lambda where: asked.append(where) or 3 << 20
    )
    assert system.peak_mib(device) == 3.0
    assert asked == [device]


def test_memory_of_the_process():
    assert system.peak_mib(torch.device("cpu")) == system.peak_mib() > 50
