"""Bad inputs: image files that 8-bit RGB would change; the same answer from every reader."""

import struct
from pathlib import Path

import numpy as np
from bad_inputs.table import BadInput
from image_files import chunk, noise, png, tiff
from PIL import Image

from passionsr.data.crops import RelativeCrop, write_crops
from passionsr.data.datasets import ImagePair, write_sheet

CONVERT = "expected 8-bit RGB without alpha; convert it first"
DEEP = png(np.array([[[255, 40255, 65535]]], np.uint16))
SEVERAL = "images (frames or pages), expected one; save the one that is meant as a file of its own"


def upscale(data, name="lr.png"):
    def prepare(folder):
        (folder / name).write_bytes(data)
        return ["upscale", name, "sr.png"]

    return prepare


def upscale_saved(name, mode="RGB", **options):
    def prepare(folder):
        Image.fromarray(noise()).convert(mode).save(folder / name, **options)
        return ["upscale", name, "sr.png"]

    return prepare


def in_folders(names, command):
    """The good image in every folder but the last, which gets a 16-bit one."""

    def prepare(folder):
        for name in names:
            (folder / name).mkdir()
            (folder / name / "a.png").write_bytes(DEEP if name == names[-1] else png(noise()))
        return command

    return prepare


def pages(folder):
    pictures = [Image.fromarray(np.roll(noise(), shift, 0)) for shift in range(2)]
    for name in ("sr", "hr"):
        (folder / name).mkdir()
        pictures[0].save(folder / name / "a.png")
    pictures[0].save(folder / "hr" / "a.png", save_all=True, append_images=pictures[1:])
    return ["score", "sr", "hr", "scores.csv", "--metrics", "psnr"]


def dataset(folder):
    (folder / "lr.png").write_bytes(png(noise(2, 3)))
    (folder / "hr.png").write_bytes(png(noise(8, 12), chunk(b"tRNS", bytes(6))))
    pair = ImagePair("set/a", Path("lr.png"), Path("hr.png"), "set")
    return lambda: write_sheet([pair], Path("set.tsv"), 4)


def photograph(folder):
    (folder / "a.png").write_bytes(png(noise(16, 16, dtype=np.uint16)))
    crops, photos = [RelativeCrop("a.png", 0.0, 0.0, 8)], {"a.png": Path("a.png")}
    return lambda: write_crops(crops, photos, Path("out"), 4)


SCORE = ["score", "sr", "hr", "scores.csv", "--metrics", "psnr"]
QUANTIZE = ["quantize", "out", "--method", "minmax", "--scheme", "W8A8", "--calibration", "cal"]
QUANTIZE += ["--methods", str(Path(__file__).parents[2] / "config" / "methods.yaml")]

ROWS = [
    BadInput(6, "16-bit PNG", upscale(DEEP), f"lr.png: a channel has 16 bits, {CONVERT}"),
    BadInput(
        6,
        "16-bit TIFF",
        upscale(tiff(noise(dtype=np.uint16)), "lr.tif"),
        f"lr.tif: a channel has 16 bits, {CONVERT}",
    ),
    BadInput(
        6,
        "16-bit HR image to score against",
        in_folders(["sr", "hr"], SCORE),
        f"hr/a.png: a channel has 16 bits, {CONVERT}",
    ),
    BadInput(
        6,
        "16-bit calibration image",
        in_folders(["cal"], QUANTIZE),
        f"cal/a.png: a channel has 16 bits, {CONVERT}",
    ),
    BadInput(6, "16-bit photograph", photograph, f"a.png: a channel has 16 bits, {CONVERT}"),
    BadInput(
        6,
        "transparent colour in a dataset",
        dataset,
        f"hr.png: one colour is transparent (tRNS), {CONVERT}",
    ),
    BadInput(
        6,
        "transparent colour",
        upscale(png(noise(), chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3)))),
        f"lr.png: one colour is transparent (tRNS), {CONVERT}",
    ),
    BadInput(6, "animated PNG as HR image", pages, f"hr/a.png: holds 2 {SEVERAL}"),
    BadInput(
        6,
        "TIFF with a fourth channel",
        upscale(tiff(noise(channels=4), extra=[0]), "lr.tif"),
        f"lr.tif: the channels are RGBX, {CONVERT}",
    ),
    BadInput(
        6, "CMYK JPEG", upscale_saved("lr.jpg", "CMYK"), f"lr.jpg: image mode is CMYK, {CONVERT}"
    ),
    BadInput(6, "grey image", upscale_saved("lr.png", "L"), f"lr.png: image mode is L, {CONVERT}"),
    BadInput(
        6, "palette image", upscale_saved("lr.png", "P"), f"lr.png: image mode is P, {CONVERT}"
    ),
    BadInput(6, "1-bit image", upscale_saved("lr.png", "1"), f"lr.png: image mode is 1, {CONVERT}"),
    BadInput(
        6,
        "GIF",
        upscale_saved("lr.gif"),
        "lr.gif: is a GIF file, expected PNG, JPEG, TIFF, WebP, BMP or PPM; convert it",
    ),
    BadInput(
        6,
        "20,000 x 20,000 px",
        upscale(png(noise(), size=(20000, 20000))),
        "lr.png: 20000x20000 px are more than 178 megapixels; cut it into parts",
    ),
    BadInput(
        6,
        "empty file",
        upscale(b""),
        "lr.png: the file is empty, expected an image; make or fetch it again",
    ),
]
