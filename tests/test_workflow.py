"""The whole DAG on config/test.yaml, in a copy of the repository: the commands of the README."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from passionsr.config import load_config

PARTS = ("Snakefile", "workflow", "passionsr", "baselines", "config", "profiles", "pyproject.toml")


def snakemake(folder, *arguments, cores=2):
    environment = {
        **os.environ,
        "PASSIONSR_CACHE": str(Path(".cache").resolve()),
        "PYTHONPATH": str(folder),
    }
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", str(cores), *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def small(*arguments):
    """Arguments of the tests' benchmark."""
    return ["all", "--config", "file=config/test.yaml", *arguments]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A repository copy in which the test benchmark has run."""
    folder = tmp_path_factory.mktemp("repo")
    for name in PARTS:
        source = Path(name)
        if source.is_dir():
            shutil.copytree(
                source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy2(source, folder / name)
    result = snakemake(folder, *small())
    assert result.returncode == 0, result.stderr[-3000:] + result.stdout[-2000:]
    assert "results/test/tables/" in result.stdout + result.stderr
    return folder


def tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for kind in ("tables", "figures", "runs")
        for p in sorted((folder / "results" / "test" / kind).rglob("*"))
        if p.is_file()
    }


def planned(result):
    """Job counts of a dry run by rule, from Snakemake's own table."""
    assert result.returncode == 0, result.stderr
    table = (result.stdout + result.stderr).split("Job stats:")[1].split("total")[0]
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
            "scores.csv",
        ):
            assert (folder / name).stat().st_size > 0
        assert len(list((folder / "images").glob("*.png"))) == 2
    for name in ("table2", "ablation", "unet_only", "table3"):
        for suffix in ("csv", "md", "tex"):
            assert (results / "tables" / f"{name}.{suffix}").stat().st_size > 0
    assert {p.name for p in (results / "figures").iterdir()} == {
        "crops_W8A8.png", "crops_W4A4.png", "loss_curves.png", "ranges_let.png",
        "bits_sweep.png", "sensitivity.png",
    }  # fmt: skip
    assert len(list((results / "benchmarks").glob("*.tsv"))) >= 10
    assert not list(results.rglob(".tmp-*"))


def test_one_row_per_number(finished):
    path = finished / "results" / "test" / "runs" / "minmax-W4A4-UV-s0" / "scores.csv"
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 2 * 5  # images x metrics
    values = {(r["image"], r["metric"]): r["value"] for r in rows}
    assert len(values) == len(rows)
    for (_, metric), value in values.items():
        if metric != "musiq":  # needs a model hub
            float(value)


def test_second_run_has_nothing_to_do(finished):
    result = snakemake(finished, *small())
    assert result.returncode == 0
    assert "Nothing to be done" in result.stdout + result.stderr


def test_a_new_bit_width_runs_only_what_it_needs(finished):
    path = finished / "config" / "test.yaml"
    before = path.read_text()
    path.write_text(before.replace("schemes: [W8A8, W4A4]", "schemes: [W8A8, W4A4, W6A6]"))
    try:
        jobs = planned(snakemake(finished, *small("-n")))
    finally:
        path.write_text(before)
    assert jobs == {
        "all": 1,
        "calibrate": 2,
        "infer": 2,
        "score_W6A6": 1,
        "tables": 1,
        "figures": 1,
    }


def test_changed_code_runs_again(finished):
    path = finished / "passionsr" / "tables.py"
    before = path.read_text()
    path.write_text(before + "\n# changed\n")
    try:
        jobs = planned(snakemake(finished, *small("-n")))
    finally:
        path.write_text(before)
    assert jobs == {"all": 1, "tables": 1}


def test_a_deleted_run_comes_back_with_the_same_bytes(finished):
    """Same machine, same seed: artifacts, images, scores, tables and figures are byte-identical."""
    before = tree(finished)
    for name in ("runs/passionsr-W4A4-UV-s0", "tables", "figures"):
        shutil.rmtree(finished / "results" / "test" / name)
    result = snakemake(finished, *small(), cores=1)
    assert result.returncode == 0, result.stderr[-3000:]
    after = tree(finished)
    assert before.keys() == after.keys()
    # Seconds and memory differ; everything else may not.
    different = {k for k in before if before[k] != after[k]}
    assert different <= {
        "results/test/runs/passionsr-W4A4-UV-s0/run.json",
        "results/test/tables/cost.md",
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("methods: [minmax, passionsr]", "methods: [minmax, gptq]", "method 'gptq' is unknown"),
        ("schemes: [W8A8, W4A4]", "schemes: [W0A0]", "bit width 0 is not supported"),
        ("model: tiny", "model: models/none", "model models/none is not there"),
        ("batch_size: 2", "batchsize: 2", "'batchsize' was unexpected"),
    ],
)
def test_bad_configuration_stops_before_any_job(finished, old, new, message):
    path = finished / "config" / "test.yaml"
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new))
    try:
        result = snakemake(finished, *small("-n"))
    finally:
        path.write_text(before)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_an_artifact_of_another_configuration_is_refused(finished):
    """The table stage checks that every run was made from this configuration."""
    import json

    path = finished / "results" / "test" / "runs" / "minmax-W8A8-UV-s0" / "run.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "run_digest": "0" * 16}))
    try:
        result = subprocess.run(
            [sys.executable, "workflow/scripts/stage.py", "tables", "--config", "config/test.yaml"],
            cwd=finished, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(finished)},
        )  # fmt: skip
    finally:
        path.write_text(before)
    assert result.returncode != 0
    assert "its artifact comes from another configuration" in result.stderr
    assert "Traceback" not in result.stderr
