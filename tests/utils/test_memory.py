"""Freed memory stays with the process."""

import subprocess
import sys

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
