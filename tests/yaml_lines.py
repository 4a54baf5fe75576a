"""The line numbers of messages about YAML files."""

import re

LINE = re.compile(r"(?<!;) line (\d+)(?=: )|(?:(?<=; )|^)line (\d+): ")


def without_lines(message, path):
    """A message without its line numbers, each of which must be that of its key."""
    lines = path.read_text().splitlines()
    for part in message.split("; "):
        number = LINE.search(part)
        if number is None:
            continue
        place = part[number.end() :].removeprefix(": ").partition(": ")[0]
        # Of a missing key, and of an entry of a list, the line of what holds it may be the one.
        keys = [key for key in re.split(r"[.\[\]]", place) if key and not key.isdigit()]
        line = lines[int(number[1] or number[2]) - 1].strip()
        assert any(key in line for key in keys) or line.startswith("- "), (part, line)
    return LINE.sub("", message)
