"""A metric, a title, a table: one entry, and the workflow makes what is new and nothing else."""

import csv
import shutil
import subprocess
import sys

import pytest
from copies import SMALL, edit, environment, results_of, snakemake

pytestmark = pytest.mark.slow
REGISTRY, CONFIG = "passionsr/metrics/registry.py", "config/small.yaml"
RUN = "passionsr-W4A4-UV-s0"
METRIC = """    Metric(name="ssim_rgb", pyiqa="ssim", kind="FR", title="SSIM (RGB)", digits=4,
           lower_better=False, float_margin=0.002, margin=0.04),
"""
TABLE = """    TableSpec(
        name="whole", title="Whole methods ({name})", scope="UV", methods=whole_methods
    ),
"""
SCORE = {"score_W32A32": 1, "score_W4A4": 1}


@pytest.fixture
def copy(undisturbed, tmp_path):
    """A finished small benchmark to change."""
    return shutil.copytree(undisturbed[0], tmp_path / "repo", symlinks=True)


def planned(folder):
    """Job counts of a dry run by rule."""
    status, output = snakemake(folder, *SMALL, "-n")
    assert status == 0, output
    if "Nothing to be done" in output:
        return {}
    lines = output.split("Job stats:")[1].split("total")[0].splitlines()
    pairs = [line.split() for line in lines]
    return {p[0]: int(p[1]) for p in pairs if len(p) == 2 and p[1].isdigit() and p[0] != "all"}


def run(folder):
    status, output = snakemake(folder, *SMALL)
    assert status == 0, output[-3000:]
    assert planned(folder) == {}


def score(folder, metric, run_id=RUN):
    """The single score of a run."""
    path = results_of(folder, SMALL) / "scores" / run_id / f"{metric}.csv"
    with path.open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    return path, row["value"]


def test_a_new_metric_is_the_only_one_computed(copy):
    edit(copy, REGISTRY, "_ALL = (\n", f"_ALL = (\n{METRIC}")
    assert planned(copy) == {}  # known, and asked for by nobody
    path, value = score(copy, "psnr")
    # A score that nobody would compute: what is kept keeps it.
    path.write_text(path.read_text().replace(value, "99.0"))
    edit(copy, CONFIG, "metrics: [psnr,", "metrics: [ssim_rgb, psnr,")
    # `probe` says whether it can be computed; the tables and figures have the configuration's hash.
    assert planned(copy) == {"metric_weights": 1, **SCORE, "tables": 1, "figures": 1}
    run(copy)
    assert score(copy, "psnr")[1] == "99.0"
    # Structural similarity over RGB is near that over Y, and not the same.
    new, y = (float(score(copy, name)[1]) for name in ("ssim_rgb", "ssim"))
    assert new != y
    assert new == pytest.approx(y, abs=0.2)
    assert "SSIM (RGB)" in (results_of(copy, SMALL) / "tables" / "table2.md").read_text()


def test_what_is_only_printed_scores_nothing(copy):
    edit(copy, REGISTRY, 'title="SSIM-Y", digits=4', 'title="SSIM of Y", digits=3')
    assert planned(copy) == {"tables": 1}
    run(copy)
    assert "SSIM of Y" in (results_of(copy, SMALL) / "tables" / "table2.md").read_text()
    edit(copy, REGISTRY, "tolerance=Tolerance(1e-5)", "tolerance=Tolerance(1e-4)")
    assert planned(copy) == {"tables": 1}
    run(copy)
    edit(copy, REGISTRY, "float_margin=0.05, margin=1.6", "float_margin=0.06, margin=1.7")
    assert planned(copy) == {}


def test_a_changed_setting_computes_its_metric_again(copy):
    path, value = score(copy, "psnr")
    path.write_text(path.read_text().replace(value, "99.0"))
    ssim = score(copy, "ssim")[1]
    old = 'name="ssim", pyiqa="ssim", settings=_Y'
    edit(copy, REGISTRY, old, 'name="ssim", pyiqa="ssim"')
    assert planned(copy) == {**SCORE, "tables": 1, "figures": 1}
    run(copy)
    assert score(copy, "ssim")[1] != ssim
    assert score(copy, "psnr")[1] == "99.0"


def test_a_new_table_is_one_entry(copy):
    """It is an output of the workflow, `explain` knows it, and it stands on the page."""
    edit(copy, "passionsr/report/table_list.py", "TABLES = (\n", f"TABLES = (\n{TABLE}")
    assert planned(copy) == {"tables": 1}
    run(copy)
    tables = results_of(copy, SMALL).relative_to(copy) / "tables"
    for suffix in ("csv", "md", "tex"):
        assert (copy / tables / f"whole.{suffix}").is_file()

    def python(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=copy, env=environment(copy), capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    explain = ["-m", "passionsr.cli", "explain", str(tables / "whole.csv")]
    said = python(*explain, "--row", "passionsr-W4A4", "--col", "psnr")
    assert f"psnr = {score(copy, 'psnr')[1]}, recomputed from 1 scores" in said
    make = "from pathlib import Path; from passionsr.report.result_pages import results_page as p"
    page = python("-c", f"{make}; print(p(Path({str(tables.parent)!r})))")
    assert "## Whole methods (small)\n\n<!-- whole -->" in page
