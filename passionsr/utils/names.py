"""What the names that users give may hold, so that they can be used as they are.

A name of a configuration becomes part of file names, of command lines, of Snakemake's patterns and
of tables. Names of runs, methods and datasets need no quotes anywhere (`Name`); text is one line
(`Line`), which the writers of tables escape; a path is quoted in commands (`in_shell`) and refused
where Snakemake could not name it (`check_path`).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field

from passionsr.utils.files import UserError

T = TypeVar("T")


def distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    """For an AfterValidator of a list: UserError for an entry that stands there twice."""
    for index, value in enumerate(values):
        if value in values[:index]:
            raise UserError(f"{value} is given twice: give it once")
    return values


_RESERVED = re.compile("(con|prn|aux|nul|com[0-9]|lpt[0-9])$", re.I)


def _check_name(name: str) -> str:
    if _RESERVED.match(name):
        raise UserError(f"{name} is no file name on Windows: give another name")
    return name


# A name that becomes part of file names, options and patterns: it needs no quotes anywhere.
Name = Annotated[
    str,
    Field(
        pattern="^[A-Za-z0-9_][A-Za-z0-9_-]*$",
        max_length=64,
        json_schema_extra={
            "expected": "a name of at most 64 letters, digits, _ and -, not beginning with -"
        },
    ),
    AfterValidator(_check_name),
]
# No control characters, such as line ends or tabs, and something to see.
_LINE = r"[^\u0000-\u001f\u007f-\u009f\u2028\u2029]"
Line = Annotated[
    str,
    Field(
        pattern=rf"^{_LINE}*[^\s\u0000-\u001f\u007f-\u009f\u2028\u2029]{_LINE}*$",
        json_schema_extra={"expected": "text in one line"},
    ),
]

Sha256 = Annotated[
    str, Field(pattern="^[0-9a-f]{64}$", json_schema_extra={"expected": "64 hex digits"})
]
# Name of an image of a list; the workflow makes files of that name.
ImageName = Annotated[
    str,
    Field(
        pattern=r"^[^\s./\\{}#-][^/\\{}\u0000-\u001f\u007f]*$",
        max_length=100,
        json_schema_extra={
            "expected": "a name of at most 100 characters without /, \\, { and }, "
            "not beginning with ., - or #"
        },
    ),
]
# A file without folders, and where it can be downloaded.
FileName = Annotated[
    str,
    Field(
        pattern=r"^[^\s./\\\u0000-\u001f-][^/\\\u0000-\u001f\u007f]*$",
        json_schema_extra={"expected": "the name of a file, without a folder"},
    ),
]
Url = Annotated[
    str,
    Field(
        pattern="^(https?|file)://[!-~]+$",
        json_schema_extra={"expected": "an address such as https://host/file, without spaces"},
    ),
]


def check_distinct_names(names: Sequence[str], what: str) -> None:
    """UserError for two names that are one file name where case does not count.

    what: what has these names, such as "datasets".
    """
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(
                f"two {what} are called {other} and {name}, which is one file name on Windows and "
                "macOS: give one another name"
            )


def check_path(path: str | Path) -> None:
    """UserError for a path that the workflow cannot name.

    Snakemake takes {name} in a path for a wildcard, however it is written; lists of files are lines
    of UTF-8 text.
    """
    text = str(path)
    problem = ""
    if re.search("[{}]", text):
        problem = "braces, which Snakemake takes for a wildcard"
    elif re.search(r"[\x00-\x1f\x7f]", text):
        problem = "a line end, a tab or another control character"
    elif re.search(r"[\ud800-\udfff]", text):
        problem = "bytes that are not UTF-8"
    if problem:
        raise UserError(f"the path {text!r} holds {problem}: rename it")


def in_shell(text: str) -> str:
    """One word of a shell command of a Snakemake rule: quoted, its braces doubled.

    >>> in_shell("config/my grid {a}.yaml")
    "'config/my grid {{a}}.yaml'"
    """
    return shlex.quote(text).replace("{", "{{").replace("}", "}}")
