"""Types checked strictly, and what is said about a value that does not fit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from passionsr.utils.checked_yaml import (
    StrictModel,
    closest_first,
    mistake,
    read_checked,
    read_table,
)
from passionsr.utils.files import UserError
from passionsr.utils.yaml_files import Document, read_yaml


class Inner(StrictModel):
    """An inner mapping."""

    text: str
    """Text."""
    items: tuple[int, ...] = ()
    """Integers."""


class Outer(StrictModel):
    """A file."""

    inner: dict[str, Inner]
    """By name."""
    flag: bool = False
    """True or false."""


def document(value):
    """A file of which no lines are known."""
    return Document(Path("f.yaml"), value)


def test_values_arrive_as_they_are():
    made = read_checked(Outer, document({"inner": {"a": {"text": "t", "items": [1, 2]}}}))
    assert made == Outer(inner={"a": Inner(text="t", items=(1, 2))}, flag=False)
    values = {"a": 1.0, "b": 1, "c": 1e-5, "d": None, "e": [True, "x"]}
    read = read_checked(dict[str, Any], document(values))
    assert repr(read) == repr(values)  # 1 and 1.0 are different options


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"inner": {"a": {"text": 1}}}, "inner.a.text: 1 given, expected text"),
        ({"inner": {"a": {"text": "t", "items": [1, "2", 3.0]}}},
         'inner.a.items[1]: "2" given, expected an integer; '
         "inner.a.items[2]: 3.0 given, expected an integer"),
        ({"inner": {"a": {"text": "t", "item": []}}},
         "inner.a.item: unknown key; known: items, text"),
        ({"inner": []}, "inner: [] given, expected a mapping"),
        ({"inner": {}, "flag": 0}, "flag: 0 given, expected true or false"),
        ({"old": 1}, "inner: missing, expected a mapping; old: this key is now called flag"),
        (["x" * 99],
         f'top level: ["{"x" * 55}... given, expected a mapping with the keys inner, flag'),
        ({"inner": {}, **{f"k{i}": 0 for i in range(10)}},
         "; ".join(f"k{i}: unknown key; known: inner, flag" for i in range(8))
         + "; and 2 more mistakes"),
        ({"inner": {"a": {"text": {1, 2}}}},
         "a value of type set given, expected text, a number or a list"),
    ],
)  # fmt: skip
def test_mistakes(value, message):
    with pytest.raises(UserError) as caught:
        read_checked(Outer, document(value), renamed={"old": "flag"})
    assert str(caught.value) == f"f.yaml: {message}"


def test_what_is_spelled_alike_comes_first():
    assert closest_first("mini", ["smoke", "mini-full", "mini"]) == ["mini", "mini-full", "smoke"]
    assert closest_first("x", ["b", "a"]) == ["b", "a"]


def test_every_mistake_has_its_line(tmp_path):
    """Of a missing key the line of what should hold it, of a missing key of the file none."""
    path = tmp_path / "f.yaml"
    path.write_text(
        "# a comment\ninner:\n  a: {text: 1}\n  b:\n    items:\n    - 1\n    - x\nflg: 0\n"
    )
    with pytest.raises(UserError) as caught:
        read_checked(Outer, read_yaml(path))
    assert str(caught.value) == (
        f"{path} line 3: inner.a.text: 1 given, expected text; line 4: inner.b.text: missing, "
        'expected text; line 7: inner.b.items[1]: "x" given, expected an integer; '
        "line 8: flg: unknown key; known: flag, inner"
    )
    path.write_text("flag: true\n")
    with pytest.raises(UserError) as caught:
        read_checked(Outer, read_yaml(path))
    assert str(caught.value) == f"{path}: inner: missing, expected a mapping"


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (Annotated[int, Field(ge=0, le=9)], 10, "10 given, expected an integer from 0 to 9"),
        (Annotated[int, Field(ge=1)] | None, True,
         "true given, expected an integer of at least 1 or null"),
        (Annotated[float, Field(ge=0)], -1e-3, "-0.001 given, expected a number of at least 0"),
        (Annotated[float, Field(gt=0, lt=1)], 1, "1 given, expected a number above 0 and below 1"),
        (float, float("nan"), "NaN given, expected a number"),
        (float, float("inf"), "Infinity given, expected a number"),
        (float, "1e-3", '"1e-3" given, expected a number'),
        (bool | Literal["x"], 1, "1 given, expected true or false or x"),
        (Literal["adam", "sgd"], "SGD", '"SGD" given, expected one of sgd, adam'),
    ],
)  # fmt: skip
def test_a_value_of_a_type(hint, value, message):
    assert mistake(hint, value) == message


@pytest.mark.parametrize(
    ("hint", "value"), [(float, 1), (bool | Literal["x"], "x"), (int | None, None)]
)
def test_a_value_that_fits(hint, value):
    assert mistake(hint, value) is None


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    name: str
    count: Annotated[int, Field(ge=1)]


def test_a_table_is_read_by_its_columns(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_bytes("\ufeff# a comment\r\nname\tcount\r\nä\t3\r\n\r\n# more\r\nb\t4\r\n".encode())
    assert read_table(Row, path) == [(3, Row("ä", 3)), (6, Row("b", 4))]
    path.write_text("name\tcount\nä\t0\n")
    with pytest.raises(UserError) as caught:
        read_table(Row, path)
    assert str(caught.value) == (
        f'{path} line 2: count: "0" given, expected an integer of at least 1'
    )
