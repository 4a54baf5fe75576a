"""What the tests of the tutorials share: a page's blocks, put where it says in a copy."""

import re
import subprocess
import sys

from copies import ROOT, copy_repository, environment

PARTS = ("passionsr", "baselines", "config", "workflow", "tests", "pyproject.toml")
BLOCK = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.M | re.S)
PLACE = re.compile(r"(?P<file>[^,]+)(, at the end of (?P<name>\w+))?")


def blocks(page):
    """(title, text) of every titled block of a page of docs/extend, in order."""
    found = BLOCK.findall((ROOT / "docs" / "extend" / page).read_text())
    assert found, f"{page} has no titled block"
    return found


def added(text, name, more):
    """`text` with `more` as the last entry of a tuple NAME = (...) or a YAML list name: [...]."""
    lines = text.splitlines(keepends=True)
    start = next(i for i, line in enumerate(lines) if re.match(rf"{name}\b.*[(\[]", line))
    if lines[start].rstrip().endswith("]"):
        lines[start] = f"{lines[start].rstrip().removesuffix(']')}, {more.strip()}]\n"
    else:
        end = next(i for i in range(start, len(lines)) if lines[i].startswith(")"))
        lines.insert(end, more)
    return "".join(lines)


def follow(page, folder):
    """Do what a page says in a copy of the repository; file -> "written" or "added to".

    A title names a file, or the place in it. A file that is not there is written; to one that is,
    the block is added at the end.
    """
    touched = {}
    for title, text in blocks(page):
        place = PLACE.fullmatch(title)
        path = folder / place["file"]
        touched[place["file"]] = "added to" if path.is_file() else "written"
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text() if path.is_file() else ""
        path.write_text(added(before, place["name"], text) if place["name"] else before + text)
    return touched


def fresh_copy(folder):
    """A copy of what the tutorials touch, and of the tests that judge it."""
    return copy_repository(folder, PARTS)


def run(folder, *command):
    """(status, output) of a Python command in the copy, with its own sources."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder, env=environment(folder), capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr
