"""`passionsr explain`: every cell traces back to its scores, and a wrong mean is refused."""

import csv
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from copies import environment

from passionsr.benchmark.config import load_config
from passionsr.cli import main
from passionsr.report.explain import table_rows
from passionsr.report.table_list import TABLES as TABLE_LIST
from passionsr.report.table_list import tables_of

TABLES = "results/test/tables"


def explain(table, row, col):
    return main(["explain", f"{TABLES}/{table}", "--row", row, "--col", col])


@pytest.fixture
def here(finished, monkeypatch):
    """Inside the finished copy; files that a test changes are put back."""
    monkeypatch.chdir(finished)
    before = {p: p.read_bytes() for p in Path("results/test").rglob("*.csv")}
    yield finished
    for path, data in before.items():
        path.write_bytes(data)


def test_a_cell_with_all_that_made_it(here, capsys):
    assert explain("table2.csv", "passionsr-W4A4", "psnr") == 0
    out = capsys.readouterr().out
    run = "passionsr-W4A4-UV-s0"
    made = json.loads(Path(f"results/test/runs/{run}/run.json").read_text())
    weights = Path(f"results/test/runs/{run}/artifact/model.safetensors").read_bytes()
    assert f"{run}: mean " in out
    assert re.search(r"seed +0\n", out)
    assert f"config hash {load_config('config/test.yaml').digest}" in out
    assert re.search(rf"git sha +{made['git']}\n", out)
    assert hashlib.sha256(weights).hexdigest() in out
    cell = re.search(r"psnr = (\S+), recomputed from 2 scores of 1 run", out)
    rows = list(csv.DictReader(Path(f"{TABLES}/table2.csv").read_text().splitlines()))
    assert (
        cell[1]
        == next(r for r in rows if (r["method"], r["bits"]) == ("PassionSR", "W4A4"))["psnr"]
    )


def test_it_imports_no_model(here):
    """What is read are scores: torch takes longer to import than all of it."""
    cell = ["explain", f"{TABLES}/table2.csv", "--row", "minmax-W8A8", "--col", "psnr"]
    code = f"import sys; from passionsr.cli import main; assert main({cell}) == 0; "
    code += "print(sorted({'torch', 'diffusers', 'numba', 'pyiqa'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=here, env=environment(here), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_cell_of_every_table(here, capsys):
    config = load_config("config/test.yaml")
    names = [spec.name for spec in tables_of(config)]
    assert {*names, "released", "released_cost"} == {spec.name for spec in TABLE_LIST}
    for name in names:
        rows = table_rows(config, Path(f"{TABLES}/{name}.csv"))
        assert {"table2": 6, "ablation": 5, "table4": 5, "unet_only": 1}[name] == len(rows)
        for row in rows:
            for metric in config.metrics:
                assert explain(f"{name}.csv", row, metric) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "row", "col", "message"),
    [
        ("table2.csv", "passionsr-W2A2", "psnr",
         "no row 'passionsr-W2A2'; rows: bicubic, fp32, minmax-W8A8"),
        ("unet_only.csv", "minmax-W8A8", "psnr", "no row 'minmax-W8A8'; rows: fp32"),
        ("table2.csv", "fp32", "fid", "no column 'fid'; columns: psnr, ssim"),
        ("cost.md", "fp32", "psnr", "give one of table2.csv, ablation.csv, table4.csv"),
        ("../none/table2.csv", "fp32", "psnr", "table2.csv: not found; run the workflow first"),
    ],
)  # fmt: skip
def test_unknown(here, capsys, table, row, col, message):
    assert explain(table, row, col) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_from_another_folder_and_through_a_link(here, capsys, tmp_path, monkeypatch):
    assert explain("table2.csv", "minmax-W8A8", "psnr") == 0
    expected = capsys.readouterr().out
    table = here / TABLES / "table2.csv"
    (tmp_path / "link.csv").symlink_to(table)
    cell = ["--row", "minmax-W8A8", "--col", "psnr"]
    for folder, given in (
        (tmp_path, table),
        (tmp_path, "link.csv"),
        (here / "results" / "test", "tables/table2.csv"),
    ):
        monkeypatch.chdir(folder)
        assert main(["explain", str(given), *cell]) == 0
        assert capsys.readouterr().out == expected
        assert Path.cwd() == folder
    monkeypatch.chdir(here)


def test_a_mean_that_differs_is_refused(here, capsys):
    path = Path("results/test/scores/minmax-W8A8-UV-s0/psnr.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    first = rows[0]["value"]
    path.write_text(path.read_text().replace(first, repr(float(first) + 1e-6)))
    assert explain("table2.csv", "minmax-W8A8", "psnr") == 2
    err = capsys.readouterr().err
    assert "but the mean of its 2 scores is" in err
    assert err.count("\n") == 1
    assert explain("table2.csv", "minmax-W8A8", "ssim") == 0


def test_a_run_of_another_configuration_is_refused(here, capsys):
    text = Path("config/test.yaml").read_text()
    other = here / "other.yaml"
    other.write_text(text.replace("batch_size: 2", "batch_size: 1"))
    try:
        cell = ["--row", "minmax-W8A8", "--col", "psnr"]
        status = main(["explain", f"{TABLES}/table2.csv", *cell, "--config", str(other)])
    finally:
        other.unlink()
    assert status == 2
    assert "its artifact comes from another configuration" in capsys.readouterr().err
