"""The files of config/ that also come with the package, so that it works outside a checkout."""

from __future__ import annotations

from pathlib import Path

# In a checkout its files are symbolic links to config/; in an installed package they are copies.
PACKAGED = Path(__file__).resolve().parents[1] / "defaults"


def default_file(name: str) -> Path:
    """The file to read where the user names none: ./config/<name>, else the package's own.

    name: methods.yaml, budgets.yaml or datasets.yaml.
    """
    here = Path("config") / name
    return here if here.is_file() else PACKAGED / name
