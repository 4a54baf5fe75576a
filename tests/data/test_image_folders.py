"""Which files of a folder are images: for every reader of a folder the same ones."""

import os

import archive_files as made
import pytest

from passionsr.benchmark.standalone import _matching_images
from passionsr.data.datasets import Dataset
from passionsr.data.image_folders import images_by_name, images_in
from passionsr.utils.files import UserError, atomic_path
from passionsr.utils.foreign_files import is_foreign

FOREIGN = (
    "._a.png", ".tmp-12-abcdefgh.png", ".a.png.swp", ".#a.png", ".DS_Store", "Thumbs.db",
    "desktop.ini", "a.png~", "#a.png#", "~$a.png", ".hidden.png", "note.txt", "a.png.part",
)  # fmt: skip


def litter(folder, suffix=".png"):
    """What systems, editors and programs leave in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FOREIGN:
        (folder / name).write_bytes(b"not an image")
    (folder / f"x{suffix}").mkdir()
    os.mkfifo(folder / f"pipe{suffix}")
    for name in ("@eaDir", "__MACOSX", ".thumbnails", ".ipynb_checkpoints"):
        (folder / name).mkdir()
        (folder / name / f"a{suffix}").write_bytes(b"not an image")


def names(paths):
    return [path.name for path in paths]


def test_only_images_are_images(tmp_path):
    litter(tmp_path)
    (tmp_path / "b.PNG").write_bytes(made.png())
    (tmp_path / "a.png").write_bytes(made.png())
    (tmp_path / "c.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "d.jpg").write_bytes(made.png())
    with atomic_path(tmp_path / "e.png"):  # one that is being written
        assert names(images_in(tmp_path)) == ["a.png", "b.PNG", "c.png"]
    (tmp_path / "e.png").unlink()
    assert names(images_in(tmp_path, "*")) == ["a.png", "b.PNG", "c.png", "d.jpg"]
    assert names(images_in(tmp_path, "**/*.png")) == ["a.png", "b.PNG", "c.png"]
    assert images_in(tmp_path / "none") == []
    assert sorted(images_by_name(tmp_path)) == ["a", "b", "c"]


def test_a_pattern_may_spell_out_a_hidden_folder(tmp_path):
    (tmp_path / ".cache" / "LR").mkdir(parents=True)
    (tmp_path / ".cache" / "LR" / "a.png").write_bytes(made.png())
    (tmp_path / ".cache" / "LR" / "._a.png").write_bytes(b"1")
    assert names(images_in(tmp_path, ".cache/LR/*.png")) == ["a.png"]
    assert names(images_in(tmp_path / "x", "../.cache/*/*.png")) == []
    assert images_in(tmp_path, "*/*/*.png") == []
    assert names(images_in(tmp_path / ".cache", "LR/*.png")) == ["a.png"]


@pytest.mark.parametrize("pattern", ["/abs/*.png", ""])
def test_patterns_are_relative(tmp_path, pattern):
    with pytest.raises(UserError, match=r"pattern '.*': .*; give one relative to"):
        images_in(tmp_path, pattern)


def test_a_link_to_nothing_is_one_line(tmp_path):
    (tmp_path / "a.png").symlink_to("annex/object")
    with pytest.raises(UserError, match=r"a\.png: is a link to annex/object, which is not there"):
        images_in(tmp_path)


def test_names_that_are_one(tmp_path):
    (tmp_path / "a.png").write_bytes(made.png())
    (tmp_path / "a.PNG").write_bytes(made.png())
    with pytest.raises(UserError, match=r"a\.png and .*a\.PNG have the same name"):
        images_by_name(tmp_path)


def test_score_pairs_images_only(tmp_path):
    """Outputs and HR of either spelling; nobody's file is counted on either side."""
    for folder in ("sr", "hr"):
        litter(tmp_path / folder)
    for name in ("a.png", "b.PNG", "e\u0301.png"):
        (tmp_path / "sr" / name).write_bytes(made.png())
    for name in ("a.PNG", "b.png", "\u00e9.png"):
        (tmp_path / "hr" / name).write_bytes(made.png())
    found = _matching_images(tmp_path / "sr", tmp_path / "hr")
    assert [name for name, _, _ in found] == ["a", "b", "\u00e9"]
    (tmp_path / "hr" / "b.png").unlink()
    with pytest.raises(UserError, match=r"no HR image for 1 of 3 outputs, first: .*hr/b\.PNG"):
        _matching_images(tmp_path / "sr", tmp_path / "hr")


@pytest.mark.parametrize("pattern", ["*.png", "*", "*.*"])
def test_datasets_hold_images_only(tmp_path, pattern):
    for kind in ("LR", "HR"):
        litter(tmp_path / kind)
    for name, data in made.pairs("a", "b").items():
        (tmp_path / name).write_bytes(data)
    dataset = Dataset("set", tmp_path, hr=f"HR/{pattern}", lr=f"LR/{pattern}", count=2)
    assert [pair.image for pair in dataset.pairs()] == ["a", "b"]
    assert len(dataset.files()) == 4
    for name in made.pairs("a", "b"):
        (tmp_path / name).unlink()
    assert dataset.missing().startswith("dataset set: no images in ")


def test_our_own_temporary_files_are_foreign(tmp_path):
    with atomic_path(tmp_path / "a.png") as path:
        assert is_foreign(path.name)


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    """A table of scores could not hold it."""
    (tmp_path / "caf\udce9.png").write_bytes(made.png())
    with pytest.raises(UserError, match=r"^'caf\\udce9': the name of this file is not UTF-8"):
        images_by_name(tmp_path)
