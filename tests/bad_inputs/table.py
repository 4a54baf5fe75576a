"""The form of a row of the table of bad inputs, and how one is tried.

A row says what a user brings, what the program answers, with which exit status, and which files
are there afterwards. Rows stand in cases_*.py, one file per area; `make bad-inputs` tries all of
them and prints the table.
"""

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

# What the issue of each kind is about; the order is by harm.
KINDS = {
    1: "code of another checkout",
    2: "non-finite values",
    3: "trust before proof",
    4: "tables of several datasets",
    5: "ignored configuration",
    6: "pixels changed silently",
    7: "one image, metric or seed",
    8: "small feature maps",
    9: "names used raw",
    10: "found only by a later job",
    11: "outside errors",
    12: "other people's files",
    13: "the hub",
    14: "small ones",
    15: "memory of the machine",
    16: "start-up",
}


@dataclasses.dataclass(frozen=True)
class BadInput:
    """One row.

    Attributes:
        kind: number of KINDS.
        given: what the user brings, in a few words; the row's name.
        prepare: makes the input in an empty folder, which is also the working directory, and
            returns the command: arguments of `passionsr` (called in this process), or a whole
            command line beginning with a program's name after "$" (a process of its own),
            or a function to call (an error that it raises is printed as the command line would).
        answer: the exact text of the `error:` line without its prefix, or of the last line
            printed when status is 0. "{folder}" stands for the folder; a compiled pattern is
            searched for instead where a part is another program's (version numbers, times).
        status: exit status.
        made: names, relative to the folder, of the files that are there afterwards and were not
            before. Files that were there must keep their bytes in any case.
        changed: names of the files that may change.
    """

    kind: int
    given: str
    prepare: Callable[[Path], Sequence[str] | Callable[[], object]]
    answer: str | re.Pattern[str]
    status: int = 2
    made: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a row: exit status, standard output and error, files before and after."""

    status: int
    out: str
    err: str
    before: dict[str, str]
    after: dict[str, str]


def files(folder: Path) -> dict[str, str]:
    """Name -> sha256 of every file below a folder; of a link, what it says."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _call(action, capsys) -> tuple[int, str, str]:
    from passionsr.cli import guarded

    try:
        status = guarded(action)
    except SystemExit as err:
        status = err.code if isinstance(err.code, int) else 1
    except Exception:
        traceback.print_exc()
        status = 1
    out, err = capsys.readouterr()
    return status, out, err


def attempt(row: BadInput, folder: Path, capsys) -> Outcome:
    """Prepare the input in `folder` (the working directory) and run the command."""
    command = row.prepare(folder)
    before = files(folder)
    capsys.readouterr()
    if callable(command):
        status, out, err = _call(command, capsys)
    elif command[0] == "$":
        done = subprocess.run(
            command[1:], cwd=folder, capture_output=True, text=True, env=_environment(),
            stdin=subprocess.DEVNULL, timeout=600,
        )  # fmt: skip
        status, out, err = done.returncode, done.stdout, done.stderr
    else:
        from passionsr.cli import main

        status, out, err = _call(lambda: main(list(command)), capsys)
    return Outcome(status, out, err, before, files(folder))


def _environment() -> dict[str, str]:
    root = Path(__file__).resolve().parent.parent.parent
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(root)}


def answer_of(row: BadInput, outcome: Outcome) -> str:
    """The line that answers: the one `error:` line, or the last line printed on success."""
    printed = (outcome.out + outcome.err).splitlines()
    errors = [line for line in printed if line.startswith("error: ")]
    if row.status:
        assert len(errors) == 1, f"{len(errors)} error lines in: {outcome.out}{outcome.err}"
        return errors[0].removeprefix("error: ")
    assert not errors, errors
    return printed[-1] if printed else ""


def check(row: BadInput, folder: Path, outcome: Outcome) -> str:
    """Assert that the outcome is what the row says; return the answer."""
    assert "Traceback" not in outcome.out + outcome.err, outcome.err
    assert outcome.status == row.status, f"{outcome.status}: {outcome.out}{outcome.err}"
    answer = answer_of(row, outcome).replace(str(folder), "{folder}")
    if isinstance(row.answer, str):
        assert answer == row.answer
    else:
        assert row.answer.search(answer), answer
    lost = {name for name in outcome.before if name not in outcome.after}
    assert not lost, f"files are gone: {lost}"
    changed = {n for n, digest in outcome.before.items() if outcome.after[n] != digest}
    assert changed <= set(row.changed), f"files were changed: {changed}"
    made = set(outcome.after) - set(outcome.before)
    assert made == set(row.made), f"files made: {sorted(made)}"
    return answer
