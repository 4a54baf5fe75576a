"""Bad inputs of scores, tables and what reads them: several datasets, images without a score."""

import json
from pathlib import Path

import numpy as np
from bad_inputs.table import BadInput
from report.made_results import BLOCK, datasets, made, write_configuration

from passionsr.data.images import write_uint8


def two_datasets(*command):
    """Finished results of datasets A and B, then a command on them."""

    def prepare(folder):
        from passionsr.report.tables import write_tables

        test = datasets(folder, "AB", side=8, count=1)
        write_tables(made(folder, lambda *about: 20.0 + len(about[0]), test=test))
        return command

    return prepare


def explained(*more):
    table = "results/made/tables/table2.csv"
    return two_datasets("explain", table, "--row", "fp32", "--col", "psnr", *more)


def bands_without_dataset(folder):
    head = "results\ttable\tbits\tmethod\tmetric\tlow\thigh\n"
    Path("old.tsv").write_text(head + "made\ttable2\tW32A32\tFP32\tpsnr\t1\t2\n")
    return two_datasets("check-results", "results/made", "--expected", "old.tsv")(folder)


def photo(side):
    rng = np.random.default_rng(side)
    y, x = np.mgrid[:side, :side]
    waves = 110 + 60 * np.sin(x / 7)[..., None] + 40 * np.cos(y / 5)[..., None]
    return (waves + rng.normal(0, 8, (side, side, 3))).clip(0, 255).astype(np.uint8)


def scored(metrics, *images):
    """`passionsr score` of outputs, each against itself."""

    def prepare(folder):
        for number, image in enumerate(images):
            for kind in ("sr", "hr"):
                write_uint8(Path(kind) / f"{number}.png", image)
        return ["score", "sr", "hr", "scores.csv", "--metrics", metrics]

    return prepare


def checked(**keys):
    """`passionsr check` of a configuration."""

    def prepare(folder):
        write_configuration(folder, **keys)
        return ["check", "config/made.yaml"]

    return prepare


def external_output_of_another_size(folder):
    """One of the images has a row of pixels too few."""
    from passionsr.benchmark.jobs.score import score

    outputs = {"name": "theirs", "dataset": "A", "folder": str(folder / "theirs")}
    test = datasets(folder, "A", side=8, count=1)
    config = made(folder, lambda *about: 20.0, test=test, external_outputs=[outputs])
    write_uint8(folder / "theirs" / "0.png", photo(32)[:31])
    metrics = folder / "results" / "made" / "metrics.json"
    metrics.write_text(json.dumps(dict.fromkeys(config.metrics)))
    return lambda: score(config, ["theirs"])


FLAT = np.full((96, 96, 3), 128, np.uint8)

ROWS = [
    BadInput(
        kind=4,
        given="explain without a dataset",
        prepare=explained(),
        answer="results/made/tables/table2.csv has several datasets, give --dataset: A, B",
    ),
    BadInput(
        kind=4,
        given="explain of a dataset that is not tested",
        prepare=explained("--dataset", "C"),
        answer="results/made/tables/table2.csv: no dataset 'C'; datasets: A, B",
    ),
    BadInput(
        kind=4,
        given="explain, the row of one dataset",
        prepare=explained("--dataset", "B"),
        answer="  not quantized   its images: results/made/reference/fp32",
        status=0,
    ),
    BadInput(
        kind=4,
        given="bands of two datasets",
        prepare=two_datasets("expect", "results/made", "--expected", "bands.tsv"),
        # Table 2: Bicubic 3, FP32 2 (no fidelity to itself), two methods 3 each; Table 4: 2, 3, 3;
        # UNet only: 2. Twice.
        answer="bands.tsv: 42 bands",
        status=0,
        made=("bands.tsv",),
    ),
    BadInput(
        kind=4,
        given="bands from before datasets were in them",
        prepare=bands_without_dataset,
        answer="old.tsv: expected tab-separated columns results, table, dataset, bits, method, "
        "metric, low, high; a file of an earlier version has no dataset: make it again with "
        "`passionsr expect RESULTS`",
    ),
    BadInput(
        kind=7,
        given="NIQE of 64 px",
        prepare=scored("psnr,niqe", photo(64)),
        answer="niqe: n/a (0 of 1 images: 64x64 px; it needs 96 px on each side)",
        status=0,
        made=("scores.csv",),
    ),
    BadInput(
        kind=7,
        given="NIQE of an image of one colour",
        prepare=scored("psnr,niqe", FLAT),
        answer="niqe: n/a (0 of 1 images: not finite on this image (is it of one colour?))",
        status=0,
        made=("scores.csv",),
    ),
    BadInput(
        kind=7,
        given="LPIPS of 16 px beside 64 px",
        prepare=scored("psnr,lpips", photo(64), photo(16)),
        answer="lpips: 0.0000 (1 of 2 images; the others: 16x16 px; it needs 31 px on each side)",
        status=0,
        made=("scores.csv",),
    ),
    BadInput(
        kind=7,
        given="SSIM of 8 px",
        prepare=scored("psnr,ssim", photo(8)),
        answer="ssim: n/a (0 of 1 images: 8x8 px; it needs 11 px on each side)",
        status=0,
        made=("scores.csv",),
    ),
    BadInput(
        kind=7,
        given="equal images",
        prepare=scored("psnr", photo(16)),
        answer="psnr: 80.0000",
        status=0,
        made=("scores.csv",),
    ),
    BadInput(
        kind=7,
        given="no runs",
        prepare=checked(runs=[]),
        answer="config/made.yaml line 13: runs: [] given, expected a list of at least 1 entry, "
        "each a mapping with the keys methods, schemes, scopes, seeds",
    ),
    BadInput(
        kind=7,
        given="no seeds",
        prepare=checked(runs=[{**BLOCK, "seeds": []}]),
        answer="config/made.yaml line 21: runs[0].seeds: [] given, expected a list of at least 1 "
        "entry, each an integer from 0 to 9223372036854775807",
    ),
    BadInput(
        kind=7,
        given="one external output of another size",
        prepare=external_output_of_another_size,
        answer="{folder}/theirs/0.png: SR is 32x31 but HR is 32x32; they must be of one size",
    ),
]
