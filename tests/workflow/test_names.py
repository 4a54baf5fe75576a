"""Names that users give, through the whole workflow: paths with all that a shell reads."""

import csv

import pytest
import yaml
from copies import copy_repository, snakemake
from PIL import Image

pytestmark = pytest.mark.slow
CONFIG = 'my configs/it\'s {a} "grid" & 50% $HOME.yaml'
IMAGES = ["a b", "-x", "it's", "$HOME", "007", "NA", "50%", "ä"]


@pytest.fixture(scope="module")
def finished_with_names(tmp_path_factory):
    """A benchmark whose checkout, configuration, model, data and titles have unusual names."""
    folder = copy_repository(tmp_path_factory.mktemp("names") / "my check'out")
    for kind, size in (("LR", 32), ("HR", 128)):
        (folder / "my data" / kind).mkdir(parents=True)
        for index, name in enumerate(IMAGES):
            image = Image.effect_noise((size, size), 40.0 + index).convert("RGB")
            image.save(folder / "my data" / kind / f"{name}.png")
    raw = yaml.safe_load((folder / "config" / "small.yaml").read_text())
    raw["name"] = "007"
    raw["test"] = [{"name": "NA", "folder": "my data", "lr": "LR/*.png", "hr": "HR/*.png"}]
    raw["methods"] = "my configs/methods.yaml"
    raw["runs"][0]["methods"] = ["null", "_1e5_"]
    raw["metrics"] = ["psnr", "psnr_fp"]
    raw["limit"] = {"calibration": 4}
    (folder / "my configs").mkdir()
    (folder / CONFIG).write_text(yaml.safe_dump(raw))
    methods = {
        "null": {"class": "passionsr.baselines.minmax:MinMax", "title": "_a|b* `$x^{$"},
        "_1e5_": {"class": "passionsr.methods.passionsr:PassionSR", "title": "50% & #1_\\~<b>"},
    }
    (folder / "my configs" / "methods.yaml").write_text(yaml.safe_dump(methods))
    (folder / "my configs" / "budgets.yaml").write_text(
        (folder / "config" / "budgets.yaml").read_text()
    )
    status, output = snakemake(folder, "all", "--config", f"file={CONFIG}", cores=2)
    assert status == 0, output[-4000:]
    return folder, folder / "results" / "007"


def test_every_image_is_in_the_tables(finished_with_names):
    _, results = finished_with_names
    for run in ("null-W4A4-UV-s0", "_1e5_-W4A4-UV-s0", "fp32", "bicubic"):
        with (results / "scores" / run / "psnr.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert {row["image"] for row in rows} == set(IMAGES)
        assert all(float(row["value"]) for row in rows)
    with (results / "tables" / "table2.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["source"] == "measured here"]
    assert [(row["dataset"], row["method"]) for row in rows] == [
        ("NA", "Bicubic"), ("NA", "FP32"), ("NA", "_a|b* `$x^{$"), ("NA", "50% & #1_\\~<b>"),
    ]  # fmt: skip
    assert all(float(row["psnr"]) for row in rows)


def test_titles_are_escaped(finished_with_names):
    _, results = finished_with_names
    markdown = (results / "tables" / "table2.md").read_text()
    assert "| W4A4   | &#95;a&#124;b&#42; &#96;&#36;x^{&#36;" in markdown
    assert "50% &#38; #1&#95;&#92;&#126;&#60;b&#62;" in markdown
    tex = (results / "tables" / "table2.tex").read_text()
    assert r"\_a|b* `\$x\^{}\{\$" in tex
    assert r"50\% \& \#1\_\textbackslash{}\textasciitilde{}\ensuremath{<}b\ensuremath{>}" in tex


def test_a_second_start_has_nothing_to_do(finished_with_names):
    folder, _ = finished_with_names
    status, output = snakemake(folder, "all", "--config", f"file={CONFIG}", "-n")
    assert status == 0, output
    assert "Nothing to be done" in output


def test_cells_are_explained(finished_with_names, monkeypatch, capsys):
    from passionsr.cli import main

    folder, results = finished_with_names
    monkeypatch.chdir(folder)
    table = results.relative_to(folder) / "tables" / "table2.csv"
    assert main(["explain", str(table), "--row", "null-W4A4", "--col", "psnr",
                 "--config", CONFIG]) == 0  # fmt: skip
    assert "recomputed from 8 scores of 1 run(s)" in capsys.readouterr().out
