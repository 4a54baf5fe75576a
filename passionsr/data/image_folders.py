"""Which files of a folder are its images: the one list that every reader of a folder takes."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path, PurePath

from passionsr.utils.files import UserError
from passionsr.utils.foreign_files import is_foreign

# What a pattern without a suffix of its own, such as `LR/*`, means.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".gif")


def _any_case(suffix: str) -> str:
    return "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in suffix)


def images_in(folder: Path, pattern: str = "*.png") -> list[Path]:
    """The image files of a folder that a pattern names, sorted; empty where there are none.

    Left out are folders and special files of such names, and every file that `is_foreign`, or that
    lies in a foreign folder, unless the pattern spells that name out. The suffix counts in either
    case (`a.PNG`).

    Args:
        folder: where to look.
        pattern: shell-style, relative to the folder.
    Raises UserError for a pattern that is not relative, and for a link to a file that is not there.
    """
    suffix = PurePath(pattern).suffix
    own_suffix = suffix[1:].isalnum()
    sought = pattern.removesuffix(suffix) + _any_case(suffix) if own_suffix else pattern
    try:
        found = sorted(set(folder.glob(sought)))
    except (ValueError, NotImplementedError) as err:
        raise UserError(f"pattern {pattern!r}: {err}; give one relative to {folder}") from None
    spelled_out = PurePath(pattern).parts
    images = []
    for path in found:
        parts = path.relative_to(folder).parts
        if any(is_foreign(part) and part not in spelled_out for part in parts):
            continue
        if not own_suffix and path.suffix.lower() not in SUFFIXES:
            continue
        if path.is_symlink() and not path.exists():
            raise UserError(
                f"{path}: is a link to {os.readlink(path)}, which is not there; get that file"
            )
        if path.is_file():
            images.append(path)
    return images


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC); UserError for one that is not UTF-8.

    Two names that look the same are the same then, whichever system has written them.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"{name!r}: the name of this file is not UTF-8; rename it") from None
    return unicodedata.normalize("NFC", name)


def images_by_name(folder: Path, pattern: str = "*.png") -> dict[str, Path]:
    """Stem (`composed`) -> file of `images_in`, sorted by file name.

    Raises UserError for two images of one stem, such as a.png and a.PNG.
    """
    found: dict[str, Path] = {}
    for path in images_in(folder, pattern):
        name = composed(path.stem)
        if name in found:
            raise UserError(f"{path} and {found[name]} have the same name; rename one of them")
        found[name] = path
    return found
