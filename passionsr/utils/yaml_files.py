"""YAML files as their writers mean them, and the line of every key.

PyYAML reads YAML 1.1, where `1e-3` is text, `010` is 8, `1:30` is 90, and of a key given twice the
last silently wins. Here a number with an exponent is a number (as in YAML 1.2), a date is text, and
what the two versions read as different values is refused, like a key that is no text, a key given
twice and a number that is not finite.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from passionsr.utils.files import UserError, read_text

Keys = tuple[str | int, ...]
"""Where a value stands: keys of mappings and places in lists, from the top level inwards."""

_TAG = "tag:yaml.org,2002:"
_EXPONENT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"
)  # what YAML 1.1 takes for text: no point before the exponent, or no sign in it
_VALUES = 100_000  # of one file, aliases written out: a few lines of them can stand for billions


@contextlib.contextmanager
def located(place: object) -> Iterator[None]:
    """Put the file or the key before the message of a UserError that is raised inside."""
    try:
        yield
    except UserError as err:
        raise UserError(f"{place}: {err}") from None


def key_path(keys: Sequence[str | int]) -> str:
    """As messages name a place.

    >>> key_path(("runs", 0, "seeds"))
    'runs[0].seeds'
    """
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".") or "top level"


@dataclass(frozen=True)
class Document:
    """A file that has been read. lines: of every key and every entry of a list, from 1."""

    path: Path
    value: Any
    lines: Mapping[Keys, int] = field(default_factory=dict)

    def line(self, keys: Sequence[str | int]) -> int | None:
        """The line of a value; of one that is missing, that of what should hold it."""
        place = tuple(keys)
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place)

    def place(self, keys: Sequence[str | int]) -> str:
        """File and line, as a message begins: "config/x.yaml line 12"."""
        line = self.line(keys)
        return f"{self.path} line {line}" if line else str(self.path)

    @contextlib.contextmanager
    def at(self, *keys: str | int) -> Iterator[None]:
        """Put file, line and key before the message of a UserError that is raised inside."""
        with located(f"{self.place(keys)}: {key_path(keys)}"):
            yield


class _NodeError(UserError):
    """What is wrong with one node. line: where it begins, from 1."""

    def __init__(self, node: yaml.Node, message: str):
        super().__init__(message)
        self.line = node.start_mark.line + 1


class _Loader(yaml.SafeLoader):
    """SafeLoader with the rules of this module."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own class attribute)
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Checks the keys as they are written, before merges (`<<`) add others."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == f"{_TAG}merge":
                continue
            if key.tag != f"{_TAG}str":
                shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise _NodeError(
                    key,
                    f"key {shown} is read as {key.tag.removeprefix(_TAG)}, expected text: "
                    "put it in quotes",
                )
            if key.value in first:
                raise _NodeError(
                    key, f"key {key.value!r} is given twice, first in line {first[key.value]}"
                )
            first[key.value] = key.start_mark.line + 1
        return node

    def number(self, node: yaml.ScalarNode) -> int | float:
        """A number that has one meaning and is finite."""
        digits = str(node.value).lstrip("+-")
        octal = re.match(r"0[0-9_]+$", digits)
        if octal or ":" in digits:
            raise _NodeError(
                node,
                f"{node.value} is {'an octal number' if octal else 'a number of base 60'} in "
                "YAML 1.1 and not in YAML 1.2: write the number in decimal digits, or text in "
                "quotes",
            )
        is_int = node.tag == f"{_TAG}int"
        value = self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)
        if not is_int and not math.isfinite(value):
            raise _NodeError(node, f"{node.value} given, expected a finite number")
        return value


_Loader.add_implicit_resolver(f"{_TAG}float", _EXPONENT, list("+-.0123456789"))
_Loader.add_constructor(f"{_TAG}int", _Loader.number)
_Loader.add_constructor(f"{_TAG}float", _Loader.number)


def _lines(node: yaml.Node | None) -> dict[Keys, int]:
    """The line of everything below a node. UserError for a value inside itself, or too many."""
    found: dict[Keys, int] = {}
    waiting: list[tuple[Keys, yaml.Node | None, tuple[int, ...]]] = [((), node, ())]
    while waiting:
        keys, here, outer = waiting.pop()
        if here is None:
            continue
        if id(here) in outer:
            raise _NodeError(here, "an alias stands inside of what it stands for")
        inner: list[tuple[str | int, int, yaml.Node]] = []
        if isinstance(here, yaml.MappingNode):
            inner = [(k.value, k.start_mark.line, value) for k, value in here.value]
        elif isinstance(here, yaml.SequenceNode):
            inner = [(i, v.start_mark.line, v) for i, v in enumerate(here.value)]
        for key, line, value in inner:
            found[(*keys, key)] = line + 1
            waiting.append(((*keys, key), value, (*outer, id(here))))
        if len(found) > _VALUES:
            raise _NodeError(here, f"more than {_VALUES} values, aliases written out")
    return found


def read_yaml(path: str | Path) -> Document:
    """A YAML file. UserError, with the line: missing, not UTF-8, malformed, a repeated key ..."""
    path = Path(path)
    text = read_text(path)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
        return Document(path, value, _lines(node))
    except _NodeError as err:
        raise UserError(f"{path} line {err.line}: {err}") from None
    except yaml.reader.ReaderError as err:  # a character that YAML does not allow
        line = text.count("\n", 0, err.position) + 1
        raise UserError(f"{path} line {line}: not valid YAML ({_first_line(err)})") from None
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark
        place = f"{path} line {mark.line + 1}" if mark else str(path)
        column = f"column {mark.column + 1}: " if mark else ""
        whole = isinstance(err, yaml.composer.ComposerError) and err.context
        outer = f"{err.context} " if whole else ""
        raise UserError(f"{place}: not valid YAML ({column}{outer}{err.problem})") from None
    except RecursionError:
        raise UserError(f"{path}: not a configuration (nested too deeply)") from None
    except (ValueError, KeyError, AttributeError, TypeError) as err:  # of a tag such as !!int
        raise UserError(f"{path}: not valid YAML ({_first_line(err)})") from None


def _first_line(err: Exception) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0]
