"""Which results a path means, however it is written: with links, from another folder.

Results may be a link to another disk, and tables links to a cache: a path counts as it is written
first, and with its links followed where that says nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from passionsr.utils.files import UserError


def written_and_real(path: Path) -> tuple[Path, Path]:
    """The absolute path as it is written, and with its links followed."""
    return Path(os.path.abspath(path)), path.resolve()


def results_name(folder: Path) -> str:
    """The <name> of a folder results/<name>."""
    names = [path.name for path in written_and_real(folder) if path.parent.name == "results"]
    return names[0] if names else folder.resolve().name


def locate_table(table: Path, config: Path | None) -> tuple[Path, Path]:
    """(checkout, table in it) of results/<name>/tables/<table>.csv, wherever one stands.

    Without `config`, the checkout must have config/<name>.yaml; UserError where it is not found.
    """
    written, real = written_and_real(table)
    for path in (written, real):
        *above, results, name, tables, _ = path.parts if len(path.parts) > 4 else ("",) * 5
        if (results, tables) == ("results", "tables"):
            for root in (Path(*above), Path.cwd()):
                if config or (root / "config" / f"{name}.yaml").is_file():
                    return root, path
    name = written.parent.parent.name
    if config or (Path("config") / f"{name}.yaml").is_file():
        return Path.cwd(), written
    raise UserError(
        f"{table}: there is no config/{name}.yaml beside its results; give the table as "
        "results/<name>/tables/<table>.csv of a checkout, or --config"
    )
