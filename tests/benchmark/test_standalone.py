"""Upscale and score without a configuration: how names are paired, what is counted and kept."""

import csv
from pathlib import Path

import numpy as np
import pytest
from image_files import noise
from PIL import Image, ImageCms

from passionsr.cli import main
from passionsr.data.images import colour_profile, read_uint8, write_uint8
from passionsr.inference import super_resolve
from passionsr.metrics import suite

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


class Difference:
    """Scores an image by its mean difference, without pyiqa."""

    def __init__(self, names):
        self.names, self.missing = names, {}

    def measure(self, sr, hr):
        return {name: (float(np.abs(sr.astype(int) - hr).mean()), None) for name in self.names}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite, "MetricSuite", Difference)
    return tmp_path


def score(capsys, metrics="psnr"):
    assert main(["score", "sr", "hr", "s.csv", "--metrics", metrics]) == 0
    with Path("s.csv").open(encoding="utf-8", newline="") as stream:
        return capsys.readouterr().out, list(csv.DictReader(stream))


def test_suffixes_of_any_case_are_images(here, capsys):
    for name in ("sr/a.png", "sr/b.PNG", "hr/a.PNG", "hr/b.png", "hr/c.png"):
        write_uint8(name, noise())
    out, rows = score(capsys)
    assert out == "images: 2\npsnr: 0.0000\n"
    assert [row["image"] for row in rows] == ["a", "b"]


def test_names_are_paired_in_one_unicode_form(here, capsys):
    write_uint8(f"sr/{DECOMPOSED}.png", noise())
    write_uint8(f"hr/{COMPOSED}.png", noise())
    out, rows = score(capsys)
    assert out.startswith("images: 1\n")
    assert [row["image"] for row in rows] == [COMPOSED]


@pytest.mark.parametrize("text", ["psnr,ssim", "psnr, ssim", "psnr ssim", " PSNR ,, ssim,psnr "])
def test_metrics_separated_in_any_way(here, capsys, text):
    for name in ("sr/a.png", "hr/a.png"):
        write_uint8(name, noise())
    out, rows = score(capsys, text)
    assert out == "images: 1\npsnr: 0.0000\nssim: 0.0000\n"
    assert [row["metric"] for row in rows] == ["psnr", "ssim"]


def test_an_upright_output_is_scored_against_an_upright_image(here, capsys):
    """HR as a camera stored it, turned; the output as a program wrote it, upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Path("hr").mkdir()
    Image.fromarray(noise()).save("hr/a.png", exif=exif)
    write_uint8("sr/a.png", np.rot90(noise(), -1))
    assert score(capsys)[0] == "images: 1\npsnr: 0.0000\n"


@pytest.fixture
def tiny_folder(tmp_path, tiny):
    from passionsr.models.folder import save_model

    save_model(tiny, tmp_path / "model")
    return tmp_path / "model"


def test_upscaling_turns_an_image_and_keeps_its_profile(here, tiny_folder, tiny):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(noise(8, 12)).save("lr.jpg", exif=exif, icc_profile=profile)
    assert main(["upscale", "lr.jpg", "out/sr.PNG", "--model", str(tiny_folder)]) == 0
    lr = read_uint8("lr.jpg")
    assert lr.shape == (12, 8, 3)
    assert np.array_equal(read_uint8("out/sr.PNG"), super_resolve.super_resolve(tiny, lr))
    assert colour_profile("out/sr.PNG") == profile


def test_upscaling_one_pixel(here, tiny_folder):
    write_uint8("lr.png", noise(1, 1))
    assert main(["upscale", "lr.png", "sr.png", "--model", str(tiny_folder)]) == 0
    assert read_uint8("sr.png").shape == (4, 4, 3)


def test_an_image_below_a_latent_is_refused(here, tiny_folder, tiny, capsys):
    """By the released rules it would be squeezed to nothing."""
    write_uint8("lr.png", noise(1, 9))
    options = ["--resize", "official", "--process-size", "4", "--model", str(tiny_folder)]
    status = main(["upscale", "lr.png", "sr.png", *options])
    if tiny.latent_factor <= 4:
        assert status == 0
    else:
        assert status == 2
        assert "image of 36x4 px is smaller than the 8 px" in capsys.readouterr().err
