"""What a later job would not accept, found by `passionsr check`: one line, with the file's line."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from passionsr.benchmark.config_check import check_config
from passionsr.utils.files import UserError

TEST, CALIBRATION = Path("config/mini_test.tsv"), Path("config/mini_calibration.tsv")
METHODS = """
minmax: {class: "passionsr.baselines.minmax:MinMax", title: MinMax}
passionsr: {class: "passionsr.methods.passionsr:PassionSR"}
"""
BUDGETS = """
smoke:
  "passionsr.methods.passionsr:PassionSR":
    epochs: 1
    let_lr: 1e-3
"""
BLOCK = {"methods": ["passionsr"], "schemes": ["W6A6"], "scopes": ["UV"], "seeds": [0]}


def images(folder, names, size):
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        pixels = np.full((size, size, 3), index, np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")


@pytest.fixture
def place(tmp_path):
    """A configuration of crops with its own registry, and two small datasets."""
    (tmp_path / "methods.yaml").write_text(METHODS)
    (tmp_path / "budgets.yaml").write_text(BUDGETS)
    for name in ("a", "b"):
        images(tmp_path / name / "LR", ("x", "y"), 4)
        images(tmp_path / name / "HR", ("x", "y"), 16)
    images(tmp_path / "outputs", ("x", "y"), 16)
    images(tmp_path / "photos", ("p",), 64)
    (tmp_path / "crops.tsv").write_text("image\tfx\tfy\tsize\np.png\t0.5\t0.5\t32\n")
    return tmp_path


def dataset(place, name):
    return {"name": name, "folder": str(place / name), "lr": "LR/*.png", "hr": "HR/*.png"}


def write(place, **changes):
    """The configuration with changes, a line per key; a key whose value is ... is left out."""
    raw = {
        "name": "checked",
        "model": "tiny",
        "test": str(TEST.resolve()),
        "calibration": str(CALIBRATION.resolve()),
        "methods": str(place / "methods.yaml"),
        "runs": [BLOCK],
        "budget": "smoke",
        "batch_size": 1,
        "metrics": ["psnr"],
        **changes,
    }
    kept = {key: value for key, value in raw.items() if value is not ...}
    path = place / "c.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in kept.items()))
    return path


def message_of(place, path):
    with pytest.raises(UserError) as caught:
        check_config(path)
    return str(caught.value).replace(str(place), "{place}")


def test_a_number_with_an_exponent_is_a_number_everywhere(place):
    config = check_config(write(place))
    assert config.options(config.runs[0]) == {"epochs": 1, "let_lr": 0.001}
    assert isinstance(config.options(config.runs[0])["let_lr"], float)


def external(place, name="theirs", **more):
    return {"name": name, "dataset": "a", "folder": str(place / "outputs"), **more}


MISTAKES = [
    ({"metrics": ["psnr", "ssim", "psnr"]}, "line 9: metrics: psnr is given twice: give it once"),
    ({"runs": [{**BLOCK, "seeds": [0, 0]}]},
     "line 6: runs[0].seeds: 0 is given twice: give it once"),
    ({"runs": [{**BLOCK, "methods": ["minmax", "minmax"]}]},
     "line 6: runs[0].methods: minmax is given twice: give it once"),
    ({"runs": [{**BLOCK, "schemes": ["W06A6"]}]},
     'line 6: runs[0].schemes[0]: "W06A6" given, expected W<bits>A<bits>, such as W6A6'),
    ({"runs": [{**BLOCK, "seeds": [10**20]}]},
     "line 6: runs[0].seeds[0]: 100000000000000000000 given, expected an integer from 0 to "
     "9223372036854775807"),
    ({"threads": 10**9}, "line 10: threads: 1000000000 given, expected an integer from 1 to 1024"),
    ({"name": "../x"}, 'line 1: name: "../x" given, expected a name of at most 64 letters, '
     "digits, _ and -, not beginning with -"),
    ({"name": "-x"}, 'line 1: name: "-x" given, expected a name of at most 64 letters, digits, _ '
     "and -, not beginning with -"),
    ({"name": "Aux"}, "line 1: name: Aux is no file name on Windows: give another name"),
    ({"model": ""}, 'line 2: model: "" given, expected text in one line'),
    ({"model": "a{b}"}, "line 2: model: the path 'a{b}' holds braces, which Snakemake takes for a "
     "wildcard: rename it"),
    ({"family": "osedif"}, "line 10: family: model family 'osedif' is unknown: give one of "
     "osediff, or module:OBJECT"),
    ({"family": ":OBJECT"}, "line 10: family: model family ':OBJECT' cannot be imported (Empty "
     "module name); give module:OBJECT"),
    ({"limit": {"test": 1000}},
     "line 10: limit.test: 1000 given, but there are 10 images: give at most 10"),
    ({"limit": {"calibration": 1000}},
     "line 10: limit.calibration: 1000 given, but there are 40 images: give at most 40"),
    ({"budget": {"passionsr.methods.passionsr:PassionSr": {"epochs": 1}}},
     "line 7: budget.passionsr.methods.passionsr:PassionSr: passionsr.methods.passionsr:PassionSr: "
     "passionsr.methods.passionsr has no class PassionSr; its classes: PassionSR"),
    ({"budget": {"passionsr.methods.passionsr:PassionSR": {"let_lr": "1e-3"}}},
     "line 7: budget.passionsr.methods.passionsr:PassionSR.let_lr: "
     "passionsr.methods.passionsr:PassionSR: option let_lr: \"1e-3\" given, expected a number of "
     "at least 0"),
    ({"calibration": str(TEST.resolve())},
     "line 4: calibration: astronaut.png is a test image, too: calibrate on other images, or the "
     "scores say nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_a_mistake_of_a_configuration(place, changes, message):
    assert message_of(place, write(place, **changes)) == f"{{place}}/c.yaml {message}"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("x: {class: 'passionsr.baselines.minmax:MinMax', options: {steps: 1}}",
         "line 4: x.options.steps: passionsr.baselines.minmax:MinMax: unknown option steps; known: "
         "none, it has no options"),
        ("x:\n  class: passionsr.methods.passionsr:PassionSR\n  options:\n    let_lr: fast",
         "line 7: x.options.let_lr: passionsr.methods.passionsr:PassionSR: option let_lr: \"fast\" "
         "given, expected a number of at least 0"),
        ("x: {class: 'passionsr.methods.passion:PassionSR'}",
         "line 4: x.class: passionsr.methods.passion:PassionSR: there is no module "
         "passionsr.methods.passion: give module:Class"),
    ],
)  # fmt: skip
def test_a_mistake_of_the_registry(place, more, message):
    (place / "methods.yaml").write_text(METHODS + more)
    given = message_of(place, write(place))
    assert given == f"{{place}}/c.yaml line 5: methods: {{place}}/methods.yaml {message}"


def test_a_mistake_of_the_budgets(place):
    (place / "budgets.yaml").write_text(BUDGETS.replace("1e-3", "-1"))
    assert message_of(place, write(place)) == (
        "{place}/c.yaml line 7: budget: {place}/budgets.yaml line 5: "
        "smoke.passionsr.methods.passionsr:PassionSR.let_lr: passionsr.methods.passionsr:PassionSR:"
        " option let_lr: -1 given, expected a number of at least 0"
    )


def test_two_rows_of_one_title(place):
    (place / "methods.yaml").write_text(METHODS.replace("title: MinMax", "title: passionsr"))
    blocks = [{**BLOCK, "methods": ["minmax", "passionsr"]}]
    assert message_of(place, write(place, runs=blocks)) == (
        "{place}/c.yaml line 6: runs: method minmax and method passionsr have the same title "
        "'passionsr': give one of them another `title:`"
    )
    check_config(write(place))  # only one of them is in the tables
    (place / "methods.yaml").write_text(METHODS.replace("title: MinMax", "title: FP32"))
    assert "the row FP32 and method minmax have the same title 'FP32'" in message_of(
        place, write(place, runs=blocks)
    )


def test_names_that_collide(place):
    tests = [dataset(place, "a"), dataset(place, "b")]
    check_config(write(place, test=tests, external_outputs=[external(place)]))
    for name, said in (
        ("passionsr-W6A6-UV-s0", "the name 'passionsr-W6A6-UV-s0' is taken; give another"),
        ("fp32", "the name 'fp32' is taken; give another"),
        ("w8a8", "the name 'w8a8' is taken; give another"),
        ("MINMAX", "two rows of the tables are called minmax and MINMAX, which is one file name "
         "on Windows and macOS: give one another name"),
    ):  # fmt: skip
        path = write(place, test=tests, external_outputs=[external(place, name)])
        assert message_of(place, path) == f"{{place}}/c.yaml line 10: external_outputs[0]: {said}"
    for name, said in (
        ("a", "two datasets have the name a; give one another `name:`"),
        ("A", "two datasets are called a and A, which is one file name on Windows and macOS: give "
         "one another name"),
        ("calibration", "calibration is the name of the calibration images; give another `name:`"),
    ):  # fmt: skip
        path = write(place, test=[dataset(place, "a"), {**dataset(place, "b"), "name": name}])
        assert message_of(place, path) == f"{{place}}/c.yaml line 3: test[1]: {said}"


def test_images_that_are_there_are_looked_at(place):
    path = write(place, test=[dataset(place, "a")], external_outputs=[external(place)])
    check_config(path)
    (place / "outputs" / "y.png").unlink()
    assert message_of(place, path) == (
        "{place}/c.yaml line 10: external_outputs[0]: 1 of 2 images of a have no output in "
        "{place}/outputs, first: y.png"
    )
    path = write(place, test=[dataset(place, "a")], limit={"test": 3})
    assert message_of(place, path) == (
        "{place}/c.yaml line 10: limit.test: 3 given, but there are 2 images: give at most 2"
    )
    (place / "a" / "HR" / "y.png").rename(place / "a" / "HR" / "z.png")
    assert "test[0]: dataset a: 1 of 2 images have no HR, first: " in message_of(place, path)


@pytest.mark.parametrize("name", ["i{j}", "a\nb", "a\tb", "\udcff"])
def test_image_names_that_the_workflow_cannot_name(place, name):
    for folder in ("LR", "HR"):
        shutil.copy(place / "a" / folder / "x.png", place / "a" / folder / f"{name}.png")
    assert "rename it" in message_of(place, write(place, test=[dataset(place, "a")]))


@pytest.mark.parametrize("name", ["a b", "-x", "#1", "ä", "x'y\"", "$HOME", "a;b", "50%", "NA"])
def test_image_names_that_it_can(place, name):
    for folder in ("LR", "HR"):
        shutil.copy(place / "a" / folder / "x.png", place / "a" / folder / f"{name}.png")
    check_config(write(place, test=[dataset(place, "a")]))


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("/abs/*.png", "pattern '/abs/*.png': give one relative to `folder:`, such as HR/*.png"),
        ("../*.png", "pattern '../*.png': give one relative to `folder:`, such as HR/*.png"),
        ("", '"" given, expected a pattern such as HR/*.png or null'),
    ],
)
def test_patterns(place, pattern, said):
    path = write(place, test=[{**dataset(place, "a"), "lr": pattern}])
    assert message_of(place, path) == f"{{place}}/c.yaml line 3: test[0].lr: {said}"


def test_calibration_photographs(place):
    photos = {"name": "photos", "folder": str(place / "photos"), "hr": "*.png"}

    def path(size=32, **more):
        (place / "crops.tsv").write_text(f"image\tfx\tfy\tsize\np.png\t0.5\t0.5\t{size}\n")
        listed = {"list": str(place / "crops.tsv"), "photos": photos}
        return write(place, calibration=listed, **more)

    check_config(path())
    assert message_of(place, path(30)) == (
        "{place}/c.yaml line 4: calibration.list: {place}/crops.tsv: p.png: size 30 is not a "
        "multiple of the model's scale 4"
    )
    assert 'size: "x" given, expected an integer of at least 1' in message_of(place, path("x"))
    same = [{"name": "t", "folder": str(place), "lr": "a/LR/x.png", "hr": "photos/p.png"}]
    shutil.copy(place / "a" / "LR" / "x.png", place / "a" / "LR" / "p.png")
    same[0]["lr"] = "a/LR/p.png"
    assert "/photos/p.png is a test image, too" in message_of(place, path(test=same))
    (place / "photos" / "p.png").rename(place / "photos" / "q.png")
    assert "1 of 1 photographs of {place}/crops.tsv are not in {place}/photos, first: p.png" in (
        message_of(place, path())
    )


# -- lists of crops ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("size", "12.5", 'line 3: size: "12.5" given, expected an integer of at least 1'),
        ("x", "-1", 'line 3: x: "-1" given, expected an integer of at least 0'),
        ("name", "a/b", 'line 3: name: "a/b" given, expected a name of at most 100 characters '
         "without /, \\, { and }, not beginning with ., - or #"),
        ("name", "{a}", 'line 3: name: "{a}" given, expected a name of at most 100 characters '
         "without /, \\, { and }, not beginning with ., - or #"),
        ("hr_sha256", "0", 'line 3: hr_sha256: "0" given, expected 64 hex digits'),
        ("source", "skimage:none.png", "{0}: its source {1}/none.png is not there"),
        ("source", "none.png", "{0}: its source {place}/none.png is not there"),
        ("x", "9999", "{0}: the crop leaves its 512x512 photo"),
        ("size", "255", "{0}: size 255 is not a multiple of the model's scale 4"),
    ],
)  # fmt: skip
def test_a_bad_row_of_a_list(place, column, value, said):
    import skimage

    lines = TEST.read_text().splitlines()
    with (place / "list.tsv").open("w", newline="") as stream:
        rows = list(csv.DictReader(lines[1:3], delimiter="\t"))
        name = rows[0]["name"]
        rows[0][column] = value
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t", lineterminator="\n")
        stream.write("# a comment\n")
        writer.writeheader()
        writer.writerows(rows)
    data = Path(skimage.__file__).parent / "data"
    said = said.replace("{0}", name).replace("{1}", str(data))
    place_of = "" if said.startswith("line") else ":"
    given = message_of(place, write(place, test=str(place / "list.tsv")))
    start = f"{{place}}/c.yaml line 3: test: {{place}}/list.tsv{place_of} "
    assert given == start + said


def test_names_of_a_list_that_are_one_file(place):
    lines = TEST.read_text().splitlines()
    again = lines[2].replace("astronaut_face", "Astronaut_Face")
    (place / "list.tsv").write_text("\n".join([*lines[:3], again]) + "\n")
    assert "list.tsv line 4: the name Astronaut_Face is astronaut_face of line 3 in capitals" in (
        message_of(place, write(place, test=str(place / "list.tsv")))
    )


def test_no_torch_is_imported():
    import subprocess
    import sys

    code = (
        "import sys; from passionsr.benchmark.config_check import check_config; "
        "check_config('config/mini.yaml'); "
        "print({'torch', 'pandas', 'scipy', 'diffusers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "set()"
