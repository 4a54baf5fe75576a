"""Bad inputs of the command line: numbers, names, text files, outputs that cannot be written."""

import os
import re
from pathlib import Path

from bad_inputs.table import BadInput
from image_files import noise, png

from passionsr.benchmark.plan import read_times
from passionsr.data.crops import read_list

CONFIG = Path(__file__).parents[2] / "config"
QUANTIZE = ["quantize", "out", "--method", "minmax", "--scheme", "W8A8", "--calibration", "cal"]
QUANTIZE += ["--methods", str(CONFIG / "methods.yaml")]
NOT_UTF8 = "not a text file in UTF-8 (byte 5 does not belong there): save it as UTF-8"
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def run(*command, **files):
    """Prepare images by name (keys with __ for / and no suffix), and run the command."""

    def prepare(folder):
        for name, data in files.items():
            image(folder / f"{name.replace('__', '/')}.png", data)
        return list(command)

    return prepare


def image(path, data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(noise()) if data is None else data)


def upscale(*options, output="sr.png"):
    return run("upscale", "lr.png", output, *options, lr=None)


def score(output="scores.csv", metrics="psnr"):
    pair = {"sr__a": None, "hr__a": None}
    return run("score", "sr", "hr", output, "--metrics", metrics, **pair)


def folder_as(name, prepare):
    def inside(folder):
        (folder / name).mkdir()
        return prepare(folder)

    return inside


def pipe_as(name, prepare):
    def inside(folder):
        os.mkfifo(folder / name)
        return prepare(folder)

    return inside


def file_as(name, prepare):
    def inside(folder):
        (folder / name).write_text("text")
        return prepare(folder)

    return inside


def quantize_into(folder):
    image(folder / "cal" / "a.png")
    (folder / "out").write_text("text")
    return QUANTIZE


def quantize_over_a_model(folder):
    image(folder / "cal" / "a.png")
    (folder / "out").mkdir()
    (folder / "out" / "manifest.json").write_text("{}")
    return QUANTIZE


def text_file(name, action):
    def prepare(folder):
        (folder / name).write_bytes("name\u00e9\n".encode("latin-1") + b"\xff")
        return (lambda: action(Path(name))) if callable(action) else action

    return prepare


def two_names(folder):
    for name in (COMPOSED, DECOMPOSED):
        image(folder / "sr" / f"{name}.png")
    return ["score", "sr", "hr", "scores.csv", "--metrics", "psnr"]


def linked(folder):
    image(folder / "lr.png")
    (folder / "sr.png").symlink_to("lr.png")
    return ["upscale", "lr.png", "sr.png"]


def output_is_input(folder):
    image(folder / "sr" / "a.png")
    image(folder / "hr" / "a.png")
    return ["score", "sr", "hr", "hr/a.png", "--metrics", "psnr"]


PLACE = "give another place or make this one writable"
LOST = "which is read; give another output"
OUTPUTS = [
    ("output that is a folder", folder_as("sr.png", upscale()),
     "sr.png: is a folder, expected the name of a file to write"),
    ("output below a file", file_as("x", upscale(output="x/sr.png")),
     "x/sr.png: cannot be written, x is no folder; give another place"),
    ("output where nothing can be made", upscale(output="/proc/sr.png"),
     re.compile(rf"^/proc/sr\.png: cannot be written \([^)]+\); {PLACE}$")),
    ("name that is too long", upscale(output="x" * 300 + ".png"),
     "x" * 300 + f".png: cannot be written (File name too long); {PLACE}"),
    ("table of scores that is a folder", folder_as("scores.csv", score()),
     "scores.csv: is a folder, expected the name of a file to write"),
    ("table of scores that is a pipe", pipe_as("scores.csv", score()),
     "scores.csv: is no regular file; give the name of a file to write"),
    ("artifact folder that is a file", quantize_into,
     "out: is a file, expected the name of a folder to write"),
    ("model folder below a file",
     file_as("x", run("import-osediff", "x/model", "--checkpoint", "osediff.pkl")),
     "x/model: cannot be written, x is no folder; give another place"),
    ("bands in a place that is a folder",
     folder_as("e.tsv", run("expect", ".", "--expected", "e.tsv")),
     "e.tsv: is a folder, expected the name of a file to write"),
]  # fmt: skip
NUMBERS = [
    ("seed of 20 digits", run(*QUANTIZE, "--seed", "9" * 20),
     f"--seed {'9' * 20}: give 0 to 9223372036854775807"),
    ("negative seed", run(*QUANTIZE, "--seed", "-1"),
     "--seed -1: give 0 to 9223372036854775807"),
    ("negative number of GPUs", run("plan", "c.yaml", "--gpus", "-2"),
     "--gpus -2: give 1 to 1000000000"),
    ("0 threads", run("bench", "--step", "--threads", "0"), "--threads 0: give 1 to 1024"),
    ("size of 0 px", run("bench", "--tiles", "--sizes", "512", "0"), "--sizes 0: give 1 to 16384"),
    ("size between two pixels of the input", run("bench", "--tiles", "--sizes", "510"),
     "--sizes 510: give multiples of 4, the scale of the model"),
    ("process size of 20 digits", upscale("--process-size", "9" * 20),
     f"--process-size {'9' * 20}: give 4 to 16384"),
    ("overlap below 0", upscale("--latent-overlap", "-1"), "--latent-overlap -1: give 0 or more"),
    ("encoder tile of 0", upscale("--encoder-tile", "0"), "--encoder-tile 0: give 8 or more"),
    ("decoder tile of 0", upscale("--decoder-tile", "0"), "--decoder-tile 0: give 1 or more"),
]  # fmt: skip
TEXTS = [
    ("bands that are not UTF-8",
     text_file("e.tsv", ["check-results", str(CONFIG.parent / "docs" / "results" / "mini.md"),
                         "--expected", "e.tsv"]), f"e.tsv: {NOT_UTF8}"),
    ("page that is not UTF-8", text_file("page.md", ["check-results", "page.md"]),
     f"page.md: {NOT_UTF8}"),
    ("times that are not UTF-8", text_file("times.tsv", read_times), f"times.tsv: {NOT_UTF8}"),
    ("data list that is not UTF-8", text_file("list.tsv", read_list), f"list.tsv: {NOT_UTF8}"),
    ("folder as a table of times", folder_as("t.tsv", lambda _: lambda: read_times(Path("t.tsv"))),
     "t.tsv: is a folder, expected a file"),
]  # fmt: skip
SMALL = [
    ("name of another format", upscale(output="sr.jpg"),
     "sr.jpg: images are written as PNG; give a name that ends in .png"),
    ("scores under the name of a spreadsheet", score("scores.xlsx"),
     "scores.xlsx: scores are written as CSV; give a name that ends in .csv"),
    ("output that is the input", upscale(output="lr.png"), f"lr.png: would replace lr.png, {LOST}"),
    ("output that links to the input", linked, f"sr.png: would replace lr.png, {LOST}"),
    ("table of scores that is an image", output_is_input,
     f"hr/a.png: would replace hr/a.png, {LOST}"),
    ("artifact into a float model", quantize_over_a_model,
     "out: holds a float model, which a quantized one would hide; give another folder"),
    ("folder for an image", folder_as("lr.png", run("upscale", "lr.png", "sr.png")),
     "lr.png: is a folder, expected an image file"),
    ("file for a folder of outputs", file_as("sr", run("score", "sr", "hr", "s.csv")),
     "sr: no PNG images: it is a file, expected a folder"),
    ("file for a folder of calibration images", file_as("cal", run(*QUANTIZE)),
     "cal: no PNG images for calibration (LR images, 1/4 size): it is a file, expected a folder"),
    ("HR folder that is not there",
     run("score", "sr", "hr", "s.csv", "--metrics", "psnr", sr__a=None),
     "no HR image for 1 of 1 outputs, first: hr/a.png: there is no such folder"),
    ("two names that look the same", two_names,
     f"sr/{COMPOSED}.png and sr/{DECOMPOSED}.png have the same name; rename one of them"),
    ("no metric but a comma", score(metrics=" , "),
     "no metric given; known: psnr, ssim, lpips, dists, niqe, musiq, maniqa, clipiqa, psnr_fp, "
     "lpips_fp"),
    ("unknown metric after a space", score(metrics="psnr, fid"),
     "unknown metric fid; known: psnr, ssim, lpips, dists, niqe, musiq, maniqa, clipiqa, psnr_fp, "
     "lpips_fp"),
    ("negative number of test images", run("plan", "c.yaml", "--test-images", "-3"),
     "--test-images -3: give 1 to 1000000000"),
    ("no test images", run("plan", "c.yaml", "--test-images", "0"),
     "--test-images 0: give 1 to 1000000000"),
    ("UNet tile of 0", upscale("--latent-tile", "0"), "--latent-tile 0: give 2 or more"),
    ("table without a checkout",
     run("explain", "a/tables/table2.csv", "--row", "fp32", "--col", "psnr"),
     "a/tables/table2.csv: there is no config/a.yaml beside its results; give the table as "
     "results/<name>/tables/<table>.csv of a checkout, or --config"),
]  # fmt: skip

ROWS = [
    BadInput(
        kind=11,
        given="image that is not there",
        prepare=lambda folder: ["upscale", "lr.png", "sr.png"],
        answer="lr.png: image not found",
    ),
    *(BadInput(11, *row) for row in (*OUTPUTS, *NUMBERS, *TEXTS)),
    *(BadInput(14, *row) for row in SMALL),
]
