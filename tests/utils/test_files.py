"""Text files of users: encodings, byte order marks, tables that are cut off."""

import pytest

from passionsr.utils.files import UserError, read_rows, read_text

TABLE = "# a comment\nname\tx\na\t1\nb\t2\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_what_editors_write(tmp_path, encoding, ends):
    path = tmp_path / "t.tsv"
    path.write_bytes(TABLE.replace("\n", ends).encode(encoding))
    assert read_text(path) == TABLE
    assert read_rows(path, ["name", "x"], "\t") == [
        (3, {"name": "a", "x": "1"}),
        (4, {"name": "b", "x": "2"}),
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "shift_jis"])
def test_other_encodings_are_refused(tmp_path, encoding):
    path = tmp_path / "t.txt"
    path.write_bytes("name\uff71".encode(encoding) if encoding == "shift_jis" else
                     "name\u00e9".encode(encoding))  # fmt: skip
    with pytest.raises(
        UserError, match=r"t\.txt: not a text file in UTF-8 \(byte \d+ does not belong there\)"
    ):
        read_text(path)


def test_folders_and_missing_files(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a folder, expected a file"):
        read_text(tmp_path)
    for path in (tmp_path / "none", tmp_path / "file" / "none"):
        with pytest.raises(UserError, match="none: make it first"):
            read_text(path, absent="make it first")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected comma-separated columns name, x"),
        ("name\n", "expected comma-separated columns name, x"),
        ("x,name\n1,a\n", "expected comma-separated columns name, x"),
        ("name,x,y\na,1,2\n", "expected comma-separated columns name, x"),
        ("name,x\na,1\nb\n", "line 3: 1 values, expected 2: name, x"),
        ("name,x\na,1,2\n", "line 2: 3 values, expected 2: name, x"),
    ],
)
def test_other_tables_are_refused(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_rows(path, ["name", "x"])


def test_more_columns_where_they_may_be(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("y,x,name\n3,1,a\n")
    assert read_rows(path, ["name", "x"], more=True) == [(2, {"y": "3", "x": "1", "name": "a"})]
    with pytest.raises(UserError, match="expected comma-separated columns name, z"):
        read_rows(path, ["name", "z"], more=True)
