"""YAML files and tables checked by pydantic models; every mistake becomes part of one clear line.

A model is the only definition of a file: its fields give the checks, and its JSON schema gives the
words of the error messages, the schema for editors and the tables of the reference page.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import CoreSchema, core_schema

from passionsr.utils.files import UserError, read_rows
from passionsr.utils.yaml_files import Document, key_path

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
_TYPE_WORDS = {"string": "text", "boolean": "true or false", "null": "null"}


class StrictModel(BaseModel):
    """A mapping in a file. Fields are its keys, the docstring under a field describes it."""

    model_config = STRICT


class OneOf:
    """Annotation of a `str`: one of `names`, where they are known only when the module is loaded.

    >>> from typing import Annotated
    >>> TypeAdapter(Annotated[str, OneOf(["mean", "sample"])]).validate_python("mean")
    'mean'
    """

    def __init__(self, names: Iterable[str]):
        self.names = list(names)

    def __get_pydantic_core_schema__(
        self, source: type[Any], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.literal_schema(self.names)


def _json_type(value: object) -> str | None:
    names: dict[type, str] = {str: "string", list: "array", dict: "object"}
    return names.get(type(value))


# For a union whose members are tagged with their JSON types ("string", "array", "object"): the
# type of the value decides which member checks it, so that an error is about that member only.
BY_JSON_TYPE = Discriminator(_json_type)


def read_checked(kind: type[T], document: Document, renamed: Mapping[str, str] | None = None) -> T:
    """What a file says, as an instance of a pydantic model or another type.

    kind: the type. document: of `read_yaml`. renamed: old names of top-level keys -> new.
    Raises UserError, one line for all mistakes: file, line, key, what was given, what was expected.
    """
    adapter = TypeAdapter(kind)
    try:
        # Checked as JSON: strict about types, but a list may become a tuple.
        return adapter.validate_json(json.dumps(document.value, default=_not_json))
    except UserError as err:  # of _not_json
        raise UserError(f"{document.path}: {err}") from None
    except ValidationError as err:
        schema = adapter.json_schema()
        lines = []
        for error in _innermost(err.errors(include_url=False)):
            line = document.line(_keys_in(document.value, error["loc"]))
            lines.append((line, _line(error, schema, renamed or {})))
        more = [f"and {len(lines) - _MISTAKES} more mistakes"] if len(lines) > _MISTAKES else []
        (first, text), *others = lines[:_MISTAKES]  # more: perhaps another kind of file
        place = f"{document.path} line {first}" if first else str(document.path)
        rest = [f"line {line}: {text}" if line else text for line, text in others]
        raise UserError("; ".join([f"{place}: {text}", *rest, *more])) from None


def read_table(
    kind: type[T], path: str | Path, absent: str = "file not found"
) -> list[tuple[int, T]]:
    """(line, row) of every row of a tab-separated file.

    kind: a dataclass; its fields are the columns and what may stand in them.
    absent: what to say of a file that is not there.
    Raises UserError naming file, line and column; see `read_rows`, too.
    """
    adapter = TypeAdapter(kind)
    columns = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    rows = []
    for line, row in read_rows(path, columns, "\t", absent=absent):
        try:
            rows.append((line, adapter.validate_python(row)))
        except ValidationError as err:
            schema = adapter.json_schema()
            texts = [_line(e, schema, {}) for e in err.errors(include_url=False)]
            raise UserError(f"{path} line {line}: {'; '.join(texts)}") from None
    return rows


def mistake(hint: Any, value: object) -> str | None:
    """What is wrong with a value of a type, in words; None if nothing is.

    Nothing is converted: 1 is no truth value, but an integer may stand for a real number, if it is
    finite.

    >>> from typing import Annotated
    >>> from pydantic import Field
    >>> mistake(Annotated[int, Field(ge=1)], 0)
    '0 given, expected an integer of at least 1'
    """
    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    adapter = TypeAdapter(hint, config=config)
    try:
        adapter.validate_python(value)
    except ValidationError:
        schema = adapter.json_schema()
        return f"{_shown(value)} given, expected {expected(schema, schema, value)}"
    return None


def closest_first(given: str, known: Iterable[str]) -> list[str]:
    """`known` in its order, but what is spelled most like `given` comes first.

    >>> closest_first("thread", ["name", "model", "threads"])
    ['threads', 'name', 'model']
    """
    names = list(known)
    alike = difflib.get_close_matches(given.casefold(), [name.casefold() for name in names])
    close = [name for form in dict.fromkeys(alike) for name in names if name.casefold() == form]
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
    if node.get("type") in ("integer", "number"):
        return _number_words(node)
    if node.get("type") == "array":
        least = node.get("minItems")
        entries = f" of at least {least} {'entry' if least == 1 else 'entries'}" if least else ""
        return f"a list{entries}, each {expected(node['items'], root)}"
    if node.get("type") == "object":
        keys = ", ".join(node.get("properties", {}))
        return f"a mapping with the keys {keys}" if keys else "a mapping"
    return _TYPE_WORDS.get(node.get("type", ""), "any value")


def _number_words(node: Schema) -> str:
    """What a schema of numbers accepts."""
    kind = "an integer" if node["type"] == "integer" else "a number"
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f"{kind} from {low} to {high}"
    words = {"minimum": "of at least", "maximum": "of at most", "exclusiveMinimum": "above",
             "exclusiveMaximum": "below"}  # fmt: skip
    limits = [f"{text} {node[key]}" for key, text in words.items() if key in node]
    return " ".join([kind, " and ".join(limits)]).rstrip()


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
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _GIVEN_LENGTH else f"{text[: _GIVEN_LENGTH - 3]}..."


def _keys_in(value: object, location: Sequence[str | int]) -> list[str | int]:
    """The keys of a pydantic location, less the steps that name the member of a union."""
    keys: list[str | int] = []
    for step in location:
        inside: Any = range(len(value)) if isinstance(value, list) else value
        if isinstance(inside, dict | range) and step in inside:
            container: Any = value
            value = container[step]
            keys.append(step)
    return keys


def _place(location: Sequence[str | int], root: Schema) -> tuple[str, Schema]:
    """(key path such as runs[0].seeds, schema there) of a pydantic error's location."""
    keys: list[str | int] = []
    node, outer = root, root
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
            keys.append(step)
    return key_path(keys), node


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
    if kind == "json_invalid":  # such as half of a surrogate pair in a text
        return f"top level: {error['msg']}"
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
