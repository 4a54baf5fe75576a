"""Downloads that are resumed, and trusted only after they have proved what they are.

What arrives is on trial, as `<file>.part`, until its hash is a known one, or, where nobody has
published a hash, until it has been unpacked and holds what is expected of it. Only then it gets its
name, and its hash is recorded. What fails is removed, if it was downloaded here.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

from passionsr.data.archives import DISK_ERRORS, unpack
from passionsr.utils.checked_yaml import STRICT
from passionsr.utils.contents import kind_of, wrong_content
from passionsr.utils.files import UserError, read_json, sha256_file, write_json
from passionsr.utils.names import FileName, Sha256, Url
from passionsr.utils.network import AGENT, at_endpoint, hub_problem, is_on_hub, open_url

log = logging.getLogger(__name__)

FETCHED = "fetched.json"
ARCHIVES = ".archives"
CHUNK = 1 << 20

Md5 = Annotated[
    str, Field(pattern="^[0-9a-f]{32}$", json_schema_extra={"expected": "32 hex digits"})
]


@dataclass(frozen=True)
class Archive:
    """One file to download.

    sha256, md5, size are None where nobody has published them; a file without a pinned sha256 is
    trusted once it has been unpacked and holds what is expected, and its hash recorded in the lock
    file.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT  # config/datasets.yaml is checked against it

    file: FileName
    """Name of the file, below data/.archives."""
    urls: Annotated[tuple[Url, ...], Field(min_length=1)]
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


@dataclass(frozen=True)
class Arrived:
    """A file with the published size and hashes.

    Attributes:
        file: where it lies now.
        path: where it lies once it is trusted.
        sha256: of its bytes.
        new: True if nothing but this file says what its hash should be.
    """

    file: Path
    path: Path
    sha256: str
    new: bool

    @property
    def on_trial(self) -> bool:
        """Whether it was downloaded here and is not trusted yet; False for a user's own file."""
        return self.file != self.path

    def trusted(self) -> Arrived:
        """Give it its name."""
        if self.on_trial:
            os.replace(self.file, self.path)
            _tag(self.file).unlink(missing_ok=True)
        return replace(self, file=self.path)


# -- download -----------------------------------------------------------------------------------


class _AnotherFileError(Exception):
    """The server offers a file that cannot be the one asked for."""


def _tag(part: Path) -> Path:
    """Where the server's name for the version of a partly received file is kept."""
    return part.with_name(part.name + ".etag")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag(part).unlink(missing_ok=True)


def _request(url: str, part: Path) -> urllib.request.Request:
    """A request for the bytes that `part` lacks.

    If-Range makes a server send the whole file if it has changed since.
    """
    headers, tag = dict(AGENT), _tag(part)
    if part.is_file() and part.stat().st_size and tag.is_file():
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": tag.read_text()}
    quoted = urllib.parse.quote(at_endpoint(url), safe=":/?&=%")
    return urllib.request.Request(quoted, headers=headers)


def _receive(url: str, part: Path, timeout: float, size: int | None) -> None:
    """Bring `part` up to the whole file; size: bytes that it must have, where that is known.

    Raises OSError, HTTPException or ValueError if the connection fails, ends early or answers
    nonsense.
    """
    with open_url(_request(url, part), timeout) as response:
        resumed = response.status == 206
        start = part.stat().st_size if resumed else 0
        given = response.headers["Content-Range"]
        if resumed and not str(given).startswith(f"bytes {start}-"):
            raise OSError(f"server sent {given}, wanted from {start}")
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        if size is not None and total is not None and total != size:
            raise _AnotherFileError(f"size is {total}, expected {size}")
        validator = response.headers["ETag"] or response.headers["Last-Modified"]
        if validator and not validator.startswith("W/"):
            _tag(part).write_text(validator)
        else:
            _tag(part).unlink(missing_ok=True)
        if resumed:
            log.info("%s: resumed at %.1f MB", part.name, start / 1e6)
        done = _save(response, part, start, total)
    if total is not None and done < total:
        raise OSError(f"connection closed after {done} of {total} bytes")


def _save(response: Any, part: Path, start: int, total: int | None) -> int:
    """Write what arrives to `part` from byte `start` on; returns the bytes that it has then."""
    done, shown = start, time.monotonic()
    with part.open("ab" if start else "wb") as stream:
        while block := response.read(CHUNK):
            stream.write(block)
            done += len(block)
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                log.info("%s: %.1f of %.1f MB", part.name, done / 1e6, (total or 0) / 1e6)
    return done


def _complete(url: str, part: Path, size: int | None, timeout: float, attempts: int) -> str | None:
    """Bring `part` up to the whole file; returns the reason if that fails, else None.

    Only a broken transfer is tried again. OSError with one of DISK_ERRORS: `part` cannot be
    written.
    """
    problem: str | None = hub_problem() if is_on_hub(url) else None
    if problem:
        return problem
    for attempt in range(1, attempts + 1):
        try:
            _receive(url, part, timeout, size)
            return None
        except _AnotherFileError as err:
            return str(err)
        except urllib.error.URLError as err:
            problem = str(err.reason)
            if not isinstance(err, urllib.error.HTTPError) or err.code != 416:
                break
            # 416: nothing is left to send, because a killed run had received everything.
            if part.is_file():
                if err.headers["Content-Range"] == f"bytes */{part.stat().st_size}":
                    return None
                _discard(part)
        except (OSError, http.client.HTTPException, ValueError) as err:
            if getattr(err, "errno", None) in DISK_ERRORS:
                raise
            if isinstance(err, ValueError):  # of an address or a header: begin anew
                _tag(part).unlink(missing_ok=True)
            problem = str(err)
            log.warning("%s: %s (attempt %d of %d)", url, err, attempt, attempts)
    return problem


def _examined(path: Path, archive: Archive, sha256: str | None) -> tuple[str, str | None]:
    """(the file's sha256, what differs from the expected size and hashes, or None)."""
    found: dict[str, Any] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
    if archive.md5:
        with path.open("rb") as stream:
            found["md5"] = hashlib.file_digest(stream, "md5").hexdigest()
    expected = {"size": archive.size, "md5": archive.md5, "sha256": sha256}
    for kind, value in expected.items():
        if value is not None and found[kind] != value:
            problem = f"{kind} is {found[kind]}, expected {value}; {wrong_content(path)}"
            return found["sha256"], problem
    return found["sha256"], None


def _arrive(
    archive: Archive, path: Path, sha256: str | None, timeout: float = 30.0, attempts: int = 3
) -> Arrived:
    """The file at `path`, or one that is fetched to `<path>.part`, with the expected hashes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        digest, problem = _examined(path, archive, sha256)
        if problem:
            raise UserError(f"{path}: {problem}; put the right file there")
        return Arrived(path, path, digest, sha256 is None)
    part = path.with_name(path.name + ".part")
    failures = []
    for url in archive.urls:
        problem = _complete(url, part, archive.size, timeout, attempts)
        if problem is None:
            digest, problem = _examined(part, archive, sha256)
            if problem is None and sha256 is None and (instead := kind_of(part)):
                problem = f"the file is {instead}, no archive"
            if problem is None:
                return Arrived(part, path, digest, sha256 is None)
            _discard(part)
        failures.append(f"{url}: {problem}")
    kept = "; what has arrived is kept and resumed" if part.is_file() else ""
    raise UserError(
        f"{archive.file} could not be downloaded ({'; '.join(failures)}){kept}. Fetch it by other "
        f"means and put it at {path}, or name a local folder of its images as `folder:` of the "
        "dataset in the configuration"
    )


def download(
    archive: Archive, path: Path, sha256: str | None, timeout: float = 30.0, attempts: int = 3
) -> str:
    """Fetch to `path`, resuming a `.part` file that an earlier call left; returns the sha256.

    A file already at `path` (put there by hand) is only checked. A wrong file that was downloaded
    here is deleted. Raises UserError naming every address that was tried.
    """
    return _arrive(archive, path, sha256, timeout, attempts).trusted().sha256


# -- sources ------------------------------------------------------------------------------------


def fetch_source(
    source: Source, root: Path, locks: Path, check: Callable[[Path], None] | None = None
) -> Path:
    """Download, check and unpack a source into root/<name>; returns that folder. Done once.

    The folder appears as a whole or not at all; fetched.json in it says what it was made from.

    Args:
        source: what to fetch.
        root: the folder of all sources.
        locks: folder of <name>.json with the hashes recorded at first downloads; commit it.
        check: called with the unpacked folder before a new hash is recorded; it raises UserError
            unless the folder holds what is expected.
    Raises UserError; the next call goes on from there.
    """
    target = root / source.name
    if (target / FETCHED).is_file():
        return target
    if target.exists():
        raise UserError(
            f"{target}: exists but was not made by passionsr fetch; move it away, or name it as "
            "the dataset's folder in the configuration"
        )
    try:
        _fetch(source, root, locks, check)
    except OSError as err:
        raise UserError(
            f"{source.name} cannot be written to {root} ({err.strerror or err}): give it room and "
            "write permission, then fetch again; what has arrived is kept"
        ) from None
    return target


def _fetch(source: Source, root: Path, locks: Path, check: Callable[[Path], None] | None) -> None:
    lock_file = locks / f"{source.name}.json"
    lock = _read_lock(lock_file)
    arrived = []
    for archive in source.archives:
        recorded = lock.get(archive.file, {}).get("sha256")
        try:
            one = _arrive(archive, root / ARCHIVES / archive.file, archive.sha256 or recorded)
        except UserError as err:
            if archive.sha256 or not recorded or recorded not in str(err):
                raise
            raise UserError(
                f"{err}. The expected hash was recorded in {lock_file} at the first download: if "
                f"the publisher has changed the file since, take {archive.file} out of there"
            ) from None
        arrived.append(one if one.new else one.trusted())
    with tempfile.TemporaryDirectory(dir=root, prefix=".unpack-") as temporary:
        folder = Path(temporary) / source.name
        folder.mkdir()
        counts = {}
        for archive, one in zip(source.archives, arrived, strict=True):
            with _trial([one]):
                counts[archive.file] = unpack(one.file, folder, source.members, one.path)
        new = [one for one in arrived if one.new]
        if check and new:
            with _trial(new):
                check(folder)
        made = {}
        for archive, one in zip(source.archives, arrived, strict=True):
            one.trusted()
            made[archive.file] = {"sha256": one.sha256, "size": one.path.stat().st_size}
            if one.new:
                lock[archive.file] = made[archive.file]
                log.warning(
                    "%s: no published sha256; %s is trusted now and recorded in %s: commit that "
                    "file",
                    archive.file,
                    one.sha256[:12],
                    lock_file,
                )
        if new:
            write_json(lock_file, lock)
        write_json(folder / FETCHED, {"archives": made, "files": counts})
        os.replace(folder, root / source.name)


@contextmanager
def _trial(arrived: Sequence[Arrived]) -> Iterator[None]:
    """Where the block raises UserError, what is on trial is removed; a user's own file stays."""
    try:
        yield
    except UserError as err:
        for one in arrived:
            if one.on_trial:
                _discard(one.file)
        own = [str(one.path) for one in arrived if not one.on_trial]
        then = f"put the right file at {' and '.join(own)}" if own else "it was removed again"
        raise UserError(
            f"{err}; {then}. Fetch again, or name a local folder of its images as `folder:` of "
            "the dataset in the configuration"
        ) from None


def _read_lock(path: Path) -> dict[str, dict[str, Any]]:
    """Archive -> recorded hash and size; empty where there is no lock file."""
    if not path.is_file():
        return {}
    lock = read_json(path)
    entries = list(lock.values()) if isinstance(lock, dict) else [None]
    for entry in entries:
        hashed = isinstance(entry, dict) and re.fullmatch("[0-9a-f]{64}", str(entry.get("sha256")))
        if not hashed:
            raise UserError(
                f"{path}: not the hashes that passionsr fetch records; restore it from git"
            )
    return dict(lock)
