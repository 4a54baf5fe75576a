"""Atomic writes, hashes and the one error type that is the user's to fix."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from passionsr.utils.contents import wrong_content

TEMPORARY = ".tmp-"  # begins the name of a file that is being written, then comes its process


class UserError(ValueError):
    """Bad input: the message says what was given, what was expected and what to do.

    Entry points print it as one line and exit with status 2, without a traceback.
    """


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` on success, delete it on failure.

    The temporary name keeps the suffix, because image and table writers choose a format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{TEMPORARY}{os.getpid()}-"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
    os.close(handle)
    os.chmod(name, 0o644)
    try:
        yield Path(name)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def writer_of(name: str) -> int | None:
    """The process that writes a temporary file of `atomic_path`; None for any other name."""
    match = re.fullmatch(rf"{re.escape(TEMPORARY)}(\d+)-[a-z0-9_]{{8}}(\.[^.]+)?", name)
    return int(match[1]) if match else None


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically: sorted keys, so equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON; UserError names the file when it is missing or malformed."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: file not found") from None
    except json.JSONDecodeError as err:
        raise UserError(f"{path}: not valid JSON ({err})") from None


def sha256_file(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_sha256(path: str | Path, expected: str) -> None:
    """Raise UserError unless the file has the expected hex sha256."""
    if not Path(path).is_file():
        raise UserError(f"{path}: file not found")
    actual = sha256_file(path)
    if actual != expected:
        raise UserError(
            f"{path}: sha256 is {actual}, expected {expected}; {wrong_content(path)}: put the "
            "right file there"
        )


def write_csv(path: Path, rows: Sequence[dict[str, Any]], columns: Iterable[str]) -> None:
    """Write rows atomically; floats in full precision."""
    with atomic_path(path) as tmp, tmp.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
