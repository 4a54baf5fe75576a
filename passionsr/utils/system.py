"""What a process is and runs on: memory, versions, git commit."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

CODE = Path(__file__).resolve().parents[1]
# Set in git's hooks; they would have git describe another repository than that of the folder.
_OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")


def peak_mib(device: Any = "cpu") -> float:
    """Peak memory of this process in MiB: resident, or what its tensors took on a GPU.

    device: a torch device or its name; of a GPU it is torch.cuda.max_memory_allocated.
    """
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def git_sha(code: Path = CODE) -> str:
    """Commit of the code that runs, with -dirty where files differ from it.

    code: a folder of sources. "unknown" where git does not track it: an installed package, a copy.
    The working directory does not matter; it may be that of another checkout.
    """
    environment = {k: v for k, v in os.environ.items() if k not in _OTHER_REPOSITORY}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=code, env=environment, capture_output=True, text=True,
            check=False,
        ).stdout.strip()  # fmt: skip

    if shutil.which("git") is None or not git("ls-files", "__init__.py"):
        return "unknown"
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or "unknown"


def package_versions() -> dict[str, str]:
    """Name -> version of Python and of the packages that numbers depend on."""
    from importlib.metadata import version

    names = ("torch", "diffusers", "numpy", "numba", "pillow", "safetensors")
    return {"python": platform.python_version(), **{n: version(n) for n in names}}
