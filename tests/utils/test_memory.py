"""Freed memory stays with the process."""

import subprocess
import sys
from pathlib import Path

import pytest

LIBC = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
"""
FAULTS = (
    LIBC
    + """
import resource, sys
from passionsr.utils.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print("no glibc")
    raise SystemExit
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(64 << 20)
    libc.memset(block, 1, 64 << 20)
    libc.free(block)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""
)


def test_a_freed_block_is_used_again():
    """A page fault per 4 KiB of a new 64 MiB block is 16384 (32 with huge pages).

    Of a used one next to none.
    """
    found = {}
    for mode in ("default", "keep"):
        out = subprocess.run(
            [sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True
        )
        found[mode] = out.stdout.strip()
    if found["keep"] == "no glibc":
        pytest.skip("this C library has no mallopt")
    assert int(found["keep"]) < 10 < int(found["default"])


GIVEN_BACK = (
    LIBC
    + """
from passionsr.utils.memory import give_back_freed_memory, keep_freed_memory
if not keep_freed_memory():
    print("no glibc")
    raise SystemExit
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
block = libc.malloc(256 << 20)
libc.memset(block, 1, 256 << 20)
above = libc.malloc(1 << 20)
libc.free(block)
kept = resident()
give_back_freed_memory()
print(kept - resident())
"""
)


def test_freed_memory_is_given_back_when_asked():
    """MiB of a freed block of 256 that lies below one in use."""
    out = subprocess.run(
        [sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True
    )
    if out.stdout.strip() == "no glibc":
        pytest.skip("this C library has no mallopt")
    assert int(out.stdout) > 200


JOB = """
import resource, sys, types
sys.path.insert(0, "workflow/scripts")
import job, torch

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

def measure(config, run_ids):
    # A tensor is aligned, so it needs a little more than the last one left: only after some rounds
    # are there blocks that are large enough.
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensor = torch.ones(16 << 20)  # 64 MiB
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        held = resident()
        del tensor
    print(faults, held - resident())

sys.modules["probe"] = types.SimpleNamespace(measure=measure)
job.JOBS["score"] = "probe:measure"
job.work("score", types.SimpleNamespace(threads=1, low_memory=sys.argv[1] == "low"), [])
"""


@pytest.mark.parametrize("mode", ["fast", "low"])
def test_what_a_job_does_with_freed_memory(mode):
    """As configured, and nothing else decides: kept for the next tensor, or given back."""
    out = subprocess.run(
        [sys.executable, "-c", JOB, mode], capture_output=True, text=True, check=True
    )
    faults, given_back = map(int, out.stdout.split())
    if mode == "fast":
        assert faults < 10  # of 16384 pages, or 32 huge ones
        assert given_back < 8
    else:
        assert faults > 10
        assert given_back > 56


def test_rules_leave_that_to_the_job():
    """A variable in a rule's command would hold for low_memory jobs, too."""
    rules = [Path("Snakefile"), *Path("workflow/rules").glob("*.smk")]
    assert not [path for path in rules if "MALLOC" in path.read_text()]
