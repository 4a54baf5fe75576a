"""What may be unpacked, and what is said of everything else."""

import errno
import io
import shutil
import tarfile

import archive_files as made
import pytest

from passionsr.data import archives
from passionsr.data.archives import unpack
from passionsr.utils.files import UserError

SEVERAL = "it is one file of an archive in several, which must be joined first"
DAMAGED = "it is damaged or cut off"


def tar_with_size(size):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo("a.png")
        info.size = size
        archive.addfile(info)  # the header alone
    return stream.getvalue()


def plain_tar():
    return made.tarred(made.pairs("a", "b"), "w")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (made.altered(made.DEFLATED, method=9), "'LR/a.png' is compressed by Deflate64, which"),
        (made.altered(made.DEFLATED, method=95), "'LR/a.png' is compressed by method 95, which"),
        (made.altered(made.GOOD, flags=1), "'LR/a.png' is encrypted: unpack it with its password"),
        (made.altered(made.GOOD, method=99, flags=1), "'LR/a.png' is encrypted"),
        (made.GOOD[:500], "it is the beginning of a ZIP archive: cut off, or the first file of"),
        (made.last_of_several(made.GOOD), SEVERAL),
        (made.corrupted(made.GOOD), f"Bad CRC-32 for file 'HR/b.png'; {DAMAGED}"),
        (made.corrupted(made.DEFLATED), DAMAGED),
        (made.tarred(made.pairs("a", "b"))[:-500], DAMAGED),
        (plain_tar()[:10240], "its end is missing; it is damaged or cut off"),
        (plain_tar()[: 1024 + 300], "its end is missing; it is damaged or cut off"),
        (made.altered(made.GOOD, size=0xFFFFFFF0), "would become 4.29 GB and more, which no"),
        (tar_with_size(10**13), "would become 10 TB and more, which no archive of images does"),
        (made.zipped({}), "it holds no files"),
        (made.tarred({}), "it holds no files"),
        (made.zipped({"__MACOSX/._a.png": b"1", ".DS_Store": b"2"}), "it holds no file of a user"),
        (made.zipped({"LR/a.png": b"1", "LR/A.png": b"2"}), "'LR/a.png' and 'LR/A.png' are one"),
        (made.zipped({"\u00e9.png": b"1", "e\u0301.png": b"2"}), "are one file on systems that do"),
        (made.zipped({"a": b"1", "a/b.png": b"2"}), "cannot be unpacked"),
        (made.zipped({"a\n.png": b"1"}), r"member 'a\\n.png' is no name of a file"),
        (b"Rar!\x1a\x07\x01\x00" + bytes(99), "it is a RAR archive"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(99), "it is a 7z archive"),
        (b"\x28\xb5\x2f\xfd" + bytes(range(99)), "it is a Zstandard file"),
        (made.QUOTA_PAGE, r"it is an HTML page \('Quota exceeded'\)"),
        (b'{"error": "rate limit"}', "it is a text"),
        (b"", "it is empty"),
        (made.png(), "it is no zip or tar archive"),
    ],
    ids=[
        "deflate64", "unknown-method", "encrypted", "aes", "zip-cut", "multi-part", "bad-crc",
        "bad-deflate", "gz-cut", "tar-cut-after-member", "tar-cut-in-header", "zip-bomb",
        "tar-bomb", "empty-zip", "empty-tar", "foreign-only", "case", "normalisation",
        "file-and-folder", "control-character", "rar", "7z", "zstd", "html", "json", "nothing",
        "png",
    ],
)  # fmt: skip
def test_what_is_said(data, message, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert str(caught.value).startswith(f"{tmp_path}/a.zip: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.zip.002", "a.z01", "a.part2.rar", "a.tar.gz.003"])
def test_a_later_part_is_told_by_its_name(name, tmp_path):
    (tmp_path / name).write_bytes(bytes(range(128, 256)))
    with pytest.raises(UserError, match=SEVERAL):
        unpack(tmp_path / name, tmp_path)


@pytest.mark.parametrize(
    "data",
    [made.GOOD, made.DEFLATED, plain_tar(), made.tarred(made.pairs("a", "b"), "w:xz")],
    ids=["zip", "deflated", "tar", "xz"],
)
def test_the_bytes_tell_the_type_not_the_name(data, tmp_path):
    (tmp_path / "a.zip").write_bytes(data)
    assert unpack(tmp_path / "a.zip", tmp_path / "out") == 4
    assert (tmp_path / "out" / "LR" / "b.png").read_bytes() == made.png(8, 1)


def test_a_tar_that_holds_a_zip_is_a_tar(tmp_path):
    (tmp_path / "a.tar").write_bytes(made.tarred({"inner.zip": made.GOOD}, "w"))
    assert unpack(tmp_path / "a.tar", tmp_path / "out") == 1


def test_only_chosen_members_matter_and_foreign_ones_stay_packed(tmp_path):
    foreign = {"__MACOSX/LR/._a.png": b"1", "LR/.DS_Store": b"2", "HR/Thumbs.db": b""}
    (tmp_path / "a.zip").write_bytes(
        made.zipped({**made.pairs("a"), **foreign, "X/a": b"", "x/A": b""})
    )
    assert unpack(tmp_path / "a.zip", tmp_path / "out", ["LR/*", "HR/*"]) == 2
    with pytest.raises(UserError, match=r"it holds no HR_4/\*; its first file is LR/a\.png"):
        unpack(tmp_path / "a.zip", tmp_path / "more", ["HR_4/*"])


def test_a_full_disk_is_not_the_archives_fault(tmp_path, monkeypatch):
    (tmp_path / "a.zip").write_bytes(made.GOOD)
    small = shutil._ntuple_diskusage(100, 90, 10)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: small)
    with pytest.raises(OSError, match=r"kB are needed to unpack it, 10 bytes are free") as caught:
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "out").exists()
