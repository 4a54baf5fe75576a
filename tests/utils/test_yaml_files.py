"""YAML read as it is meant, and what is said about a file that cannot be."""

import pytest

from passionsr.utils.files import UserError
from passionsr.utils.yaml_files import Document, key_path, read_yaml


def read(tmp_path, text):
    path = tmp_path / "f.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (None, "", "file not found"),
        ("a: 1\na: 2", " line 2", "key 'a' is given twice, first in line 1"),
        ("b:\n  c: {a: 1,\n   a: 2}", " line 3", "key 'a' is given twice, first in line 2"),
        ("a: [", " line 1",
         "not valid YAML (column 5: expected the node content, but found '<stream end>')"),
        ("a: 1\n b: 2", " line 2",
         "not valid YAML (column 3: mapping values are not allowed here)"),
        ("a:\n\tb: 1", " line 2",
         "not valid YAML (column 1: found character '\\t' that cannot start any token)"),
        ("a: 1\n---\nb: 2", " line 2",
         "not valid YAML (column 1: expected a single document in the stream but found another "
         "document)"),
        ("a: *b", " line 1", "not valid YAML (column 4: found undefined alias 'b')"),
        ("a: 1\nb: \x00", " line 2", "not valid YAML (unacceptable character #x0000: special "
         "characters are not allowed)"),
        (b"a: \xff", "",
         "not a text file in UTF-8 (byte 4 does not belong there): save it as UTF-8"),
        ("a: 1".encode("utf-16"), "",
         "not a text file in UTF-8 (byte 1 does not belong there): save it as UTF-8"),
        ("a: &x [*x]", " line 1", "an alias stands inside of what it stands for"),
        ("a: " + "[" * 3000, "", "not a configuration (nested too deeply)"),
        ("a: !!int x", "", "not valid YAML (invalid literal for int() with base 10: 'x')"),
        # keys that YAML 1.1 reads as something else
        ("no: 1", " line 1", "key no is read as bool, expected text: put it in quotes"),
        ("1: 1", " line 1", "key 1 is read as int, expected text: put it in quotes"),
        ("a:\n  ~: 1", " line 2", "key ~ is read as null, expected text: put it in quotes"),
        ("[a]: 1", " line 1",
         "key a list or mapping is read as seq, expected text: put it in quotes"),
        # numbers with two meanings, and none
        ("a: 1\nb: 010", " line 2", "010 is an octal number in YAML 1.1 and not in YAML 1.2: "
         "write the number in decimal digits, or text in quotes"),
        ("b: [1, 1:30]", " line 1", "1:30 is a number of base 60 in YAML 1.1 and not in YAML 1.2: "
         "write the number in decimal digits, or text in quotes"),
        ("b: .nan", " line 1", ".nan given, expected a finite number"),
        ("b: -.inf", " line 1", "-.inf given, expected a finite number"),
        ("b: 1e999", " line 1", "1e999 given, expected a finite number"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(tmp_path, text, place, message):
    with pytest.raises(UserError) as caught:
        read_yaml(tmp_path / "f.yaml") if text is None else read(tmp_path, text)
    assert str(caught.value) == f"{tmp_path / 'f.yaml'}{place}: {message}"


def test_an_alias_bomb_is_refused(tmp_path):
    """Nine lines that stand for 9^9 values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(UserError, match="more than 100000 values, aliases written out"):
        read(tmp_path, "\n".join(lines))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E5", 1e5), ("-2e+3", -2000.0), ("1.5e3", 1500.0), (".5e1", 5.0),
        ("1_000", 1000), ("0", 0), ("-7", -7), ("0x10", 16), ("1.0e-5", 1e-5), ("007.5", 7.5),
        ("'1e-3'", "1e-3"), ('"010"', "010"), ("1e", "1e"), ("e5", "e5"), ("W6A6", "W6A6"),
        ("2024-01-01", "2024-01-01"), ("yes", True), ("off", False), ("~", None), ("", None),
    ],
)  # fmt: skip
def test_values_are_what_they_look_like(tmp_path, text, value):
    read_value = read(tmp_path, f"a: {text}").value["a"]
    assert repr(read_value) == repr(value)


def test_byte_order_mark_and_line_ends_do_not_matter(tmp_path):
    plain = read(tmp_path, "a: 1\nb: [2]\n")
    assert read(tmp_path, "\ufeffa: 1\r\nb: [2]\r\n".encode()) == plain
    assert plain.lines == {("a",): 1, ("b",): 2, ("b", 0): 2}


def test_merged_keys_are_not_repeated(tmp_path):
    """Nor where the merged mapping merges another one, whatever is built first."""
    made = read(tmp_path, "a: &a {x: 1, y: 2024-01-01}\nb: {<<: *a, x: 2}\n")
    assert made.value == {"a": {"x": 1, "y": "2024-01-01"}, "b": {"x": 2, "y": "2024-01-01"}}
    made = read(tmp_path, "a: &a {k: 1}\nx: {y: &b {<<: *a, k: 2}}\nc: {<<: *b, z: 3}\n")
    assert made.value["c"] == {"k": 2, "z": 3}


def test_an_empty_file_has_no_value(tmp_path):
    assert read(tmp_path, "# nothing\n") == Document(tmp_path / "f.yaml", None, {})


def test_the_line_of_a_place(tmp_path):
    """Of what is missing, the line of what should hold it."""
    made = read(tmp_path, "# c\nruns:\n- methods: [a,\n    b]\n  seeds: [0]\n")
    for keys, line in (
        (("runs",), 2), (("runs", 0), 3), (("runs", 0, "methods", 1), 4), (("runs", 0, "seeds"), 5),
        (("runs", 0, "scopes"), 3), (("model",), None), ((), None),
    ):  # fmt: skip
        assert made.line(keys) == line, keys
    with pytest.raises(UserError) as caught, made.at("runs", 0, "methods", 1):
        raise UserError("unknown")
    assert str(caught.value) == f"{tmp_path / 'f.yaml'} line 4: runs[0].methods[1]: unknown"
    assert key_path(()) == "top level"
