"""Atomic writes, hashes and the one error type that is the user's to fix."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from passionsr.utils.contents import wrong_content

SHA256 = re.compile("[0-9a-f]{64}")
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


def read_text(path: str | Path, absent: str = "file not found") -> str:
    """A text file in UTF-8, with or without a byte order mark; UserError, one line, otherwise.

    absent: what to say of a file that is not there.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: {absent}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a file") from None
    except UnicodeDecodeError as err:
        raise UserError(
            f"{path}: not a text file in UTF-8 (byte {err.start + 1} does not belong there): "
            "save it as UTF-8"
        ) from None
    except OSError as err:
        raise UserError(f"{path}: cannot be read ({err.strerror})") from None


def read_json(path: str | Path) -> Any:
    """Read JSON; UserError names the file when it is missing or malformed."""

    def refuse(word: str) -> None:
        raise UserError(f"{path}: not valid JSON ({word} is no number)")

    try:
        return json.loads(read_text(path), parse_constant=refuse)
    except UserError:
        raise
    except ValueError as err:  # not JSON, or a number of thousands of digits
        raise UserError(f"{path}: not valid JSON ({err})") from None
    except RecursionError:
        raise UserError(f"{path}: not valid JSON (nested too deeply)") from None


def read_hashes(path: str | Path) -> dict[str, str]:
    """File, relative to the manifest, -> sha256, as `write_json` wrote it; UserError otherwise."""
    value = read_json(path)
    entries = value.items() if value and isinstance(value, dict) else [(str(value)[:40], None)]
    for name, digest in entries:
        inside = not name.startswith("/") and ".." not in name.split("/")
        if not (inside and isinstance(digest, str) and SHA256.fullmatch(digest)):
            raise UserError(
                f"{path}: not a list of files with their sha256, as passionsr writes it "
                f"({name!r} is none): the file of another program, or damaged"
            )
    return dict(entries)


def read_rows(
    path: str | Path,
    columns: Sequence[str],
    delimiter: str = ",",
    more: bool = False,
    absent: str = "file not found",
    advice: str = "",
) -> list[tuple[int, dict[str, str]]]:
    """(line, column -> text) of every row of a CSV file, or of a tab-separated one.

    Lines that begin with # are comments.

    Args:
        path: the file, UTF-8.
        columns: its columns, in this order; with `more`, columns that must be there.
        delimiter: between two values, a comma or a tab.
        more: whether there may be other columns, too.
        absent: what to say of a file that is not there.
        advice: what to say where the columns are others.
    Raises UserError naming file and line: not to be read, other columns, a row of another length.
    """
    stream = io.StringIO(read_text(path, absent))
    line = 0

    def written() -> Iterator[str]:
        nonlocal line
        for line, text in enumerate(stream, 1):  # noqa: B007  (the line that is being read)
            if not text.startswith("#"):
                yield text

    rows: list[tuple[int, dict[str, str]]] = []
    head: list[str] | None = None
    try:
        for cells in csv.reader(written(), delimiter=delimiter, strict=True):
            if head is None:
                head = cells
            elif cells and len(cells) != len(head):
                raise UserError(
                    f"{path} line {line}: {len(cells)} values, expected {len(head)}: "
                    f"{', '.join(head)}"
                )
            elif cells:
                rows.append((line, dict(zip(head, cells, strict=True))))
    except csv.Error as err:
        raise UserError(f"{path} line {line}: not a table ({err})") from None
    known = head or []
    fits = set(columns) <= set(known) if more else known == list(columns)
    if not fits or len(set(known)) < len(known):
        kind = "tab-separated" if delimiter == "\t" else "comma-separated"
        raise UserError(f"{path}: expected {kind} columns {', '.join(columns)}{advice}")
    return rows


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
