"""YAML read strictly, and types checked strictly."""

from pathlib import Path
from typing import Any

import pytest

from passionsr.utils.checked_yaml import StrictModel, closest_first, read_checked, read_yaml
from passionsr.utils.files import UserError


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "file not found"),
        ("a: 1\na: 2", "key 'a' is given twice in the mapping of line 1"),
        ("b:\n  c: {a: 1, a: 2}", "key 'a' is given twice in the mapping of line 2"),
        ("a: [", "not valid YAML (line 1, column 5: expected the node content, but found "
         "'<stream end>')"),
        ("a: 1\n b: 2", "not valid YAML (line 2, column 3: mapping values are not allowed here)"),
        ("a: \x00", "not valid YAML (unacceptable character #x0000: special characters are not "
         "allowed)"),
        (b"a: \xff", "not a text file in UTF-8"),
    ],
)  # fmt: skip
def test_unreadable_files_are_one_line(tmp_path, text, message):
    path = tmp_path / "f.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        read_yaml(path)
    assert str(caught.value) == f"{path}: {message}"


def test_dates_are_text_and_merged_keys_are_not_repeated(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("a: &a {x: 1, y: 2024-01-01}\nb: {<<: *a, x: 2}\n")
    assert read_yaml(path) == {
        "a": {"x": 1, "y": "2024-01-01"},
        "b": {"x": 2, "y": "2024-01-01"},
    }


def test_values_arrive_as_they_are():
    made = read_checked(Outer, Path("f"), {"inner": {"a": {"text": "t", "items": [1, 2]}}})
    assert made == Outer(inner={"a": Inner(text="t", items=(1, 2))}, flag=False)
    values = {"a": 1.0, "b": 1, "c": 1e-5, "d": None, "e": [True, "x"]}
    read = read_checked(dict[str, Any], Path("f"), values)
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
        read_checked(Outer, Path("f.yaml"), value, renamed={"old": "flag"})
    assert str(caught.value) == f"f.yaml: {message}"


def test_what_is_spelled_alike_comes_first():
    assert closest_first("mini", ["smoke", "mini-full", "mini"]) == ["mini", "mini-full", "smoke"]
    assert closest_first("x", ["b", "a"]) == ["b", "a"]
