"""YAML files checked by pydantic models; every mistake becomes part of one clear line.

A model is the only definition of a file: its fields give the checks, and its JSON schema gives the
words of the error messages, the schema for editors and the tables of the reference page.
"""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import CoreSchema, core_schema

from passionsr.utils.files import UserError

T = TypeVar("T")
Schema = Mapping[str, Any]  # a JSON schema, or a part of one

# Unknown keys are errors, and no value is converted: "1" is no number, 1 is no truth value.
STRICT = ConfigDict(
    extra="forbid",
    strict=True,
    frozen=True,
    use_attribute_docstrings=True,  # the text under a field is its description
)

_GIVEN_LENGTH = 60  # characters of a value that a message quotes
_MISTAKES = 8  # that one message names
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
_TYPE_WORDS = {"string": "text", "boolean": "true or false", "null": "null", "number": "a number"}


class StrictModel(BaseModel):
    """A mapping in a file. Fields are its keys, the docstring under a field describes it."""

    model_config = STRICT


class OneOf:
    """Annotation of a `str`: one of `names`, where they are known only when the module is loaded.

    >>> TypeAdapter(Annotated[str, OneOf(["mean", "sample"])]).validate_python("mean")
    'mean'
    """

    def __init__(self, names: Iterable[str]):
        self.names = list(names)

    def __get_pydantic_core_schema__(
        self, source: type[Any], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.literal_schema(self.names)


# A name that becomes part of file names.
Name = Annotated[
    str,
    Field(
        pattern="^[A-Za-z0-9_-]+$",
        json_schema_extra={"expected": "a name of letters, digits, _ and -"},
    ),
]


def _json_type(value: object) -> str | None:
    names: dict[type, str] = {str: "string", list: "array", dict: "object"}
    return names.get(type(value))


# For a union whose members are tagged with their JSON types ("string", "array", "object"): the
# type of the value decides which member checks it, so that an error is about that member only.
BY_JSON_TYPE = Discriminator(_json_type)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where it would keep the last; dates are text."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own class attribute)
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for index, key in enumerate(keys):
            if key in keys[:index] and key != "<<":
                line = node.start_mark.line + 1
                raise UserError(f"key {key!r} is given twice in the mapping of line {line}")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; UserError for a missing or malformed file or a repeated key."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: file not found") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{path}: not valid YAML ({place}{err.problem})") from None
    except yaml.YAMLError as err:  # of the reader: a character that YAML does not allow
        raise UserError(f"{path}: not valid YAML ({str(err).splitlines()[0]})") from None
    except UserError as err:
        raise UserError(f"{path}: {err}") from None


def read_checked(
    kind: type[T], path: Path, value: Any, renamed: Mapping[str, str] | None = None
) -> T:
    """What a file says, as an instance of a pydantic model or another type.

    kind: the type. value: from `read_yaml(path)`. renamed: old names of top-level keys -> new.
    Raises UserError, one line for all mistakes: file, key, what was given, what was expected.
    """
    adapter = TypeAdapter(kind)
    try:
        # Checked as JSON: strict about types, but a list may become a tuple.
        return adapter.validate_json(json.dumps(value, default=_not_json))
    except UserError as err:  # of _not_json
        raise UserError(f"{path}: {err}") from None
    except ValidationError as err:
        schema = adapter.json_schema()
        lines = [_line(e, schema, renamed or {}) for e in _innermost(err.errors(include_url=False))]
        if len(lines) > _MISTAKES:  # perhaps another kind of file
            lines = [*lines[:_MISTAKES], f"and {len(lines) - _MISTAKES} more mistakes"]
        raise UserError(f"{path}: {'; '.join(lines)}") from None


@contextlib.contextmanager
def located(place: object) -> Iterator[None]:
    """Put the file or the key before the message of a UserError that is raised inside."""
    try:
        yield
    except UserError as err:
        raise UserError(f"{place}: {err}") from None


def closest_first(given: str, known: Iterable[str]) -> list[str]:
    """`known` in its order, but what is spelled most like `given` comes first.

    >>> closest_first("thread", ["name", "model", "threads"])
    ['threads', 'name', 'model']
    """
    names = list(known)
    close = difflib.get_close_matches(given, names)
    return [*close, *(name for name in names if name not in close)]


def resolved(node: Schema, root: Schema) -> Schema:
    """A schema itself where `node` refers to one of the definitions of `root`."""
    while "$ref" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]]
    return node


def alternatives(node: Schema, root: Schema) -> list[Schema]:
    """The members of a union, resolved; the schema itself where it is none."""
    node = resolved(node, root)
    members = node.get("oneOf") or node.get("anyOf") or [node]
    return [resolved(member, root) for member in members]


def expected(node: Schema, root: Schema, given: object = None) -> str:
    """What a schema accepts, in words; names that are like `given` come first.

    >>> expected({"type": "integer", "minimum": 1}, {})
    'an integer of at least 1'
    """
    members = alternatives(node, root)
    if len(members) > 1:
        return " or ".join(expected(member, root, given) for member in members)
    (node,) = members
    if "expected" in node:
        return str(node["expected"])
    if "enum" in node or "const" in node:
        names = [str(name) for name in node.get("enum", [node.get("const")])]
        if isinstance(given, str):
            names = closest_first(given, names)
        return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    if node.get("type") == "integer":
        return "an integer" + (f" of at least {node['minimum']}" if "minimum" in node else "")
    if node.get("type") == "array":
        least = node.get("minItems")
        entries = f" of at least {least} {'entry' if least == 1 else 'entries'}" if least else ""
        return f"a list{entries}, each {expected(node['items'], root)}"
    if node.get("type") == "object":
        keys = ", ".join(node.get("properties", {}))
        return f"a mapping with the keys {keys}" if keys else "a mapping"
    return _TYPE_WORDS.get(node.get("type", ""), "any value")


def entry_schema(node: Schema, step: str | int) -> Schema | None:
    """The schema of a list's entries (an integer step) or of one key; None where there is none."""
    if isinstance(step, int):
        return node.get("items")
    by_name = node.get("properties", {}).get(step)
    by_pattern = next(iter(node.get("patternProperties", {}).values()), None)
    others = node.get("additionalProperties")
    return by_name or by_pattern or (others if isinstance(others, dict) else None)


def _not_json(value: object) -> Any:
    raise UserError(
        f"a value of type {type(value).__name__} given, expected text, a number or a list"
    )


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _GIVEN_LENGTH else f"{text[: _GIVEN_LENGTH - 3]}..."


def _place(location: Sequence[str | int], root: Schema) -> tuple[str, Schema]:
    """(key path such as runs[0].seeds, schema there) of a pydantic error's location."""
    text, node, outer = "", root, root
    for step in location:
        members = alternatives(node, root)
        if step == "[key]":  # the key itself is wrong
            node = outer.get("propertyNames", {})
        elif len(members) > 1 and step in {member.get("type") for member in members}:
            # the member of a union that checked the value
            node = next(member for member in members if member.get("type") == step)
        else:
            node, outer = next(
                ((found, m) for m in members if (found := entry_schema(m, step))), ({}, node)
            )
            text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text or "top level", node


def _innermost(errors: Sequence[Any]) -> Iterator[Any]:
    """Without errors about a whole list of which an entry is wrong: that one is reported, too."""
    for error in errors:
        place = error["loc"]
        inside = (e["loc"] for e in errors if len(e["loc"]) > len(place))
        if all(other[: len(place)] != place for other in inside):
            yield error


def _line(error: Mapping[str, Any], root: Schema, renamed: Mapping[str, str]) -> str:
    """One pydantic error in the words of this project."""
    kind = error["type"]
    *parents, last = error["loc"] or ("",)
    place, node = _place(error["loc"], root)
    if kind in _UNKNOWN_KEY:
        if not parents and last in renamed:
            return f"{place}: this key is now called {renamed[last]}"
        owners = alternatives(_place(parents, root)[1], root)
        known = [key for owner in owners for key in owner.get("properties", {})]
        return f"{place}: unknown key; known: {', '.join(closest_first(str(last), known))}"
    if kind == "missing":
        return f"{place}: missing, expected {expected(node, root)}"
    if kind == "value_error":
        return f"{place}: {error['ctx']['error']}"
    given = error["input"]
    return f"{place}: {_shown(given)} given, expected {expected(node, root, given)}"
