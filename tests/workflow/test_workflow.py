"""The whole DAG on config/test.yaml, in a copy of the repository: the commands of the README."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from copies import TEST, check_same, results_of, snakemake, tree

from passionsr.benchmark.config import load_config
from passionsr.benchmark.reproducibility import products
from passionsr.cli import main
from passionsr.metrics.registry import METRICS
from passionsr.report.bands import Key, measured
from passionsr.report.rendering import EMBEDDED
from passionsr.report.result_pages import headline, results_page


def planned(result):
    """Job counts of a dry run by rule, from Snakemake's own table."""
    assert result.status == 0, result.output
    table = result.output.split("Job stats:")[1].split("total")[0]
    pairs = [line.split() for line in table.splitlines()]
    return {p[0]: int(p[1]) for p in pairs if len(p) == 2 and p[1].isdigit()}


def test_products(finished):
    config = load_config("config/test.yaml")
    results = finished / "results" / "test"
    for run in config.runs:
        folder = results / "runs" / run.run_id
        for name in (
            "artifact/model.safetensors",
            "artifact/scheme.json",
            "run.json",
            "layers.csv",
        ):
            assert (folder / name).stat().st_size > 0
        scored = {path.stem for path in (results / "scores" / run.run_id).glob("*.csv")}
        assert scored == set(config.metrics)
        assert len(list((results / "images" / run.run_id).glob("*.png"))) == 2
    for name in ("table2", "ablation", "table4", "unet_only", "table3"):
        for suffix in ("csv", "md", "tex"):
            assert (results / "tables" / f"{name}.{suffix}").stat().st_size > 0
    assert {p.name for p in (results / "figures").iterdir()} == {
        "crops_W8A8.png", "crops_W4A4.png", "loss_curves.png", "loss_curves.csv", "ranges_let.png",
        "bits_sweep.png", "sensitivity.png",
    }  # fmt: skip
    assert len(list((results / "benchmarks").glob("*.tsv"))) >= 10
    assert not list(results.rglob(".tmp-*"))


def test_pages_hold_the_numbers_of_the_tables(finished, tmp_path):
    """A page is read back by another reader than the one that wrote it; to the printed digits."""
    results = finished / "results" / "test"
    path = tmp_path / "test.md"
    path.write_text(results_page(results))
    name, printed = measured(path)
    assert (name, printed.keys()) == ("test", measured(results)[1].keys())
    for key, value in measured(results)[1].items():
        assert abs(printed[key] - value) <= 0.5001 * 10 ** -METRICS[key.metric].digits, key
    rows = headline(results).splitlines()
    assert [line.split("|")[1].strip() for line in rows[2:4]] == ["Bicubic", "FP32"]
    value = printed["table2", EMBEDDED, "W32A32", "Bicubic", "lpips"]
    assert f"{value:.4f} ± " in rows[2]


def test_one_row_per_number(finished):
    folder = finished / "results" / "test" / "scores" / "minmax-W4A4-UV-s0"
    rows = [row for path in folder.glob("*.csv") for row in csv.DictReader(path.open())]
    assert len(rows) == 2 * 5  # images x metrics
    values = {(r["image"], r["metric"]): r["value"] for r in rows}
    assert len(values) == len(rows)
    for (_, metric), value in values.items():
        if metric != "musiq":  # needs a model hub
            float(value)


def test_second_run_has_nothing_to_do(finished):
    result = snakemake(finished, *TEST)
    assert result.status == 0
    assert "Nothing to be done" in result.output


def test_a_new_bit_width_runs_only_what_it_needs(finished):
    path = finished / "config" / "test.yaml"
    before = path.read_text()
    path.write_text(before.replace("schemes: [W8A8, W4A4]", "schemes: [W8A8, W4A4, W6A6]"))
    try:
        jobs = planned(snakemake(finished, *TEST, "-n"))
    finally:
        path.write_text(before)
    assert jobs == {
        "all": 1,
        "calibrate": 2,
        "infer": 2,
        "score_W6A6": 1,
        "tables": 1,
        "table3": 1,
        "figures": 1,
    }


def test_a_deleted_run_comes_back_with_the_same_bytes(finished):
    """Same machine, same seed: artifacts, images, scores, tables and figures are byte-identical."""
    results = results_of(finished, TEST)
    before, whole = products(results), tree(finished)
    for name in ("runs/passionsr-W4A4-UV-s0", "images/passionsr-W4A4-UV-s0", "tables", "figures"):
        shutil.rmtree(results / name)
    status, output = snakemake(finished, *TEST)
    assert status == 0, output[-3000:]
    check_same(finished, before, TEST)
    after = tree(finished)
    assert whole.keys() == after.keys()
    remade = {k for k in whole if k.endswith("run.json") and whole[k] != after[k]}
    assert all("passionsr-W4A4" in name for name in remade)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("methods: [minmax, passionsr]", "methods: [minmax, gptq]", "method 'gptq' is unknown"),
        ("schemes: [W8A8, W4A4]", "schemes: [W0A0]", "bit width 0 is not supported"),
        ("batch_size: 2", "batchsize: 2", "batchsize: unknown key; known: batch_size"),
    ],
)
def test_bad_configuration_stops_before_any_job(finished, old, new, message):
    path = finished / "config" / "test.yaml"
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new))
    try:
        result = snakemake(finished, *TEST, "-n")
    finally:
        path.write_text(before)
    assert result.status != 0
    assert message in result.output
    assert "Traceback" not in result.output


def test_an_artifact_of_another_configuration_is_refused(finished):
    """The table stage checks that every run was made from this configuration."""
    path = finished / "results" / "test" / "runs" / "minmax-W8A8-UV-s0" / "run.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "run_digest": "0" * 16}))
    try:
        result = subprocess.run(
            [sys.executable, "workflow/scripts/job.py", "tables", "--config", "config/test.yaml"],
            cwd=finished, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(finished)},
        )  # fmt: skip
    finally:
        path.write_text(before)
    assert result.returncode != 0
    assert "its artifact comes from another configuration" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_model_is_listed_and_stops_only_a_real_run(finished):
    """A dry run resolves and lists; a real one stops before its first job."""
    path = finished / "config" / "test.yaml"
    before = path.read_text()
    path.write_text(before.replace("model: tiny", "model: models/none"))
    try:
        dry = snakemake(finished, *TEST, "-n")
        made = tree(finished)
        real = snakemake(finished, *TEST)
    finally:
        path.write_text(before)
    for result in (dry, real):
        text = result.output
        assert "1 inputs are missing; nothing runs before they are there" in text
        assert "model models/none is not there" in text
        assert "Traceback" not in text
    assert planned(dry)["calibrate"] == 4
    assert real.status != 0
    assert "steps (" not in real.output  # Snakemake's word for a finished job
    assert tree(finished) == made


def test_the_paper_grid_resolves(finished):
    """Every job is planned and everything that is missing stands in one list."""
    result = snakemake(finished, "-n", "all", "--config", "file=config/paper.yaml")
    jobs = planned(result)
    config = load_config("config/paper.yaml")
    assert jobs["calibrate"] == jobs["infer"] == len(config.runs) == 27
    assert jobs["fetch_source"] == 3
    text = result.output
    assert "config/paper.yaml: 5 inputs are missing" in text
    for line in (
        "model models/paper is not there",
        "dataset RealSR: no images in data/RealSR_V3: run `passionsr fetch RealSR_V3`",
        "dataset DRealSR: no images in data/DRealSR: get it from",
        "dataset DIV2K_val: no images in data/DIV2K_valid",
        "dataset DIV2K_train: no images in data/DIV2K_train",
    ):
        assert text.count(line) == 1


def check_numbers_of_datasets(finished, monkeypatch):
    """explain, bands, summary and pages of results/local, in the copy."""
    monkeypatch.chdir(finished)
    tables = Path("results/local/tables")
    for dataset, niqe in {"A": True, "B": True, "C": False}.items():
        for row in ("bicubic", "fp32", "minmax-W8A8", *(["theirs"] if dataset == "A" else [])):
            for metric in ("psnr", "niqe", "psnr_fp"):
                cell = ["--row", row, "--col", metric, "--dataset", dataset]
                assert main(["explain", str(tables / "table2.csv"), *cell]) == 0
        key = Key("table2", dataset, "W8A8", "MinMax", "niqe")
        assert (key in measured(Path("results/local"))[1]) == niqe
    assert main(["expect", "results/local", "--expected", "bands.tsv"]) == 0
    assert main(["check-results", "results/local", "--expected", "bands.tsv"]) == 0
    assert json.loads((tables / "summary.json").read_text()).keys() == {"A", "B", "C"}
    Path("local.md").write_text(results_page(Path("results/local")))
    assert measured(Path("local.md"))[1].keys() == measured(Path("results/local"))[1].keys()
    assert "(1) NIQE: 0 of 1 images: 64x64 px; it needs 96 px" in Path("local.md").read_text()


def test_a_local_dataset_from_files_to_tables(finished, tmp_path, monkeypatch):
    """Two datasets with a stem rule, crops of a photograph, given outputs, tiles.

    And images that NIQE cannot score, bit widths with a seed each, one for the UNet only. The whole
    DAG on the tiny model.
    """
    import numpy as np
    import yaml

    from passionsr.data.images import write_uint8

    rng = np.random.default_rng(0)

    def image(name, height, width):
        write_uint8(tmp_path / name, rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    for index in (1, 2):
        image(f"LR/080{index}x4.png", 24, 33)
        image(f"HR/080{index}.png", 96, 132)
        image(f"given/080{index}x4.png", 96, 132)
    image("small/LR/1.png", 16, 16)
    image("small/HR/1.png", 64, 64)
    image("photos/0001.png", 200, 220)
    (tmp_path / "crops.tsv").write_text("image\tfx\tfy\tsize\n0001.png\t0.5\t0.5\t128\n")
    log = "image,psnr\n0801x4.png,10.0\n0802x4.png,10.0\n"
    (tmp_path / "log.csv").write_text(log)
    raw = yaml.safe_load(Path("config/test.yaml").read_text())
    entry = {
        "folder": str(tmp_path),
        "lr": "LR/*.png",
        "hr": "HR/*.png",
        "pairing": "div2k",
        "count": 2,
    }
    raw |= {
        "name": "local",
        "test": [
            {"name": "A", **entry},
            {"name": "B", **entry},
            {"name": "C", "folder": str(tmp_path / "small"), "lr": "LR/*.png", "hr": "HR/*.png"},
        ],
        "calibration": {
            "list": str(tmp_path / "crops.tsv"),
            "photos": {"name": "photos", "folder": str(tmp_path), "hr": "photos/*.png"},
        },
        "external_outputs": [
            {
                "name": "theirs",
                "title": "Theirs",
                "dataset": "A",
                "folder": str(tmp_path / "given"),
                "published": str(tmp_path / "log.csv"),
            }
        ],
        "inference": {
            "resize": "official",
            "process_size": 64,
            "latent_tile": 16,
            "latent_overlap": 8,
        },
        "resize_mismatch": True,
        "runs": [
            {"methods": ["minmax"], "schemes": ["W8A8"], "scopes": ["UV"], "seeds": [1]},
            {"methods": ["minmax"], "schemes": ["W4A4"], "scopes": ["U"], "seeds": [0]},
        ],
        "limit": {"test": 1},
        "metrics": ["psnr", "niqe", "psnr_fp"],
    }
    raw.pop("sensitivity")
    (finished / "config" / "local.yaml").write_text(yaml.safe_dump(raw))
    arguments = ["all", "--config", "file=config/local.yaml"]
    result = snakemake(finished, *arguments)
    assert result.status == 0, result.output[-3000:]
    folder = finished / "results" / "local"
    rows = list(csv.DictReader((folder / "scores" / "minmax-W8A8-UV-s1" / "psnr.csv").open()))
    tested = {("A", "0801x4"), ("B", "0801x4"), ("C", "1")}
    assert {(r["dataset"], r["image"]) for r in rows} == tested
    assert all(float(r["value"]) > 0 for r in rows)
    given = list(csv.DictReader((folder / "scores" / "theirs" / "psnr.csv").open()))
    assert {r["image"] for r in given} == {"0801x4", "0802x4"}
    parity = list(csv.DictReader((folder / "tables" / "parity.csv").open()))
    assert [(r["metric"], r["images"]) for r in parity] == [("psnr", "2")]
    text = (folder / "tables" / "table2.md").read_text()
    assert text.index("*A, measured here*") < text.index("| Theirs") < text.index("*B, measured")
    check_numbers_of_datasets(finished, monkeypatch)
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "crops_W8A8.png", "loss_curves.png", "loss_curves.csv", "ranges_let.png", "bits_sweep.png",
    }  # fmt: skip
    again = snakemake(finished, *arguments)
    assert "Nothing to be done" in again.output
    image("HR/0802.png", 96, 132)  # outside the limit, but the sheet holds its hash
    jobs = planned(snakemake(finished, "-n", *arguments))
    assert {"data", "score_external", "tables"} <= set(jobs)
