"""What is said of a file that is not the one it should be."""

import archive_files as made
import pytest

from passionsr.utils.contents import kind_of
from passionsr.utils.files import UserError, check_sha256

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (made.QUOTA_PAGE, "an HTML page ('Quota exceeded')"),
        (b"\xef\xbb\xbf \n<HTML>", "an HTML page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "an XML document"),
        (b'{"error": "Repository not found"}', "a text ('{\"error\": \"Repository not found\"}')"),
        (b"x" * 99, f"a text ('{'x' * 60}...')"),
        (LFS, "a Git LFS pointer (`git lfs pull` gets the file itself)"),
        (b"%PDF-1.7\n\x00", "a PDF file"),
        (made.GOOD, None),
        (b"\x80\x02}q\x00.", None),
        (made.png(), None),
    ],
    ids=["empty", "html", "bom", "xml", "json", "long", "lfs", "pdf", "zip", "pickle", "png"],
)  # fmt: skip
def test_kinds(tmp_path, data, words):
    (tmp_path / "x").write_bytes(data)
    assert kind_of(tmp_path / "x") == words


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (
            "m.safetensors",
            LFS,
            "the file is a Git LFS pointer (`git lfs pull` gets the file itself)",
        ),
        ("m.safetensors", bytes(99), "the file is damaged or of another version"),
        ("config.json", b"{}", "the file is damaged or of another version"),
        ("config.json", made.QUOTA_PAGE, "the file is an HTML page ('Quota exceeded')"),
    ],
)
def test_a_wrong_hash_says_what_is_there(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        check_sha256(tmp_path / name, "0" * 64)
    assert str(caught.value).endswith(f"expected {'0' * 64}; {words}: put the right file there")
