"""How much memory there is: control groups of both versions, ulimit, and what the user says."""

import subprocess
import sys

import psutil
import pytest

from passionsr.utils import machine_memory as lib
from passionsr.utils.files import UserError
from passionsr.utils.machine_memory import MachineMemory, control_group_limits, machine_memory

GIB = 1 << 30


def groups(folder, mounts, cgroup, limits):
    """A folder like /proc/self, and control groups with limits, all below `folder`."""
    proc = folder / "proc"
    proc.mkdir()
    (proc / "mounts").write_text(mounts.format(sys=folder / "sys"))
    (proc / "cgroup").write_text(cgroup)
    for name, text in limits.items():
        path = folder / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return [limit.total_mb for limit in control_group_limits(proc)]


V2 = "cgroup2 {sys} cgroup2 rw,nosuid 0 0\n"
V1 = "cgroup {sys}/cpu cgroup rw,cpu,cpuacct 0 0\ncgroup {sys}/memory cgroup rw,memory 0 0\n"
HYBRID = "cgroup2 {sys}/unified cgroup2 rw 0 0\n"


@pytest.mark.parametrize(
    ("mounts", "cgroup", "limits", "found"),
    [
        # a slice of systemd: the group itself has no limit, the one around it has
        (V2, "0::/user.slice/a.scope\n",
         {"user.slice/a.scope/memory.max": "max", "user.slice/memory.max": 8 * GIB}, [8589]),
        (V2, "0::/a\n", {"a/memory.high": 2 * GIB, "a/memory.max": 3 * GIB}, [3221, 2147]),
        # a container: its own group is where groups are mounted
        (V2, "0::/\n", {"memory.max": 4 * GIB}, [4294]),
        (V2, "0::/../../outside\n", {"memory.max": 4 * GIB}, [4294]),
        (V1, "4:memory:/job/1\n1:cpu,cpuacct:/x\n",
         {"memory/job/1/memory.limit_in_bytes": 2 * GIB,
          "memory/memory.limit_in_bytes": 9223372036854771712}, [2147, 9223372036854]),
        # an older container: the kernel tells a path that cannot be seen from inside
        (V1, "4:memory:/docker/0123\n", {"memory/memory.limit_in_bytes": GIB}, [1073]),
        (V1 + HYBRID, "4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": GIB}, [1073]),
        (V2, "0::/a\n", {}, []),
        ("", "", {}, []),
    ],
)  # fmt: skip
def test_control_groups(tmp_path, mounts, cgroup, limits, found):
    assert groups(tmp_path, mounts, cgroup, limits) == found


def test_no_control_groups(tmp_path):
    assert list(control_group_limits(tmp_path)) == []


def test_a_reserve_is_left():
    """A tenth, and 1 GB where that is more."""
    assert MachineMemory(16_000, "x").for_jobs_mb == 14_400
    assert MachineMemory(4_000, "x").for_jobs_mb == 3_000
    assert MachineMemory(500, "x").for_jobs_mb == 0


def test_the_least_counts(monkeypatch):
    monkeypatch.delenv(lib.VARIABLE, raising=False)
    limits = [MachineMemory(9, "a"), MachineMemory(7, "b"), MachineMemory(8, "c")]
    monkeypatch.setattr(lib, "_limits", lambda: iter(limits))
    assert machine_memory() == MachineMemory(7, "b")


def test_this_machine(monkeypatch):
    monkeypatch.delenv(lib.VARIABLE, raising=False)
    assert 0 < machine_memory().total_mb <= psutil.virtual_memory().total / 1e6


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (
            "AS",
            "4000 MB (5000 MB of ulimit -v without 3000 MB that libraries only map less 1000 MB",
        ),
        ("DATA", "7000 MB (8000 MB of ulimit -d less 1000 MB"),
    ],
)
def test_ulimit(limit, said):
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_{limit}, (8 * 10**9,) * 2);"
        "from passionsr.utils.machine_memory import machine_memory; print(machine_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{said} for everything else)\n"


def test_the_user_says_what_there_is(monkeypatch):
    monkeypatch.setenv(lib.VARIABLE, "16000")
    assert machine_memory() == MachineMemory(16_000, "$PASSIONSR_MEMORY_MB")
    monkeypatch.setenv(lib.VARIABLE, "")
    assert machine_memory().source != "$PASSIONSR_MEMORY_MB"


@pytest.mark.parametrize("given", ["16G", "0", "-5", "1e4", "1.5", " ", "\u0663"])
def test_not_a_number_of_megabytes(monkeypatch, given):
    monkeypatch.setenv(lib.VARIABLE, given)
    with pytest.raises(UserError, match="expected the memory of this machine in MB"):
        machine_memory()
