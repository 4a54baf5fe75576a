"""What a process is and runs on: memory, versions, git commit."""

from __future__ import annotations

import platform
import resource
import subprocess


def peak_mib() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def git_sha() -> str:
    """Commit of the working directory, with -dirty where files differ; "unknown" outside git."""
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return result.stdout.strip() or "unknown"


def package_versions() -> dict[str, str]:
    """Name -> version of Python and of the packages that numbers depend on."""
    from importlib.metadata import version

    names = ("torch", "diffusers", "numpy", "numba", "pillow", "safetensors")
    return {"python": platform.python_version(), **{n: version(n) for n in names}}
