"""An output that cannot be written is found before the work; errors of the place are one line."""

import errno
import os
import tempfile

import pytest

from passionsr.cli import guarded
from passionsr.utils.files import UserError
from passionsr.utils.outputs import OUTSIDE, check_output_file, check_output_folder, outside_error


def test_nothing_is_made(tmp_path):
    (tmp_path / "old.csv").write_text("old")
    for path in (tmp_path / "a.csv", tmp_path / "new" / "folder" / "a.csv", tmp_path / "old.csv"):
        check_output_file(path)
    for path in (tmp_path, tmp_path / "new", tmp_path / "new" / "folder"):
        check_output_folder(path)
    assert [p.name for p in tmp_path.iterdir()] == ["old.csv"]


def test_relative_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("a.csv", "new/a.csv", "../a.csv"):
        check_output_file(tmp_path.__class__(path))


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_place_that_cannot_be_written(tmp_path, monkeypatch, code):
    """As on a read-only disk: simulated, because the root user may write everywhere else."""

    def refuse(dir):
        raise OSError(code, os.strerror(code), dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    for check, path in ((check_output_file, tmp_path / "a"), (check_output_folder, tmp_path)):
        with pytest.raises(UserError) as caught:
            check(path)
        assert str(caught.value) == (
            f"{path}: cannot be written ({os.strerror(code)}); give another place or make this one "
            "writable"
        )


def test_a_link_to_nothing_is_no_folder(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="link is no folder; give another place"):
        check_output_file(tmp_path / "link" / "a.csv")
    with pytest.raises(UserError, match="link: is a file, expected the name of a folder"):
        check_output_folder(tmp_path / "link")


def test_an_input_by_another_name(tmp_path):
    (tmp_path / "a.png").write_text("")
    os.link(tmp_path / "a.png", tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png: would replace .*a\.png, which is read"):
        check_output_file(tmp_path / "b.png", [tmp_path / "a.png"])
    check_output_file(tmp_path / "c.png", [tmp_path / "a.png"])


def test_a_full_disk_is_one_line(capsys):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "out/x.png")

    assert guarded(full) == 2
    assert capsys.readouterr().err == (
        "error: out/x.png: No space left on device: make room, or give a place that can be read "
        "and written\n"
    )


def test_other_errors_stay_bugs():
    assert outside_error(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert errno.EPIPE not in OUTSIDE
    with pytest.raises(FileNotFoundError):
        guarded(lambda: open("no such file"))  # noqa: SIM115
