"""Files that lie in a folder without being its content: of systems, editors and programs."""

from __future__ import annotations

# In lower case: macOS, Synology, Windows, ext4.
_SYSTEM = frozenset(
    {
        "__macosx",
        "@eadir",
        "#recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
    }
)


def is_foreign(name: str) -> bool:
    """Whether a file or folder of that name is left out wherever a folder's content is listed.

    These are hidden ones (`.DS_Store`, macOS's `._a.png`, our own temporary files), what systems
    put beside files (`Thumbs.db`, `__MACOSX`), and what editors do (`a.png~`, `#a.png#`,
    `~$a.png`). They are nobody's images, and they are not ours to touch.

    >>> [is_foreign(name) for name in ("._a.png", "a.png~", "#a.png#", "Thumbs.db", "a.png")]
    [True, True, True, True, False]
    """
    return (
        name.startswith((".", "~$"))
        or name.endswith("~")
        or (name.startswith("#") and name.endswith("#"))
        or name.lower() in _SYSTEM
    )
