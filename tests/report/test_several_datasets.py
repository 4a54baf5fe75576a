"""Two test datasets of different difficulty: nothing that names a number forgets the dataset."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from made_results import BLOCK, datasets, made

from passionsr.cli import main
from passionsr.report.bands import measured, read_bands, violations
from passionsr.report.explain import explain as explain_cell
from passionsr.report.explain import table_rows
from passionsr.report.figures import shown_pairs, sweep_data
from passionsr.report.pages import Sources, difficulty, quality
from passionsr.report.result_pages import headline, results_page
from passionsr.report.tables import write_tables

RESULTS = Path("results/made")
TABLES = RESULTS / "tables"
BANDED = ("table2", "table4", "unet_only")


def score(run_id, dataset, number, metric):
    """Set B is 10 dB (NIQE: 10) above A; every run and metric has numbers of its own."""
    base = {"psnr": 20.0, "niqe": 5.0, "psnr_fp": 30.0}[metric]
    return base + 10 * (dataset == "B") + len(run_id) / 8 + number / 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runs = [BLOCK, {**BLOCK, "methods": ["minmax"], "scopes": ["U"]}]
        test = datasets(folder, "AB")
        outputs = {"name": "theirs", "title": "Theirs", "dataset": "B", "folder": str(folder)}
        config = made(folder, score, test=test, runs=runs, external_outputs=[outputs])
        write_tables(config)
        (TABLES / "table3.md").write_text("**Table 3**\n\n| a |\n|---|\n| 1 |\n")
    return folder, config


@pytest.fixture
def config(folder, monkeypatch):
    monkeypatch.chdir(folder[0])
    return folder[1]


def explain(table, row, col, *more):
    return main(["explain", str(TABLES / table), "--row", row, "--col", col, *more])


def cells():
    """(table, dataset, row of the CSV) of every measured row of the tables of means."""
    for name in (*BANDED, "ablation"):
        with (TABLES / f"{name}.csv").open() as stream:
            for line in csv.DictReader(stream):
                if line["source"] == "measured here":
                    yield name, line["dataset"], line


def test_every_cell_of_every_dataset_is_explained(config):
    seen = 0
    for table in (*BANDED, "ablation"):
        for dataset in "AB":
            rows = table_rows(config, TABLES / f"{table}.csv", dataset)
            for row, (line, _) in rows.items():
                assert line["dataset"] == dataset
                for metric in config.metrics:
                    out = explain_cell(config, TABLES / f"{table}.csv", row, metric, dataset)
                    assert out.startswith(f"{TABLES}/{table}.csv: {dataset}, {row}, {metric} = ")
                    seen += 1
    assert seen == len(config.metrics) * len(list(cells()))
    assert any(line["method"] == "Theirs" for _, _, line in cells())


def test_which_dataset_must_be_said(config, capsys):
    assert explain("table2.csv", "fp32", "psnr") == 2
    assert "table2.csv has several datasets, give --dataset: A, B" in capsys.readouterr().err
    assert explain("table2.csv", "fp32", "psnr", "--dataset", "C") == 2
    assert "no dataset 'C'; datasets: A, B" in capsys.readouterr().err
    assert explain("table2.csv", "theirs", "psnr", "--dataset", "A") == 2
    assert "no row 'theirs'; rows: bicubic, fp32" in capsys.readouterr().err


def test_a_changed_score_is_refused_in_its_dataset_only(config, capsys):
    path = RESULTS / "scores" / "minmax-W8A8-UV-s0" / "psnr.csv"
    before = path.read_text()
    rows = list(csv.DictReader(before.splitlines()))
    first = next(r for r in rows if r["dataset"] == "B")["value"]
    path.write_text(before.replace(f",{first},", f",{float(first) + 1},", 1))
    try:
        assert explain("table2.csv", "minmax-W8A8", "psnr", "--dataset", "B") == 2
        assert "the mean of its 2 scores" in capsys.readouterr().err
        assert explain("table2.csv", "minmax-W8A8", "psnr", "--dataset", "A") == 0
    finally:
        path.write_text(before)


def test_bands_of_every_dataset(config, tmp_path, capsys):
    path = tmp_path / "bands.tsv"
    assert main(["expect", str(RESULTS), "--expected", str(path)]) == 0
    count = sum(bool(line[m]) for name, _, line in cells() if name in BANDED
                for m in config.metrics)  # fmt: skip
    assert capsys.readouterr().out == f"{path}: {count} bands\n"
    bands = read_bands(path)["made"]
    assert len(bands) == count
    for dataset, psnr in (("A", 20.625), ("B", 30.625)):
        low, high = bands["table2", dataset, "W32A32", "FP32", "psnr"]
        assert (low + high) / 2 == pytest.approx(psnr)
    assert violations(RESULTS, path) == []


def test_a_violation_names_its_dataset(config, tmp_path):
    path = tmp_path / "bands.tsv"
    main(["expect", str(RESULTS), "--expected", str(path)])
    lines = path.read_text().splitlines()
    wrong = next(x for x in lines if x.startswith("made\ttable2\tB\tW8A8\tMinMax\tpsnr"))
    name = wrong.rsplit("\t", 2)[0]
    path.write_text("\n".join([x if x != wrong else f"{name}\t1\t2" for x in lines]) + "\n")
    (line,) = violations(RESULTS, path)
    assert line.startswith("made table2 B W8A8 MinMax psnr: 32.")
    path.write_text("\n".join(x for x in lines if "\ttable2\tA\tW8A8\tMinMax\t" not in x) + "\n")
    (line,) = violations(RESULTS, path)
    assert line == f"made table2 A W8A8 MinMax: a row without bands in {path}"


def test_a_page_is_read_back_with_its_datasets(config, tmp_path):
    path = tmp_path / "made.md"
    path.write_text(results_page(RESULTS))
    numbers, printed = measured(RESULTS)[1], measured(path)[1]
    assert numbers.keys() == printed.keys()
    assert {key.dataset for key in numbers} == {"A", "B"}
    for key, value in numbers.items():
        assert printed[key] == pytest.approx(value, abs=0.0051)


def test_the_summary_keeps_datasets_apart(config):
    summary = json.loads((TABLES / "summary.json").read_text())
    assert summary.keys() == {"A", "B"}
    one, other = (summary[d]["W8A8"]["UV"]["minmax"] for d in "AB")
    assert one.keys() == other.keys() == set(config.metrics)
    assert all(other[m] == pytest.approx(one[m] + 10) for m in one)
    assert "theirs" in summary["B"]["W32A32"]["UV"]
    assert "theirs" not in summary["A"]["W32A32"]["UV"]


def test_blocks_of_pages_have_a_table_per_dataset(config):
    sources = Sources(RESULTS, RESULTS)
    for text in (headline(RESULTS), quality(sources), difficulty(sources)):
        first, _, second = text.partition("*B, measured here*\n\n")
        assert first.startswith("*A, measured here*\n\n|")
        assert second.startswith("|")
        assert first.count("\n") > 4
    assert "| PSNR-Y | 21.00     | 20.62" in quality(sources)
    assert "| PSNR-Y | 31.00     | 30.62" in quality(sources)


def test_latex_names_the_datasets(config):
    text = (TABLES / "table2.tex").read_text()
    places = [text.index(rf"\textit{{{dataset}, measured here}}") for dataset in "AB"]
    assert places == sorted(places)


def test_figures_show_every_dataset(config):
    data = sweep_data(config, config.runs[:2])
    means = data[data.metric == "psnr_fp"].groupby("dataset").value.mean()
    assert means["B"] == pytest.approx(means["A"] + 10)
    assert [pair.name for pair in shown_pairs(config)] == ["A/0", "A/1", "B/0", "B/1"]


def test_a_dataset_alone_has_the_same_numbers(config, monkeypatch, tmp_path):
    """The numbers of a dataset do not depend on what else is tested."""
    both = pd.read_csv(TABLES / "table2.csv")
    monkeypatch.chdir(tmp_path)
    alone = made(tmp_path, score, test=datasets(tmp_path / "data", "B"))
    write_tables(alone)
    one = pd.read_csv(TABLES / "table2.csv")
    part = both[(both.dataset == "B") & (both.method != "Theirs")].reset_index(drop=True)
    pd.testing.assert_frame_equal(one[one.dataset == "B"].reset_index(drop=True), part)
