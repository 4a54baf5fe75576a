"""Downloads that are resumed and checked; archives that cannot write outside their folder."""

from __future__ import annotations

import fnmatch
import hashlib
import http.client
import logging
import os
import shutil
import stat
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, ClassVar

from pydantic import ConfigDict, Field

from passionsr.utils.checked_yaml import STRICT
from passionsr.utils.files import UserError, read_json, sha256_file, write_json

log = logging.getLogger(__name__)

FETCHED = "fetched.json"
ARCHIVES = ".archives"
CHUNK = 1 << 20

Sha256 = Annotated[
    str, Field(pattern="^[0-9a-f]{64}$", json_schema_extra={"expected": "64 hex digits"})
]
Md5 = Annotated[
    str, Field(pattern="^[0-9a-f]{32}$", json_schema_extra={"expected": "32 hex digits"})
]


@dataclass(frozen=True)
class Archive:
    """One file to download.

    sha256, md5, size are None where nobody has published them; a file without a pinned sha256 is
    trusted at its first download, and its hash recorded in the lock file.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT  # config/datasets.yaml is checked against it

    file: str
    """Name of the file, below data/.archives."""
    urls: Annotated[tuple[str, ...], Field(min_length=1)]
    """Addresses, tried in order."""
    sha256: Sha256 | None = None
    """Expected hash; null: recorded in config/datasets.lock at the first download."""
    md5: Md5 | None = None
    """Published md5, checked too."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Bytes."""


@dataclass(frozen=True)
class Source:
    """Archives that together make one folder data/<name>.

    members: patterns of the files to unpack, all if empty.
    """

    name: str
    archives: tuple[Archive, ...]
    members: tuple[str, ...] = ()


# -- download -----------------------------------------------------------------------------------


def _request(url: str, part: Path, tag: Path) -> urllib.request.Request:
    """A request for the bytes that `part` lacks.

    If-Range makes a server send the whole file if it has changed since.
    """
    headers = {"User-Agent": "passionsr-bench"}
    if part.is_file() and part.stat().st_size and tag.is_file():
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": tag.read_text()}
    quoted = urllib.parse.quote(url, safe=":/?&=%")
    return urllib.request.Request(quoted, headers=headers)


def _receive(url: str, part: Path, timeout: float) -> None:
    """Bring `part` up to the whole file.

    Raises OSError or HTTPException if the connection fails or ends early.
    """
    tag = part.with_name(part.name + ".etag")
    with urllib.request.urlopen(_request(url, part, tag), timeout=timeout) as response:
        resumed = response.status == 206
        start = part.stat().st_size if resumed else 0
        if resumed and not response.headers["Content-Range"].startswith(f"bytes {start}-"):
            raise OSError(f"server sent {response.headers['Content-Range']}, wanted from {start}")
        validator = response.headers["ETag"] or response.headers["Last-Modified"]
        if validator and not validator.startswith("W/"):
            tag.write_text(validator)
        else:
            tag.unlink(missing_ok=True)
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        if resumed:
            log.info("%s: resumed at %.1f MB", part.name, start / 1e6)
        done, shown = start, time.monotonic()
        with part.open("ab" if resumed else "wb") as stream:
            while block := response.read(CHUNK):
                stream.write(block)
                done += len(block)
                if time.monotonic() - shown > 10:
                    shown = time.monotonic()
                    log.info("%s: %.1f of %.1f MB", part.name, done / 1e6, (total or 0) / 1e6)
    if total is not None and done < total:
        raise OSError(f"connection closed after {done} of {total} bytes")
    tag.unlink(missing_ok=True)


def _complete(url: str, part: Path, timeout: float, attempts: int) -> str | None:
    """Bring `part` up to the whole file; returns the reason if that fails, else None.

    Only a broken transfer is tried again.
    """
    for attempt in range(1, attempts + 1):
        try:
            _receive(url, part, timeout)
            return None
        except urllib.error.URLError as err:
            # 416: nothing is left to send, because a killed run had received everything.
            if isinstance(err, urllib.error.HTTPError) and err.code == 416 and part.is_file():
                if err.headers["Content-Range"] == f"bytes */{part.stat().st_size}":
                    return None
                part.unlink()
            problem = str(err.reason)
            break
        except (OSError, http.client.HTTPException) as err:
            problem = str(err)
            log.warning("%s: %s (attempt %d of %d)", url, err, attempt, attempts)
    return problem


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def check_archive(path: Path, archive: Archive, sha256: str | None) -> str:
    """The file's sha256; UserError if size or a hash is not the expected one."""
    found = {"size": path.stat().st_size, "md5": None, "sha256": sha256_file(path)}
    if archive.md5:
        found["md5"] = _md5(path)
    expected = {"size": archive.size, "md5": archive.md5, "sha256": sha256}
    for kind, value in expected.items():
        if value is not None and found[kind] != value:
            raise UserError(
                f"{path}: {kind} is {found[kind]}, expected {value}; the file is damaged or of "
                "another version"
            )
    return str(found["sha256"])


def download(
    archive: Archive, path: Path, sha256: str | None, timeout: float = 30.0, attempts: int = 3
) -> str:
    """Fetch to `path`, resuming a `.part` file that an earlier call left; returns the sha256.

    A file already at `path` (put there by hand) is only checked. A wrong file is deleted.
    Raises UserError naming every address that was tried.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        return check_archive(path, archive, sha256)
    part = path.with_name(path.name + ".part")
    failures = []
    for url in archive.urls:
        problem = _complete(url, part, timeout, attempts)
        if problem is None:
            break
        failures.append(f"{url}: {problem}")
    else:
        raise UserError(
            f"{archive.file} could not be downloaded ({'; '.join(failures)}); what has arrived is "
            f"kept and resumed. Or fetch it by other means and put it at {path}, or name a local "
            "folder of its images as `folder:` of the dataset in the configuration"
        )
    try:
        digest = check_archive(part, archive, sha256)
    except UserError:
        part.unlink()
        raise
    os.replace(part, path)
    return digest


# -- archives -----------------------------------------------------------------------------------


def _member_path(name: str, archive: Path) -> PurePosixPath:
    """The member's relative path; UserError if it leads out of the folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]:
        raise UserError(f"{archive}: member {name!r} leads out of its folder; nothing was unpacked")
    return path


def _refuse_link(name: str, archive: Path) -> None:
    raise UserError(
        f"{archive}: member {name!r} is a link or a device; only files and folders are "
        "allowed, nothing was unpacked"
    )


def _zip_members(archive: Path, stack: ExitStack) -> Iterator[tuple[str, object]]:
    zipped = stack.enter_context(zipfile.ZipFile(archive))
    for info in zipped.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            _refuse_link(info.filename, archive)
        if not info.is_dir():
            yield info.filename, lambda info=info: zipped.open(info)


def _tar_members(archive: Path, stack: ExitStack) -> Iterator[tuple[str, object]]:
    tarred = stack.enter_context(tarfile.open(archive))  # noqa: SIM115
    for info in tarred.getmembers():
        if not (info.isfile() or info.isdir()):
            _refuse_link(info.name, archive)
        if info.isfile():
            yield info.name, lambda info=info: tarred.extractfile(info)


def unpack(archive: Path, folder: Path, members: Sequence[str] = ()) -> int:
    """Unpack regular files into `folder` and return their number.

    Every member is checked before the first is written: UserError for an absolute path, `..`, a
    drive, a link, a device, two members of one name, or a file that is no readable zip or tar.
    members: fnmatch patterns; empty means all.
    """
    with ExitStack() as stack:
        try:
            opened = _zip_members if zipfile.is_zipfile(archive) else _tar_members
            files = {}
            for name, opener in opened(archive, stack):
                path = _member_path(name, archive)
                if path in files:
                    raise UserError(
                        f"{archive}: member {name!r} stands twice; nothing was unpacked"
                    )
                files[path] = opener
            count = 0
            for path, opener in files.items():
                if members and not any(fnmatch.fnmatch(str(path), m) for m in members):
                    continue
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                source: IO[bytes]
                with opener() as source, target.open("xb") as stream:  # type: ignore[operator]
                    shutil.copyfileobj(source, stream, CHUNK)
                count += 1
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as err:
            raise UserError(f"{archive}: cannot be unpacked ({err})") from None
    return count


# -- sources ------------------------------------------------------------------------------------


def fetch_source(source: Source, root: Path, locks: Path) -> Path:
    """Download, check and unpack a source into root/<name>; returns that folder. Done once.

    locks: folder of <name>.json with the hashes recorded at first downloads; commit it. The folder
    appears as a whole or not at all; fetched.json in it says what it was made from.
    """
    target = root / source.name
    if (target / FETCHED).is_file():
        return target
    if target.exists():
        raise UserError(
            f"{target}: exists but was not made by passionsr fetch; move it away, or name it as "
            "the dataset's folder in the configuration"
        )
    lock_file = locks / f"{source.name}.json"
    lock = read_json(lock_file) if lock_file.is_file() else {}
    made = {}
    for archive in source.archives:
        pinned = archive.sha256 or lock.get(archive.file, {}).get("sha256")
        path = root / ARCHIVES / archive.file
        digest = download(archive, path, pinned)
        made[archive.file] = {"sha256": digest, "size": path.stat().st_size}
        if pinned is None:
            log.warning(
                "%s: no published sha256; %s is trusted now and recorded in %s: commit that file",
                archive.file,
                digest[:12],
                lock_file,
            )
            lock[archive.file] = made[archive.file]
            write_json(lock_file, lock)
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as temporary:
        folder = Path(temporary) / source.name
        folder.mkdir()
        counts = {
            a.file: unpack(root / ARCHIVES / a.file, folder, source.members)
            for a in source.archives
        }
        write_json(folder / FETCHED, {"archives": made, "files": counts})
        os.replace(folder, target)
    return target
