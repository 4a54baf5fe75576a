"""config/expected.tsv holds the numbers of docs/results/; each way of leaving it is one line."""

import shutil
from pathlib import Path

import pytest

from passionsr.cli import main
from passionsr.report.bands import margin, measured, read_bands, violations, write_bands
from passionsr.report.rendering import EMBEDDED

EXPECTED = Path("config/expected.tsv")
PAGE = Path("docs/results/mini.md")


@pytest.mark.parametrize("page", [PAGE, PAGE.with_name("mini-full.md")], ids=lambda page: page.stem)
def test_a_page_lies_inside(page, capsys):
    assert main(["check-results", str(page)]) == 0
    assert "0 violations" in capsys.readouterr().out
    # Every row of the benchmark's tables is there.
    keys = read_bands(EXPECTED)[page.stem]
    assert {key.dataset for key in keys} == {EMBEDDED}
    rows = {(key.table, key.bits, key.method) for key in keys}
    assert {("table2", "W6A6", "PassionSR"), ("table4", "W6A6", "PassionSR w/o DQC")} <= rows
    assert ("unet_only", "W6A6", "MinMax") in rows


def test_bands_are_two_sided_and_as_wide_as_documented():
    _, numbers = measured(PAGE)
    bands = read_bands(EXPECTED)["mini"]
    for key, (low, high) in bands.items():
        # 1e-4: four digits in the file
        assert high - low == pytest.approx(2 * margin(key.bits, key.metric), abs=1.1e-4), key
        assert low < numbers[key] < high


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copy(PAGE, tmp_path / PAGE.name))


def test_a_number_outside_is_one_line(copy, capsys):
    """Both sides, the first PassionSR row at W6A6."""
    text = copy.read_text()
    line = next(x for x in text.splitlines() if "PassionSR " in x and " .. " in x)
    number = measured(copy)[1]["table2", EMBEDDED, "W8A8", "PassionSR", "psnr"]
    assert f"{number:.2f}" in line
    for changed in (number - 1.7, number + 1.7):
        copy.write_text(text.replace(line, line.replace(f"{number:.2f}", f"{changed:.2f}", 1)))
        found = violations(copy, EXPECTED)
        assert len(found) == 1
        assert found[0].startswith(f"mini table2 W8A8 PassionSR psnr: {changed:.4f} is outside")
        assert main(["check-results", str(copy)]) == 1
        assert "1 violations" in capsys.readouterr().out


def test_a_missing_and_a_new_row(copy):
    text = copy.read_text()
    line = next(x for x in text.splitlines() if "| LSQ " in x and " .. " in x)
    copy.write_text(text.replace(line + "\n", "", 1))
    assert [x for x in violations(copy, EXPECTED) if "table2 W6A6 LSQ" in x and "missing" in x]
    copy.write_text(text.replace("| LSQ  ", "| New  ", 1))
    assert any(
        x == f"mini table2 W6A6 New: a row without bands in {EXPECTED}"
        for x in violations(copy, EXPECTED)
    )


def test_results_folder_gives_the_numbers_of_its_tables(tmp_path):
    folder = tmp_path / "some"
    (folder / "tables").mkdir(parents=True)
    head = "source,dataset,bits,method,psnr,musiq,best\n"
    for name in ("table2", "table4", "unet_only"):
        (folder / "tables" / f"{name}.csv").write_text(
            head + "measured here,x,W6A6,A,20.5,,psnr\npublished,y,W6A6,A,99,1,\n"
        )
    assert measured(folder) == ("some", {(t, "x", "W6A6", "A", "psnr"): 20.5 for t in
                                         ("table2", "table4", "unet_only")})  # fmt: skip
    path = tmp_path / "bands.tsv"
    assert write_bands(folder, path) == 3
    assert violations(folder, path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["docs/results/mini.md", "--expected", "none.tsv"], "none.tsv: file not found"),
        (["none.md"], "none.md: file not found"),
        (["config"], "config/tables/table2.csv: not found"),
    ],
)
def test_errors(arguments, message, capsys):
    assert main(["check-results", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("bounds", ["2\t1", "x\t1"])
def test_malformed_bands(bounds, tmp_path, capsys):
    path = tmp_path / "e.tsv"
    path.write_text(
        EXPECTED.read_text().splitlines()[0] + f"\nmini\tt\tD\tW6A6\tA\tpsnr\t{bounds}\n"
    )
    assert main(["check-results", "docs/results/mini.md", "--expected", str(path)]) == 2
    assert "line 2: low" in capsys.readouterr().err


def test_a_file_of_an_earlier_version_is_refused(tmp_path, capsys):
    path = tmp_path / "e.tsv"
    path.write_text(
        "results\ttable\tbits\tmethod\tmetric\tlow\thigh\nmini\tt\tW6A6\tA\tpsnr\t1\t2\n"
    )
    before = path.read_text()
    for command in ("check-results", "expect"):
        assert main([command, "docs/results/mini.md", "--expected", str(path)]) == 2
        assert "earlier version has no dataset: make it again" in capsys.readouterr().err
    assert path.read_text() == before
