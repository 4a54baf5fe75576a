"""Archives: what is in one is checked before its first file is written, inside its folder.

A file that is no archive, or none that can be unpacked here, is a UserError. A disk that is full or
cannot be written to is not the archive's fault: OSError with one of DISK_ERRORS.
"""

from __future__ import annotations

import errno
import fnmatch
import functools
import lzma
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self

from passionsr.data.image_folders import composed
from passionsr.utils.contents import kind_of
from passionsr.utils.files import UserError
from passionsr.utils.foreign_files import is_foreign

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_CHUNK = 1 << 20
# Photographs hardly compress; what grows more than this is no archive of images.
_MOST_GROWTH, _HARMLESS = 100, 1 << 30  # times the size of the archive; bytes
_BLOCK = 512  # bytes; a tar ends with blocks of zeros
# What zipfile, tarfile and their decompressors raise for a damaged file.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_OTHER_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 93: "Zstandard", 98: "PPMd"}
_PART_NAME = re.compile(r"\.(z\d\d|r\d\d|\d\d\d|part\d+\.rar)$", re.IGNORECASE)
_SEVERAL = "one file of an archive in several, which must be joined first"


@dataclass(frozen=True)
class Member:
    """A regular file in an archive.

    Attributes:
        name: as the archive spells it.
        size: bytes, unpacked.
        open: opens it for reading.
        problem: why it cannot be read; None if it can.
    """

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]
    problem: str | None = None


def unpack(
    archive: Path, folder: Path, members: Sequence[str] = (), shown: Path | None = None
) -> int:
    """Unpack regular files into `folder` and return their number.

    Every member is checked before the first is written. Foreign files (`is_foreign`) stay packed.

    Args:
        archive: the file.
        folder: where to.
        members: fnmatch patterns of what to unpack; empty means all.
        shown: the archive's name in messages; None: `archive`.
    Raises UserError for a file that is no readable zip or tar, for one that holds none of
    `members`, and for an absolute path, `..`, a drive, a link, a device, members of one name (or of
    names that are one on other systems), encryption, an unknown compression, an unpacked size
    beyond reason; OSError with one of DISK_ERRORS.
    """
    shown = shown or archive
    with ExitStack() as stack:
        try:
            found = _bounded(_members(archive, shown, stack), archive, shown)
            chosen = _chosen(found, members, shown)
            _check_room(chosen.values(), folder)
            for path, member in chosen.items():
                _write(member, folder / path, shown)
        except _DAMAGE as err:
            if isinstance(err, UserError) or getattr(err, "errno", None) in DISK_ERRORS:
                raise
            raise _refused(shown, f"{err}; it is damaged or cut off") from None
    return len(chosen)


def _refused(shown: Path, reason: str) -> UserError:
    return UserError(f"{shown}: cannot be unpacked ({reason})")


# -- what is in it ------------------------------------------------------------------------------


def _members(archive: Path, shown: Path, stack: ExitStack) -> Iterator[Member]:
    """The regular files of a zip or tar, told by its bytes, not by its name."""
    with archive.open("rb") as stream:
        is_zip = stream.read(2) == b"PK"
    if is_zip or not _is_tar(archive):
        if zipfile.is_zipfile(archive):
            return _zip_members(archive, shown, stack)
        kind = kind_of(archive) or "no zip or tar archive"
        if is_zip:
            kind = "the beginning of a ZIP archive: cut off, or the first file of several"
        elif _PART_NAME.search(shown.name):
            kind = _SEVERAL
        raise _refused(shown, f"it is {kind}")
    return _tar_members(archive, shown, stack)


def _is_tar(archive: Path) -> bool:
    try:
        return tarfile.is_tarfile(archive)
    except EOFError:  # a compressed file that ends at once
        return False


def _zip_members(archive: Path, shown: Path, stack: ExitStack) -> Iterator[Member]:
    if _is_one_of_several(archive):
        raise _refused(shown, f"it is {_SEVERAL}")
    zipped = stack.enter_context(zipfile.ZipFile(archive))
    for info in zipped.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            _refuse_link(info.filename, shown)
        problem = None
        if info.flag_bits & 1:
            problem = "is encrypted: unpack it with its password"
        elif info.compress_type not in _ZIP_METHODS:
            method = _OTHER_METHODS.get(info.compress_type, f"method {info.compress_type}")
            problem = f"is compressed by {method}, which Python does not read: unpack it"
        if not info.is_dir():
            opener = functools.partial(zipped.open, info)
            yield Member(info.filename, info.file_size, opener, problem)


def _is_one_of_several(archive: Path) -> bool:
    """Whether a zip says that there are parts before it (.z01 and so on)."""
    with archive.open("rb") as stream:
        stream.seek(-min(archive.stat().st_size, (1 << 16) + 22), 2)
        tail = stream.read()
    end = tail.rfind(b"PK\x05\x06")
    disk = int.from_bytes(tail[end + 4 : end + 6], "little")
    return disk not in (0, 0xFFFF)  # the latter: zipfile looks at the larger field itself


def _tar_members(archive: Path, shown: Path, stack: ExitStack) -> Iterator[Member]:
    last = b""

    class Noted(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: Any, encoding: str, errors: str) -> Self:
            nonlocal last
            last = bytes(buf)
            return super().frombuf(buf, encoding, errors)

    tarred = stack.enter_context(tarfile.open(archive, tarinfo=Noted))  # noqa: SIM115
    for info in tarred:
        if not (info.isfile() or info.isdir()):
            _refuse_link(info.name, shown)
        if info.isfile():
            yield Member(info.name, info.size, functools.partial(tarred.extractfile, info))
    # tarfile takes a file that stops between two members, or goes on with nonsense, for whole.
    if last != bytes(_BLOCK):
        raise tarfile.ReadError("its end is missing")


def _refuse_link(name: str, shown: Path) -> None:
    raise UserError(
        f"{shown}: member {name!r} is a link or a device; only files and folders are "
        "allowed, nothing was unpacked"
    )


# -- what may be unpacked -----------------------------------------------------------------------


def _member_path(name: str, shown: Path) -> PurePosixPath:
    """The member's relative path; UserError if it leads out of the folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]:
        raise UserError(f"{shown}: member {name!r} leads out of its folder; nothing was unpacked")
    if not path.parts or any(unicodedata.category(c) in ("Cc", "Cs") for c in name):
        raise UserError(f"{shown}: member {name!r} is no name of a file; nothing was unpacked")
    return path


def _bounded(found: Iterator[Member], archive: Path, shown: Path) -> Iterator[Member]:
    """The members, as long as their sizes are within reason; they are added up as they come."""
    packed, unpacked = archive.stat().st_size, 0
    for member in found:
        unpacked += member.size
        if unpacked > max(_HARMLESS, _MOST_GROWTH * packed):
            raise UserError(
                f"{shown}: {_size(packed)} would become {_size(unpacked)} and more, which no "
                "archive of images does; nothing was unpacked"
            )
        yield member


def _chosen(
    found: Iterator[Member], patterns: Sequence[str], shown: Path
) -> dict[PurePosixPath, Member]:
    """The members to unpack, by path; UserError as `unpack` says."""
    chosen: dict[PurePosixPath, Member] = {}
    folded: dict[str, str] = {}
    seen: dict[PurePosixPath, None] = {}
    for member in found:
        path = _member_path(member.name, shown)
        if path in seen:
            raise UserError(f"{shown}: member {member.name!r} stands twice; nothing was unpacked")
        seen[path] = None
        if any(map(is_foreign, path.parts)):
            continue
        if patterns and not any(fnmatch.fnmatch(str(path), pattern) for pattern in patterns):
            continue
        if member.problem:
            raise _refused(shown, f"member {member.name!r} {member.problem} by other means")
        key = composed(str(path)).casefold()
        if key in folded:
            raise UserError(
                f"{shown}: members {folded[key]!r} and {member.name!r} are one file on systems "
                "that do not tell their names apart; nothing was unpacked"
            )
        folded[key] = member.name
        chosen[path] = member
    if not seen:
        raise _refused(shown, "it holds no files")
    if not chosen:
        wanted = " and no ".join(patterns) or "file of a user"
        raise _refused(shown, f"it holds no {wanted}; its first file is {next(iter(seen))}")
    return chosen


def _check_room(members: Iterable[Member], folder: Path) -> None:
    needed, free = sum(m.size for m in members), shutil.disk_usage(folder.parent).free
    if needed > free:
        reason = f"{_size(needed)} are needed to unpack it, {_size(free)} are free"
        raise OSError(errno.ENOSPC, reason)


def _write(member: Member, target: Path, shown: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source = member.open()
    assert source is not None  # it is a regular file
    try:
        with source, target.open("xb") as stream:
            shutil.copyfileobj(source, stream, _CHUNK)
    except FileExistsError:
        raise UserError(
            f"{shown}: member {member.name!r} is in another archive of this source, too"
        ) from None


def _size(count: int) -> str:
    """Bytes in words: 12.3 GB."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
