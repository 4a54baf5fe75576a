"""What a file is that should have been something else, in words."""

from __future__ import annotations

import re
from pathlib import Path

_HEAD = 4096  # bytes that are looked at
_QUOTED = 60  # characters of a text that a message quotes
_SIGNATURES = (
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"%PDF-", "a PDF file"),
    (b"version https://git-lfs", "a Git LFS pointer (`git lfs pull` gets the file itself)"),
)
_TEXTS = (".csv", ".json", ".md", ".tex", ".tsv", ".txt", ".yaml")
_HTML = (b"<!doctype html", b"<html", b"<head", b"<body", b"<script", b"<title", b"<!--")


def kind_of(path: str | Path, binary: bool = True) -> str | None:
    """What a file is, as its first bytes tell; None where they tell nothing.

    Told are the things that arrive in place of an archive, of weights or of an image: nothing at
    all, an HTML page or another text with an error, a Git LFS pointer, an archive of another type.
    What a server calls the file (its Content-Type) and the file's own name are not asked.

    binary: whether the file should be a binary one, so that any text is something else.
    """
    with open(path, "rb") as stream:
        head = stream.read(_HEAD)
    if not head:
        return "empty"
    for signature, words in _SIGNATURES:
        if head.startswith(signature):
            return words
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.lower().startswith(_HTML):
        title = re.search(rb"<title[^>]*>(.*?)</title", text, re.S | re.I)
        return "an HTML page" + (f" ({_quoted(title[1])})" if title else "")
    if text.startswith(b"<?xml"):
        return "an XML document"
    # A control character other than white space: no text.
    if not binary or re.search(rb"[\x00-\x08\x0e-\x1f\x7f-\xff]", head):
        return None
    return f"a text ({_quoted(text)})"


def wrong_content(path: str | Path) -> str:
    """What to say of a file that is there and is not the right one."""
    instead = kind_of(path, binary=Path(path).suffix not in _TEXTS)
    return f"the file is {instead}" if instead else "the file is damaged or of another version"


def _quoted(text: bytes) -> str:
    words = " ".join(text.decode("utf-8", errors="replace").split())
    return repr(words if len(words) <= _QUOTED else f"{words[:_QUOTED]}...")
