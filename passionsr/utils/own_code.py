"""Whose code this process runs: that of one checkout, and never another one's by accident.

An environment holds one installed passionsr, but a user has clones, worktrees and DVC's temporary
copies of the repository, all used with the same environment. What runs in one of them must be its
own code: otherwise results are recorded as a commit's that did not make them.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from passionsr.utils.files import UserError

PACKAGE = Path(__file__).resolve().parents[1]  # the folder passionsr/ of the code that runs


def _place(module: str) -> Path | None:
    """The file of a module as this process would import it, links followed; None without one."""
    spec = importlib.util.find_spec(module)
    return Path(spec.origin).resolve() if spec is not None and spec.origin else None


def check_own_code(checkout: Path) -> None:
    """UserError unless this process imports passionsr and its baselines from `checkout`.

    The workflow and its scripts ask this for the checkout in which they stand.
    """
    for module in ("passionsr", "passionsr.baselines"):
        expected = checkout.joinpath(*module.split("."), "__init__.py")
        found = _place(module)
        if found is None or found != expected.resolve():
            raise UserError(
                f"{checkout}: {module} would be imported from {found or 'nowhere'}, expected "
                f"{expected}: a job must run the code beside its own Snakefile; give the "
                "checkout its own passionsr/ and baselines/ (with passionsr/baselines as a link)"
            )


def checkout_of(folder: Path) -> Path | None:
    """The checkout of this project that holds `folder`; None outside of one."""
    for place in (folder, *folder.parents):
        # of os.path: a folder that may not be read is none
        if all(os.path.isfile(place / n) for n in ("Snakefile", "passionsr/__init__.py")):
            return place
    return None


def _texts(package: Path) -> dict[str, bytes]:
    """Name -> bytes of every Python file of a package; passionsr/baselines may be a link."""
    files = [*package.rglob("*.py"), *(package / "baselines").rglob("*.py")]
    return {path.relative_to(package).as_posix(): path.read_bytes() for path in files}


def check_folder(folder: Path) -> None:
    """UserError if `folder` is in a checkout whose code differs from what runs.

    The command line asks this for the working directory: what it reads and writes there would pass
    for that checkout's. A copy with the same code is as good as this one.
    """
    here = checkout_of(folder)
    if here is None or (here / "passionsr").samefile(PACKAGE):
        return
    if _texts(here / "passionsr") != _texts(PACKAGE):
        raise UserError(
            f"this passionsr is the code in {PACKAGE.parent}, but {here} is a checkout with other "
            f"code: run `python -m passionsr.cli` instead of `passionsr` in {here}, or install it "
            "(`pip install -e .` in it)"
        )


def python_path() -> str:
    """A PYTHONPATH with which child processes import the code that runs here."""
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    code = str(PACKAGE.parent)
    return os.pathsep.join([code, *(path for path in others if path not in ("", code))])
