"""Data lists: disjoint, deterministic, checked."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from train_mini.data import read_photo_list

from passionsr.data.crops import make_pair, pairs_in, pixels_sha256, read_list, write_pairs
from passionsr.data.datasets import read_pair
from passionsr.data.degrade import degrade, rng_for
from passionsr.data.images import read_uint8, write_uint8
from passionsr.utils.files import UserError

TEST, CALIBRATION = Path("config/mini_test.tsv"), Path("config/mini_calibration.tsv")


def test_sizes_and_counts():
    test, calibration = read_list(TEST), read_list(CALIBRATION)
    assert len(test) >= 8
    assert {c.size for c in test} == {256}
    assert len(calibration) >= 32
    assert {c.size for c in calibration} == {128}


def test_training_calibration_and_test_are_disjoint():
    """By photograph: no photo gives crops to two of the sets."""
    training = {Path(name).name for _, name, _ in read_photo_list()}
    # Plasma's files are named by their size: the wallpaper's folder tells them apart.
    training |= {Path(name).parts[3] for _, name, _ in read_photo_list()}
    calibration = {c.photo for c in read_list(CALIBRATION)}
    test = {c.photo for c in read_list(TEST)}
    assert not training & calibration
    assert not training & test
    assert not calibration & test
    assert len(training) > 25


@pytest.mark.parametrize("path", [TEST, CALIBRATION], ids=["test", "calibration"])
def test_pixels_match_the_list(path):
    for crop in read_list(path):
        hr, lr = make_pair(crop, path.parent, 4)
        assert pixels_sha256(hr) == crop.hr_sha256, crop.name
        assert pixels_sha256(lr) == crop.lr_sha256, crop.name


def test_pixels_are_the_same_in_another_process():
    code = (
        "from passionsr.data.degrade import degrade, rng_for; import numpy as np, hashlib;"
        "hr = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8);"
        "print(hashlib.sha256(degrade(hr, rng_for('a', 1), 4).tobytes()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_degradation_depends_on_its_key_only():
    hr = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    first = degrade(hr, rng_for("x"), 4)
    assert first.shape == (16, 8, 3)
    assert np.array_equal(first, degrade(hr, rng_for("x"), 4))
    assert not np.array_equal(first, degrade(hr, rng_for("y"), 4))
    with pytest.raises(ValueError, match="not a multiple of 4"):
        degrade(hr[:63], rng_for("x"), 4)


def test_a_changed_pixel_rule_is_noticed(tmp_path, monkeypatch):
    from passionsr.data import crops as data

    monkeypatch.setattr(data, "degrade", lambda hr, rng, scale: hr[::scale, ::scale])
    with pytest.raises(UserError, match="LR pixels differ"):
        write_pairs(TEST, tmp_path, 4)


def test_written_pairs_are_read_back(tmp_path):
    pairs = write_pairs(TEST, tmp_path, 4)
    assert pairs == pairs_in(TEST, tmp_path)
    for pair, crop in zip(pairs, read_list(TEST), strict=True):
        lr, hr = read_pair(pair, 4)
        assert pixels_sha256(hr) == crop.hr_sha256
        assert pixels_sha256(lr) == crop.lr_sha256


def test_malformed_lists(tmp_path):
    with pytest.raises(UserError, match="not found"):
        read_list(tmp_path / "none.tsv")
    (tmp_path / "a.tsv").write_text("name\tsource\nx\ty\n")
    with pytest.raises(UserError, match="expected tab-separated columns"):
        read_list(tmp_path / "a.tsv")
    lines = TEST.read_text().splitlines()
    (tmp_path / "b.tsv").write_text("\n".join([*lines, lines[-1]]) + "\n")
    with pytest.raises(UserError, match="stands twice"):
        read_list(tmp_path / "b.tsv")


def test_png_round_trip(tmp_path):
    image = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_uint8(tmp_path / "a" / "b.png", image)
    assert np.array_equal(read_uint8(tmp_path / "a" / "b.png"), image)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.png"]


def test_lr_and_hr_must_fit(tmp_path):
    from passionsr.data.datasets import ImagePair

    image = np.zeros((8, 8, 3), dtype=np.uint8)
    write_uint8(tmp_path / "lr.png", image)
    write_uint8(tmp_path / "hr.png", image)
    with pytest.raises(UserError, match="a: LR is 8x8 and HR 8x8, expected HR = 4 x LR"):
        read_pair(ImagePair("a", tmp_path / "lr.png", tmp_path / "hr.png"), 4)
