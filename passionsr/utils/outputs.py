"""Whether an output can be written: asked before the work that makes it, not after."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from passionsr.utils.files import UserError

# Of the place where something is read or written, not of the program.
OUTSIDE = frozenset(
    {
        errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ELOOP,
        errno.ENAMETOOLONG, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS, errno.ESTALE,
    }
)  # fmt: skip


def outside_error(err: OSError) -> str | None:
    """One line for an error that is not the program's; None for any other."""
    if err.errno not in OUTSIDE:
        return None
    place = f"{err.filename}: " if err.filename else ""
    return f"{place}{err.strerror}: make room, or give a place that can be read and written"


@contextmanager
def _reasons(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise UserError(
            f"{path}: cannot be written ({err.strerror}); give another place or make this one "
            "writable"
        ) from None


def _check_place(path: Path, folder: Path) -> None:
    """UserError unless `folder` is there and writable, or can be made in one that is."""
    there = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
    if not there.is_dir():
        raise UserError(f"{path}: cannot be written, {there} is no folder; give another place")
    with tempfile.TemporaryFile(dir=there):
        pass


def check_output_file(path: Path, inputs: Iterable[Path] = ()) -> None:
    """UserError unless a file can be written at `path`; nothing is written or made.

    A file that is there will be replaced, but not a folder, a device, or one of `inputs`.
    """
    with _reasons(path):
        if path.is_dir():
            raise UserError(f"{path}: is a folder, expected the name of a file to write")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no regular file; give the name of a file to write")
        for source in inputs:
            if path.exists() and path.samefile(source):
                raise UserError(
                    f"{path}: would replace {source}, which is read; give another output"
                )
        _check_place(path, path.parent)


def check_output_folder(path: Path) -> None:
    """UserError unless files can be written into the folder `path`; nothing is written or made."""
    with _reasons(path):
        if os.path.lexists(path) and not path.is_dir():
            raise UserError(f"{path}: is a file, expected the name of a folder to write")
        _check_place(path, path)


def check_suffix(path: Path, suffix: str, written: str) -> None:
    """UserError unless a name says what is written there, as `written` puts it."""
    if path.suffix.lower() != suffix:
        raise UserError(f"{path}: {written}; give a name that ends in {suffix}")
