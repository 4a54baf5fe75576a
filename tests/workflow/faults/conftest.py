import os
import random
import time

import pytest


@pytest.fixture(scope="session")
def seed():
    """Seed of every random choice in this folder; set PASSIONSR_FAULT_SEED to repeat a run."""
    value = int(os.environ.get("PASSIONSR_FAULT_SEED", time.time_ns() % 1_000_000))
    return value


@pytest.fixture
def rng(seed, request):
    """A generator of the test's own, whatever the order of tests.

    The seed is printed with the test's output.
    """
    print(f"PASSIONSR_FAULT_SEED={seed}")
    return random.Random(f"{seed} {request.node.name}")


def pytest_report_header():
    return (
        "tests/faults: PASSIONSR_FAULT_SEED repeats the choices of a run (printed where a test "
        "fails)"
    )
