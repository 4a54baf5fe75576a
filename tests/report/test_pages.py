"""Generated pages: no HTML in tables, what stays where nothing was measured, the headline."""

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from passionsr.report.pages import BLOCKS, fill, update
from passionsr.report.result_pages import headline, results_page, table_section
from passionsr.report.table_list import table_spec
from passionsr.utils.files import UserError

RESULTS = (Path("docs/results/mini.md"), Path("docs/results/mini-full.md"))


def table(rows):
    """rows: (bits, method, psnr, low, high, best, undecided) -> a CSV's frame; LPIPS is n/a."""
    names = ["bits", "method", "psnr", "psnr_lo", "psnr_hi", "best", "undecided"]
    frame = pd.DataFrame(rows, columns=names).assign(source="measured here")
    empty = dict.fromkeys(("lpips", "lpips_lo", "lpips_hi"), float("nan"))
    return frame.assign(dataset="embedded test set", **empty)


EXAMPLE = table(
    [
        ("W32A32", "FP32", 25.0, 24.0, 27.0, "", ""),
        ("W8A8", "A", 24.0, 23.0, 25.0, "psnr", ""),
        ("W6A6", "A", 20.0, 19.0, 21.5, "psnr", ""),
        ("W6A6", "B", 19.0, 18.0, 20.0, "", "psnr"),
    ]
)


def results(folder, frame=EXAMPLE):
    """A results folder with every table that a page needs."""
    (folder / "tables").mkdir(parents=True)
    (folder / "figures").mkdir()
    for name in ("table2", "table4", "unet_only"):
        frame.assign(seconds=10, mib=20).to_csv(folder / "tables" / f"{name}.csv", index=False)
    (folder / "tables" / "table3.md").write_text("**Table 3 (x): sizes**\n\n| a |\n|---|\n| 1 |\n")
    Image.new("RGB", (8, 8)).save(folder / "figures" / "crops_W6A6.png")
    return folder


@pytest.mark.parametrize("page", RESULTS, ids=lambda page: page.stem)
def test_no_html_in_tables(page):
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    assert lines
    assert not [line for line in lines if "<" in line]


def test_intervals_stand_in_their_own_columns():
    text = table_section(table_spec("unet_only"), EXAMPLE).splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text if line[:1] == "|"]
    assert cells[0] == ["bits", "method", "PSNR-Y ↑", "95 %"]
    assert cells[2:] == [
        ["W32A32", "FP32", "25.00", "24.00 .. 27.00"],
        ["W8A8", "A", "**24.00**", "23.00 .. 25.00"],
        ["W6A6", "A", "**20.00**", "19.00 .. 21.50"],
        ["W6A6", "B", "19.00 ≈", "18.00 .. 20.00"],
    ]
    assert "Not computed here: LPIPS." in text


def test_headline(tmp_path):
    lines = headline(results(tmp_path / "x")).splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    assert cells[0] == ["method", "PSNR-Y ↑"]
    assert cells[2:] == [  # W8A8 is not in it
        ["FP32", "25.00 ± 1.50"],
        ["A", "**20.00 ± 1.25**"],
        ["B", "19.00 ± 1.00 ≈"],
    ]


def test_headline_of_the_whole_grid_has_at_most_ten_rows(tmp_path):
    many = table([("W6A6", f"M{i}", 20.0, 19.0, 21.0, "", "") for i in range(12)])
    lines = headline(results(tmp_path / "x", many)).splitlines()
    assert len([line for line in lines if line.startswith("| M")]) == 10


def test_a_page_needs_its_tables(tmp_path):
    folder = results(tmp_path / "x")
    assert "## Table 3 (x): sizes\n\n<!-- table3 -->\n\n| a |" in results_page(folder)
    assert "released" not in results_page(folder)  # a table that not every run has
    (folder / "tables" / "table4.csv").unlink()
    with pytest.raises(UserError, match=r"table4\.csv: not found; run `make all` first"):
        results_page(folder)


def test_blocks_of_a_page():
    text = "a\n<!-- x -->\nold\n<!-- /x -->\nb\n"
    assert fill(text, "x", "new\n") == "a\n<!-- x -->\n\nnew\n\n<!-- /x -->\nb\n"
    with pytest.raises(UserError, match=r"page\.md has no markers <!-- y -->"):
        fill(text, "y", "", Path("page.md"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty checkout with the pages of two blocks and a finished results/mini."""
    config = Path("config").resolve()
    monkeypatch.chdir(tmp_path)
    Path("config").symlink_to(config)
    float_rows = [
        ("W32A32", n, v, v - 1, v + 1, "", "") for n, v in (("Bicubic", 24.0), ("FP32", 25.0))
    ]
    results(Path("results/mini"), table(float_rows))
    for block in BLOCKS:
        if block.name in ("headline", "quality", "difficulty"):
            block.page.parent.mkdir(parents=True, exist_ok=True)
            with block.page.open("a") as stream:
                stream.write(f"<!-- {block.name} -->\nold {block.name}\n<!-- /{block.name} -->\n")
    return tmp_path


def test_what_cannot_be_made_stays_and_is_said(here, capsys):
    update(Path("README.md"), Path("results/mini"), Path("results/mini-full"))
    said = capsys.readouterr().out.splitlines()
    assert "docs/results/mini-full.md stays: results/mini-full is not there" in said
    missing = "results/mini-full/tables/table2.csv is not there"
    assert f"README.md, headline stays: {missing}" in said
    assert (
        "docs/guides/performance.md, bench stays: docs/guides/performance.md is not there" in said
    )
    assert "old headline" in Path("README.md").read_text()
    card = Path("models/mini/README.md").read_text()
    assert "| PSNR-Y | 24.00     | 25.00          | +1                |" in card
    assert "old quality" not in card
    assert "old difficulty" in card
    assert Path("docs/results/mini.md").is_file()
    assert not Path("docs/results/mini-full.md").exists()
    assert Image.open("docs/images/crops_W6A6.jpg").size == (8, 8)


def test_a_grid_fills_the_rest(here):
    frame = table([("W6A6", "MinMax", 20.0, 19.0, 21.0, "", "")]).assign(psnr_fp=23.25)
    bounds = dict.fromkeys(("psnr_fp_lo", "psnr_fp_hi"), float("nan"))
    results(Path("results/mini-full"), frame.assign(**bounds))
    update(Path("other.md"), Path("results/mini"), Path("results/mini-full"))
    assert "| UNet only  | 23.2 dB |" in Path("models/mini/README.md").read_text()
    assert Path("docs/results/mini-full.md").is_file()
    assert "old headline" in Path("README.md").read_text()  # the blocks went to other.md: absent
    Path("README.md").rename("other.md")
    update(Path("other.md"), Path("results/mini"), Path("results/mini-full"))
    assert "| MinMax   | 20.00 ± 1.00 | 23.25            |" in Path("other.md").read_text()
