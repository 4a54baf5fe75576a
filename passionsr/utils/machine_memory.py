"""How much memory the jobs of one machine may take together.

The least of what the machine has, what its control groups allow (containers, batch systems, systemd
slices) and what `ulimit` allows; $PASSIONSR_MEMORY_MB stands for all of these where it is set. A
reserve is left for the system, for Snakemake and for whatever else runs.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from passionsr.utils.files import UserError

VARIABLE = "PASSIONSR_MEMORY_MB"
MB = 1_000_000  # as Snakemake's mem_mb
LEAST_RESERVE_MB, RESERVED_SHARE = 1000, 0.1
# Of a control group, in its folder: version 2, then 1. Above memory.high its processes are slowed.
LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")
# Limits of a process, by what they are of, and MB that count against them and are no memory in
# use: torch and its libraries map 2.9 GB of address space (VmPeak - VmHWM of a job) that nobody
# touches. Taken for all jobs together they are on the safe side.
ULIMITS = {
    "ulimit -v without 3000 MB that libraries only map": (resource.RLIMIT_AS, 3000),
    "ulimit -d": (resource.RLIMIT_DATA, 0),
}


@dataclass(frozen=True)
class MachineMemory:
    """total_mb: memory, MB. source: what it is of, such as "this machine" or "ulimit -v"."""

    total_mb: int
    source: str

    @property
    def reserve_mb(self) -> int:
        """What jobs leave free, MB: a tenth, at least 1000."""
        return max(LEAST_RESERVE_MB, round(RESERVED_SHARE * self.total_mb))

    @property
    def for_jobs_mb(self) -> int:
        """What all jobs that run at the same time may take together, MB."""
        return max(0, self.total_mb - self.reserve_mb)

    def __str__(self) -> str:
        return (
            f"{self.for_jobs_mb} MB ({self.total_mb} MB of {self.source} less {self.reserve_mb} MB "
            "for everything else)"
        )


def _mounts(proc: Path) -> dict[str, Path]:
    """Where the control groups that limit memory are mounted: "" for version 2, memory for 1."""
    found = {}
    for line in (proc / "mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2":
            found[""] = Path(place)
        elif kind == "cgroup" and "memory" in options.split(","):
            found["memory"] = Path(place)
    return found


def control_group_limits(proc: Path = Path("/proc/self")) -> Iterator[MachineMemory]:
    """Limits of this process's control groups and of all groups around them.

    proc: folder of a process, as proc(5) describes it. Where a container sees only its own group,
    the path that the kernel tells is of no use, and the limit stands where groups are mounted:
    every folder from the path up to there is looked at.
    """
    try:
        mounts = _mounts(proc)
        lines = (proc / "cgroup").read_text().splitlines()
    except OSError:  # no control groups here
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        mount = mounts.get("memory" if "memory" in controllers.split(",") else controllers)
        if mount is None:
            continue
        group = mount / name.lstrip("/")
        for folder in (group, *group.parents):
            for path in (folder / limit for limit in LIMITS):
                text = path.read_text().strip() if os.access(path, os.R_OK) else ""
                if text.isdigit():
                    yield MachineMemory(int(text) // MB, f"the control group {folder}")
            if folder == mount:
                break


def _limits() -> Iterator[MachineMemory]:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield MachineMemory(pages // MB, "this machine")
    yield from control_group_limits()
    for name, (limit, unused_mb) in ULIMITS.items():
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            yield MachineMemory(max(0, soft // MB - unused_mb), name)


def machine_memory() -> MachineMemory:
    """The memory there is for this process and its children.

    Raises UserError where $PASSIONSR_MEMORY_MB is not a number of MB.
    """
    given = os.environ.get(VARIABLE, "")
    if given:
        if not (given.isascii() and given.isdigit() and int(given)):
            raise UserError(
                f"{VARIABLE}={given}: expected the memory of this machine in MB, a whole number "
                "such as 16000; unset it to take what there is"
            )
        return MachineMemory(int(given), f"${VARIABLE}")
    return min(_limits(), key=lambda limit: limit.total_mb)
