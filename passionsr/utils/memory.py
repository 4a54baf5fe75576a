"""How the C library hands out memory."""

from __future__ import annotations

import contextlib
import ctypes

# Of glibc's malloc.h. A request is never mapped on its own, the heap grows by 64 MiB, and gives
# back what is free above 2 GiB.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
KEPT = {M_MMAP_MAX: 0, M_TOP_PAD: 64 << 20, M_TRIM_THRESHOLD: (1 << 31) - 1}


def keep_freed_memory() -> bool:
    """Keep freed blocks for the next tensors of this process.

    Whether the C library can (glibc's can).

    By default every large tensor is mapped anew, and the kernel clears each of its pages: on a
    virtual machine that cost a quantized training step, which makes more tensors than a float one,
    a third of its time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all([mallopt(option, value) for option, value in KEPT.items()])


def give_back_freed_memory() -> None:
    """Hand the pages of freed blocks to the system.

    Between stages whose tensors are of other sizes.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
