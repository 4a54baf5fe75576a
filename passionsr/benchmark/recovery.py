"""What a start of the workflow looks at first, because an earlier one may have been killed.

A lock that nobody holds any more, products that were cut off, temporary files, products from the
future. Only what the workflow declares is looked at: whatever else lies in the results folder is
somebody's, and is not touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from passionsr.utils.files import TEMPORARY, UserError, write_json, writer_of

HOLDER = Path(".snakemake") / "passionsr-holder.json"
LOCKS = Path(".snakemake") / "locks"
PNG_END = b"IEND\xaeB`\x82"
LOG_LINES = 12  # of a failed job's log that are shown
CHECKED = {".png", ".safetensors", ".csv", ".json", ".md", ".tex"}


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


# -- the lock -----------------------------------------------------------------------------------


def note_holder() -> None:
    """Remember who holds Snakemake's lock on this folder; called when its jobs start."""
    write_json(HOLDER, {"host": socket.gethostname(), "pid": os.getpid()})


def stale_lock(argv: Sequence[str]) -> str | None:
    """What to do about the lock of a Snakemake that is gone; None where there is nothing to do.

    argv: of the Snakemake that found the lock; its options are part of the command that unlocks.
    """
    if "--unlock" in argv or not LOCKS.is_dir() or not any(LOCKS.glob("[0-9]*.lock")):
        return None
    try:
        holder = json.loads(HOLDER.read_text())
        host, pid = holder["host"], int(holder["pid"])
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not written by us
        host, pid = "an unknown host", 0
    if host == socket.gethostname() and pid and _alive(pid):
        return None  # Snakemake's own message is right: another one is running
    command = shlex.join(["snakemake", *argv[1:], "--unlock"])
    jobs = ""
    if shutil.which("squeue"):
        jobs = (
            "cancel what it left on the cluster: squeue -h -o '%i %Z' | "
            f'D={shlex.quote(str(Path.cwd()))} awk \'{{i = $1; sub(/^[^ ]+ /, ""); '
            'if ($0 == ENVIRON["D"]) print i}\' | xargs -r scancel\n'
        )
    return (
        f"stale lock: the snakemake that held it (process {pid} on {host}) is gone.\n{jobs}"
        f"remove the lock: {command}\nthen give your command again"
    )


# -- files --------------------------------------------------------------------------------------


def is_whole(path: Path) -> bool:
    """False for a file that was cut off, as a machine that loses power does to it.

    safetensors: what the library checks when it opens a file, its length included. PNG: the end
    marker; PIL's own check would read gigabytes at the paper's scale, and accepts a file whose last
    four bytes are missing. Text (CSV, JSON, Markdown, TeX): the last line has its end.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="np"):
                return True
        except (SafetensorError, OSError):
            return False
    end = PNG_END if path.suffix == ".png" else b"\n"
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - len(end)))
        return stream.read() == end


def check_whole(products: Iterable[Path]) -> None:
    """UserError with the command that removes them, if products were cut off."""
    cut = [str(p) for p in products if p.suffix in CHECKED and p.is_file() and not is_whole(p)]
    if cut:
        raise UserError(
            f"{len(cut)} file{'s were' if len(cut) > 1 else ' was'} cut off (power loss, full "
            f"disk); remove, then give your command again: rm -f {shlex.join(cut)}"
        )


def remove_leftovers(results: Path) -> None:
    """Delete temporary files of `atomic_path` whose process is gone: kill -9 leaves them."""
    for path in results.rglob(f"{TEMPORARY}*"):
        owner = writer_of(path.name)
        if owner is not None and not _alive(owner):
            with contextlib.suppress(OSError):
                path.unlink()


def settle_clock(products: Iterable[Path]) -> None:
    """Set the time stamp of products from the future (the clock was ahead then) to the present.

    Snakemake fails a job whose output is older than its input. Contents stay, and checksums decide
    what runs again.
    """
    now = time.time()
    for path in products:
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_mtime > now + 1:
                os.utime(path, (now, now))


def explain_failure(results: Path) -> None:
    """After a failed run: say so if the results cannot be written.

    A full disk keeps this out of the jobs' own logs.
    """
    try:
        with tempfile.TemporaryFile(dir=results) as stream:
            stream.write(bytes(1 << 20))
            stream.flush()
    except OSError as err:
        print(
            f"error: {results} cannot be written ({err.strerror}): give it room and write "
            "permission, then give your command again",
            file=sys.stderr,
        )


def show_logs(logs: Sequence[Path]) -> None:
    """After a failed run: the end of each failed job's log.

    Snakemake's own option for this (show-failed-logs) prints nothing under `quiet: rules`.
    """
    for path in logs:
        with contextlib.suppress(OSError):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            print(f"\nend of {path}:", *lines[-LOG_LINES:], sep="\n  ", file=sys.stderr)


def look(products: Sequence[Path], argv: Sequence[str]) -> None:
    """Before anything is planned: say what a killed start left for the user to decide about.

    products: files that the workflow makes. argv: of this Snakemake.
    """
    hint = stale_lock(argv)
    if hint is not None:
        print(hint, file=sys.stderr)
    elif "--unlock" not in argv:
        settle_clock(products)
        check_whole(products)
