"""Pairing by stem rules, sheets, relative crops.

And what a configuration says when data are missing.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from yaml_lines import without_lines

from passionsr.benchmark.config import load_config
from passionsr.benchmark.image_lists import write_image_lists
from passionsr.benchmark.inputs import missing_inputs, missing_report
from passionsr.benchmark.jobs.data import make_data
from passionsr.benchmark.jobs.score import scored_outputs
from passionsr.benchmark.paths import (
    calibration_pairs,
    data_files,
    image_files,
    image_folder,
    pairs_to_test,
)
from passionsr.data.crops import RelativeCrop, draw_crops, read_crops, write_crops
from passionsr.data.dataset_registry import (
    DatasetChoice,
    dataset_from,
    load_registry,
    load_sources,
)
from passionsr.data.datasets import (
    PAIRINGS,
    Dataset,
    expand,
    read_pair,
    read_sheet,
    write_sheet,
)
from passionsr.data.images import read_uint8, write_uint8
from passionsr.utils.defaults import default_file
from passionsr.utils.files import UserError

RNG = np.random.default_rng(0)


def image(path, height=8, width=12):
    write_uint8(path, RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def dataset(folder, pairing="same", **changes):
    base = {"name": "set", "folder": folder, "lr": "LR/*.png", "hr": "HR/*.png"}
    return Dataset(**{**base, "pairing": pairing, **changes})


def fill(folder, pairing, keys):
    lr_suffix, hr_suffix = PAIRINGS[pairing]
    for key in keys:
        image(folder / "LR" / f"{key}{lr_suffix}.png")
        image(folder / "HR" / f"{key}{hr_suffix}.png", 32, 48)


# Names as in the published sets.
NAMES = {
    "same": ["Canon_001_LR4", "Nikon_050_LR4"],
    "realsr": ["Canon_001", "Nikon_050"],
    "drealsr": ["Canon_10", "P1100159", "panasonic_103"],
    "div2k": ["0801", "0900"],
}


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_stem_rules(tmp_path, pairing):
    fill(tmp_path, pairing, NAMES[pairing])
    pairs = dataset(tmp_path, pairing, count=len(NAMES[pairing])).pairs()
    lr_suffix, hr_suffix = PAIRINGS[pairing]
    assert [(p.image, p.lr.stem, p.hr.stem) for p in pairs] == [
        (f"{k}{lr_suffix}", f"{k}{lr_suffix}", f"{k}{hr_suffix}") for k in sorted(NAMES[pairing])
    ]
    assert {p.dataset for p in pairs} == {"set"}


def test_lr_and_hr_in_one_folder(tmp_path):
    """RealSR's own archive keeps both side by side, per camera."""
    for camera in ("Canon", "Nikon"):
        image(tmp_path / camera / "Test" / "4" / f"{camera}_001_LR4.png")
        image(tmp_path / camera / "Test" / "4" / f"{camera}_001_HR.png", 32, 48)
    made = dataset(tmp_path, "realsr", lr="*/Test/4/*_LR4.png", hr="*/Test/4/*_HR.png", count=2)
    assert [p.image for p in made.pairs()] == ["Canon_001_LR4", "Nikon_001_LR4"]


def no_hr(folder):
    fill(folder, "same", ["a", "b"])
    (folder / "HR" / "b.png").unlink()


def no_lr(folder):
    fill(folder, "same", ["a", "b"])
    (folder / "LR" / "a.png").unlink()


def same_key(folder):
    fill(folder, "same", ["a"])
    image(folder / "LR" / "more" / "a.png")


@pytest.mark.parametrize(
    ("prepare", "changes", "message"),
    [
        (lambda f: None, {}, "dataset set: no images in .*: set `folder:`"),
        (no_hr, {}, "1 of 2 images have no HR, first: .*LR/b.png"),
        (no_lr, {}, "1 of 2 images have no LR, first: .*HR/a.png"),
        (
            lambda f: fill(f, "same", ["a"]),
            {"pairing": "div2k"},
            r"LR/a\.png does not end in x4\.png",
        ),
        (lambda f: fill(f, "same", "ab"), {"count": 3}, "2 images in .*, expected 3"),
        (same_key, {"lr": "LR/**/*.png"}, "have the same key a"),
    ],
    ids=["empty", "no-hr", "no-lr", "other-rule", "count", "same-key"],
)
def test_what_is_no_bijection_is_refused(tmp_path, prepare, changes, message):
    prepare(tmp_path)
    with pytest.raises(UserError, match=message):
        dataset(tmp_path, **changes).pairs()


def test_sheets_keep_paths_sizes_and_hashes(tmp_path):
    fill(tmp_path, "div2k", ["0801"])
    pairs = dataset(tmp_path, "div2k").pairs()
    write_sheet(pairs, tmp_path / "s.tsv", 4)
    assert read_sheet(tmp_path / "s.tsv") == pairs
    row = (tmp_path / "s.tsv").read_text().splitlines()[1].split("\t")
    assert row[0] == "set/0801x4"
    assert row[3:5] == ["48", "32"]
    assert len(row[5]) == len(row[6]) == 64
    with pytest.raises(UserError, match="the job `data` writes it"):
        read_sheet(tmp_path / "none.tsv")


def test_wrong_scale_and_damaged_images_are_refused(tmp_path):
    fill(tmp_path, "same", ["a"])
    image(tmp_path / "HR" / "a.png", 32, 44)
    with pytest.raises(UserError, match="set/a: LR is 12x8 and HR 44x32, expected HR = 4 x LR"):
        write_sheet(dataset(tmp_path).pairs(), tmp_path / "s.tsv", 4)
    (tmp_path / "HR" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read as an image"):
        write_sheet(dataset(tmp_path).pairs(), tmp_path / "s.tsv", 4)
    assert not (tmp_path / "s.tsv").exists()


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_names_are_compared_in_one_unicode_form(tmp_path):
    """A folder that was copied from a Mac and one that was not."""
    image(tmp_path / "LR" / f"{DECOMPOSED}x4.png")
    image(tmp_path / "HR" / f"{COMPOSED}.png", 32, 48)
    (pair,) = dataset(tmp_path, "div2k").pairs()
    assert (pair.image, pair.hr.stem) == (f"{DECOMPOSED}x4", COMPOSED)
    write_sheet([pair], tmp_path / "s.tsv", 4)
    assert read_sheet(tmp_path / "s.tsv") == [pair]
    image(tmp_path / "HR" / f"{DECOMPOSED}.png", 32, 48)
    with pytest.raises(UserError, match="have the same key"):
        dataset(tmp_path, "div2k").pairs()


def test_a_photograph_is_found_in_another_unicode_form(tmp_path):
    image(tmp_path / f"{DECOMPOSED}.png", 32, 32)
    photos = dataset(tmp_path, lr="", hr="*.png").photos()
    crop = RelativeCrop(f"{COMPOSED}.png", 0.0, 0.0, 32)
    (pair,) = write_crops([crop], photos, tmp_path / "out", 4)
    assert np.array_equal(read_uint8(pair.hr), read_uint8(tmp_path / f"{DECOMPOSED}.png"))


def test_sheets_have_the_sizes_of_upright_images(tmp_path):
    """HR as a camera stored it, turned; LR as a program wrote it, upright."""
    fill(tmp_path, "same", ["a"])
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = RNG.integers(0, 256, (48, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "HR" / "a.png", exif=exif)
    write_sheet(dataset(tmp_path).pairs(), tmp_path / "s.tsv", 4)
    assert (tmp_path / "s.tsv").read_text().splitlines()[1].split("\t")[3:5] == ["48", "32"]
    (pair,) = read_sheet(tmp_path / "s.tsv")
    assert np.array_equal(read_pair(pair, 4)[1], np.rot90(pixels, -1))


def test_the_registry_is_complete():
    """Every dataset names a known source or says where to get it.

    Every hash has its right length.
    """
    raw = yaml.safe_load(default_file("datasets.yaml").read_text())
    sources = load_sources()
    for name, entry in raw["datasets"].items():
        made = dataset_from(DatasetChoice(dataset=name))
        assert made.count, name
        assert made.source in sources or made.obtain, name
        assert entry.get("pairing", "same") in PAIRINGS
    for source in sources.values():
        for archive in source.archives:
            assert archive.sha256 is None or re.fullmatch("[0-9a-f]{64}", archive.sha256)
            assert archive.urls
    counts = {n: d["count"] for n, d in raw["datasets"].items()}
    assert counts == {
        "RealSR": 100, "DRealSR": 93, "DIV2K_val": 100, "DIV2K_train": 800,
        "RealSR_crop128": 100, "DRealSR_crop128": 93, "DIV2K_crop128": 3000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"dataset": "Set5"}, "dataset 'Set5' is unknown; known: RealSR"),
        ({"name": "mine"}, "dataset mine: give folder, hr"),
        ({"dataset": "RealSR", "folder": "${NO_SUCH_VARIABLE}/x"}, "NO_SUCH_VARIABLE.* is not set"),
    ],
)  # fmt: skip
def test_bad_specifications(spec, message):
    with pytest.raises(UserError, match=message):
        dataset_from(DatasetChoice(**spec))


def test_a_local_folder_overrides_the_default(monkeypatch):
    monkeypatch.setenv("PASSIONSR_SHARED", "/elsewhere")
    choice = {"dataset": "RealSR", "folder": "${PASSIONSR_SHARED}/x", "lr": "l/*.png"}
    made = dataset_from(DatasetChoice(**choice))
    assert (made.folder, made.lr, made.count) == (Path("/elsewhere/x"), "l/*.png", 100)
    assert made.marker is None
    monkeypatch.delenv("PASSIONSR_SHARED")
    assert expand("${PASSIONSR_SHARED}/y") == Path("../shared/y")
    assert (
        str(dataset_from(DatasetChoice(dataset="RealSR")).marker) == "data/RealSR_V3/fetched.json"
    )


# -- calibration crops --------------------------------------------------------------------------

PAPER = Path("config/paper_calibration.tsv")


def test_the_calibration_list_follows_from_its_rule():
    """The list in git is what the seeded rule gives; no photograph gives two crops."""
    crops = read_crops(PAPER)
    assert crops == draw_crops([f"{i:04d}.png" for i in range(1, 801)], 500, 512, 0)
    assert len({c.image for c in crops}) == 500
    assert all(0 <= v < 1 for c in crops for v in (c.fx, c.fy))
    assert draw_crops(["a"], 1, 512, 0) != draw_crops(["a"], 1, 512, 1)
    # Uniform on [0, 1): the mean of 500 draws has a deviation of 0.013; three of them.
    assert np.mean([c.fx for c in crops]) == pytest.approx(0.5, abs=0.04)


def test_calibration_and_test_photographs_are_disjoint():
    assert {c.image for c in read_crops(PAPER)} <= {f"{i:04d}.png" for i in range(1, 801)}


def test_crop_corners_stay_inside():
    first, last = RelativeCrop("a", 0.0, 0.0, 512), RelativeCrop("a", 0.999999, 0.999999, 512)
    assert first.corner(2040, 1356) == (0, 0)
    assert last.corner(2040, 1356) == (2040 - 512, 1356 - 512)
    assert last.corner(512, 512) == (0, 0)
    with pytest.raises(UserError, match="a is 511x900, smaller than the crop 512"):
        first.corner(511, 900)


def test_crops_are_cut_and_downscaled(tmp_path):
    image(tmp_path / "0001.png", 60, 50)
    crop = RelativeCrop("0001.png", 0.5, 0.25, 32)
    (pair,) = write_crops([crop], {"0001.png": tmp_path / "0001.png"}, tmp_path / "out", 4)
    x, y = int(0.5 * (50 - 32 + 1)), int(0.25 * (60 - 32 + 1))
    hr = read_uint8(tmp_path / "0001.png")[y : y + 32, x : x + 32]
    assert np.array_equal(read_uint8(pair.hr), hr)
    small = Image.fromarray(hr).resize((8, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(read_uint8(pair.lr), np.asarray(small))
    with pytest.raises(UserError, match=r"1 of 1 photographs are missing, first: 0001\.png"):
        write_crops([crop], {}, tmp_path / "out", 4)


def test_another_kind_of_list_is_refused():
    with pytest.raises(UserError, match="expected tab-separated columns image, fx, fy, size"):
        read_crops(Path("config/mini_test.tsv"))


# -- configurations -----------------------------------------------------------------------------


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A configuration with two small datasets, relative crops and given outputs."""
    for name in ("a", "b"):
        fill(tmp_path / name, "div2k", ["0801", "0802", "0803"])
        for key in ("0801", "0802", "0803"):
            image(tmp_path / "given" / f"{key}x4.png", 32, 48)
    image(tmp_path / "photos" / "0001.png", 64, 80)
    crops = "image\tfx\tfy\tsize\n0001.png\t0.5\t0.5\t32\n"
    (tmp_path / "crops.tsv").write_text(crops)
    raw = yaml.safe_load(Path("config/test.yaml").read_text())
    raw["test"] = [
        {
            "name": n,
            "folder": str(tmp_path / n),
            "lr": "LR/*.png",
            "hr": "HR/*.png",
            "pairing": "div2k",
        }
        for n in ("a", "b")
    ]
    raw["calibration"] = {
        "list": str(tmp_path / "crops.tsv"),
        "photos": {"name": "photos", "folder": str(tmp_path / "photos"), "hr": "*.png"},
    }
    raw["external_outputs"] = [
        {"name": "theirs", "dataset": "a", "folder": str(tmp_path / "given")}
    ]

    def load(**changes):
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump({**raw, **changes}))
        config = load_config(path)
        monkeypatch.setattr(type(config), "results", property(lambda self: tmp_path / "results"))
        return config

    return load


def test_data_stage_writes_sheets_and_crops(local):
    config = local()
    make_data(config)
    test, calibration = data_files(config)
    assert all(path.is_file() for path in test + calibration)
    names = [p.name for p in pairs_to_test(config)]
    assert names == ["a/0801x4", "a/0802x4", "b/0801x4", "b/0802x4"]  # limit 2, per dataset
    (pair,) = calibration_pairs(config)
    assert read_uint8(pair.hr).shape == (32, 32, 3)
    assert image_files(config, "x")[0].name == "a.tsv"
    given = scored_outputs(config, "theirs")
    assert [(s.pair.name, s.output.name, s.reference) for s in given] == [
        (f"a/{k}x4", f"{k}x4.png", None) for k in ("0801", "0802", "0803")  # the whole dataset
    ]  # fmt: skip


def test_outputs_made_elsewhere_are_found_in_another_unicode_form(local, tmp_path):
    for folder, suffix, size in (("a/LR", "x4", (8, 12)), ("a/HR", "", (32, 48))):
        image(tmp_path / folder / f"{COMPOSED}{suffix}.png", *size)
    image(tmp_path / "given" / f"{DECOMPOSED}x4.png", 32, 48)
    config = local()
    make_data(config)
    found = {s.pair.image: s.output for s in scored_outputs(config, "theirs")}
    assert len(found) == 4
    assert found[f"{COMPOSED}x4"] == tmp_path / "given" / f"{DECOMPOSED}x4.png"


def test_a_changed_output_is_not_scored(local):
    config = local()
    make_data(config)
    pairs = pairs_to_test(config)
    for pair in pairs:
        image(image_folder(config, "fp32") / f"{pair.name}.png", 32, 48)
    write_image_lists(config, "fp32")
    assert len(scored_outputs(config, "fp32")) == len(pairs)
    image(image_folder(config, "fp32") / f"{pairs[0].name}.png", 32, 48)
    with pytest.raises(UserError, match=r"0801x4\.png: sha256 is"):
        scored_outputs(config, "fp32")


def test_everything_missing_is_one_list(local, tmp_path):
    config = local(model=str(tmp_path / "none"))
    assert len(missing_inputs(config)) == 1
    gone = replace(
        config,
        datasets=tuple(replace(d, folder=tmp_path / "gone") for d in config.datasets),
        photos=dataset_from(DatasetChoice(dataset="DIV2K_train")),
        external_outputs=(replace(config.external_outputs[0], folder=tmp_path / "gone"),),
    )
    lines = missing_inputs(gone)
    assert len(lines) == 5
    assert lines[0].startswith(f"model {tmp_path}/none is not there")
    assert "dataset a: no images in" in lines[1]
    assert "dataset b: no images in" in lines[2]
    assert "run `passionsr fetch DIV2K_train`, or set `folder:`" in lines[3]
    assert lines[4].startswith("external_outputs theirs: no PNG images in")
    report = missing_report("c.yaml", lines)
    assert report.startswith("c.yaml: 5 inputs are missing")
    assert report.count("\n  - ") == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"test": [{"name": "p", "folder": "x", "hr": "*.png"}]},
            "test[0]: dataset p: a test set needs LR images; give `lr:`",
        ),
        (
            {"test": [{"dataset": "RealSR"}, {"dataset": "RealSR"}]},
            "test[1]: two datasets have the name RealSR; give one another `name:`",
        ),
        (
            {"test": [{"datasett": "RealSR"}]},
            "test[0].datasett: unknown key; known: dataset, folder, lr, hr, pairing, count, name",
        ),
        (
            {"test": [{"dataset": "RealSR", "pairing": "div2"}]},
            'test[0].pairing: "div2" given, expected one of div2k, same, realsr, drealsr or null',
        ),
        (
            {"test": [{"dataset": "realsr"}]},
            "test[0]: dataset 'realsr' is unknown; known: RealSR, DRealSR, "
            "RealSR_crop128, DIV2K_val, DIV2K_train, DRealSR_crop128, DIV2K_crop128",
        ),
        (
            {"external_outputs": [{"name": "x", "dataset": "zz", "folder": "x"}]},
            "external_outputs[0]: dataset 'zz' is not in test, which has a, b",
        ),
        (
            {"external_outputs": [{"name": "fp32", "dataset": "a", "folder": "x"}]},
            "external_outputs[0]: the name 'fp32' is taken; give another",
        ),
        (
            {"external_outputs": [{"name": "x", "dataset": "a", "folder": "x"}] * 2},
            "external_outputs[1]: the name 'x' is taken; give another",
        ),
        (
            {"calibration": {"list": "x"}},
            "calibration.photos: missing, expected a mapping with the keys folder, lr, hr, "
            "pairing, count, dataset, name",
        ),
        (
            {"calibration": {"list": "x", "photos": {"name": "p"}}},
            "calibration.photos: dataset p: give folder, hr, or `dataset:` with a name of "
            "config/datasets.yaml",
        ),
    ],
)
def test_bad_dataset_configurations(local, tmp_path, changes, message):
    with pytest.raises(UserError) as caught:
        local(**changes)
    given = without_lines(str(caught.value), tmp_path / "c.yaml")
    assert given == f"{tmp_path}/c.yaml: {message}"


def test_an_open_count_replaces_that_of_the_registry():
    """`count: null` says that any number will do; other nulls say nothing."""
    made = dataset_from(DatasetChoice(dataset="DRealSR", count=None, lr=None))
    assert (made.count, made.lr) == (None, "Test_x4/test_LR/*.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sources: {S: {}}",
            "sources.S.archives: missing, expected a list of at least 1 entry, each "
            "a mapping with the keys file, urls, sha256, md5, size",
        ),
        (
            "sources: {S: {archives: [{file: a, urls: ['https://h/u'], sha256: xyz}]}}",
            'sources.S.archives[0].sha256: "xyz" given, expected 64 hex digits or null',
        ),
        (
            "sources: {S: {archives: [{file: a, urls: ['https://h/u'], sha265: null}]}}",
            "sources.S.archives[0].sha265: unknown key; known: sha256, file, urls, md5, size",
        ),
        (
            "sources: {S: {archives: [{file: a, urls: []}]}}",
            "sources.S.archives[0].urls: [] given, expected a list of at least 1 entry, each an "
            "address such as https://host/file, without spaces",
        ),
        (
            "sources: {S: {archives: [{file: ../a, urls: ['https://h/a b']}]}}",
            'sources.S.archives[0].file: "../a" given, expected the name of a file, without a '
            'folder; line 1: sources.S.archives[0].urls[0]: "https://h/a b" given, expected an '
            "address such as https://host/file, without spaces",
        ),
        (
            "datasets: {D: {hr: x}, d: {hr: y}}",
            "datasets: two datasets are called D and d, which is one file name on Windows and "
            "macOS: give one another name",
        ),
        (
            "datasets: {D: {hr: x, count: many}}",
            'datasets.D.count: "many" given, expected an integer of at least 1 or null',
        ),
        (
            "datasets: {D: {hr: x, source: T}}\nsources: {S: {archives: [{file: a, urls: ['https://h/u']}]}}",
            "datasets.D.source: source 'T' is unknown; known: S",
        ),
        (
            "datasets: {a/b: {hr: x}}",
            'datasets.a/b: "a/b" given, expected a name of at most 64 letters, digits, _ and -, '
            "not beginning with -",
        ),
        ("dataset: {}", "dataset: unknown key; known: datasets, sources"),
    ],
)
def test_mistakes_in_the_registry(tmp_path, text, message):
    path = tmp_path / "datasets.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_registry(path)
    assert str(caught.value) == f"{path} line 1: {message}"
