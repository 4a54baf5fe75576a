"""Images that a metric cannot score: n/a with a footnote, and statistics on what there is."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_results import BLOCK, datasets, made

from passionsr.cli import main
from passionsr.metrics.registry import NO_WEIGHTS, missing_note
from passionsr.report.bands import measured, read_bands, violations
from passionsr.report.parity import compare
from passionsr.report.result_pages import headline, results_page
from passionsr.report.statistics import by_seed_and_image, estimate, mark_best, paired
from passionsr.report.tables import write_tables

RESULTS = Path("results/made")
TABLES = RESULTS / "tables"
SMALL = "64x64 px; it needs 96 px on each side"
FLAT = "not finite on this image (is it of one colour?)"


def score(run_id, dataset, number, metric):
    """NIQE: image 1 is too small for everyone, image 0 of MinMax is flat; no weights of MUSIQ."""
    if metric == "musiq":
        return NO_WEIGHTS
    if metric == "niqe" and number == 1:
        return SMALL
    if metric == "niqe" and number == 0 and run_id.startswith("minmax"):
        return FLAT
    return 20.0 + len(run_id) / 8 + number / 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("missing")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        metrics = ["psnr", "niqe", "musiq", "psnr_fp"]
        config = made(folder, score, metrics=metrics, limit={"test": 4})
        write_tables(config)
        (TABLES / "table3.md").write_text("**Table 3**\n\n| a |\n|---|\n| 1 |\n")
    return folder, config


@pytest.fixture
def config(folder, monkeypatch):
    monkeypatch.chdir(folder[0])
    return folder[1]


def table2():
    frame = pd.read_csv(TABLES / "table2.csv", keep_default_na=False, na_values=[""])
    return frame[frame.source == "measured here"].set_index("method")


def test_the_count_and_the_reason_stand_in_the_table(config):
    rows = table2()
    assert list(rows.niqe_note) == [
        f"NIQE: 3 of 4 images; the others: {SMALL}",
        f"NIQE: 3 of 4 images; the others: {SMALL}",
        f"NIQE: 2 of 4 images; the others: {FLAT}; {SMALL}",
        f"NIQE: 3 of 4 images; the others: {SMALL}",
    ]
    assert [c for c in rows if c.endswith("_note")] == ["niqe_note"]  # none for weights
    fp32 = 20.0 + len("fp32") / 8
    assert rows.niqe["FP32"] == pytest.approx(fp32 + (0 + 2 + 3) / 12)
    assert rows.psnr["FP32"] == pytest.approx(fp32 + 6 / 16)
    # MinMax has a better mean of two other images: it is not a winner, and compared on those two.
    assert rows.best["PassionSR"].split(";") == ["psnr", "niqe", "psnr_fp"]
    assert pd.isna(rows.best["MinMax"])


def test_footnotes(config):
    text = (TABLES / "table2.md").read_text()
    assert f"\n\n(1) NIQE: 3 of 4 images; the others: {SMALL}\n\n(2) NIQE: 2 of 4 images" in text
    lines = {line.split("|")[2].strip(): line for line in text.splitlines() if line[:1] == "|"}
    assert " 20.917 (1)<br>" in lines["FP32"]
    assert " (2)" in lines["MinMax"]
    # No footnote where MUSIQ has no weights and the float model no fidelity to itself.
    assert lines["FP32"].count("n/a") == 2
    assert lines["FP32"].count("(") == 1
    tex = (TABLES / "table2.tex").read_text()
    assert r"\textsuperscript{1}" in tex
    assert r"\par\noindent \textsuperscript{2} NIQE: 2 of 4 images" in tex


def test_bands_pages_and_explain_survive(config, tmp_path, capsys):
    path, page = tmp_path / "bands.tsv", tmp_path / "made.md"
    assert main(["expect", str(RESULTS), "--expected", str(path)]) == 0
    assert violations(RESULTS, path) == []
    page.write_text(results_page(RESULTS))
    keys = measured(RESULTS)[1].keys()
    assert measured(page)[1].keys() == keys == read_bands(path)["made"].keys()
    assert f"(1) NIQE: 3 of 4 images; the others: {SMALL}" in page.read_text()
    assert "PSNR-Y" in headline(RESULTS)
    capsys.readouterr()
    for row in ("fp32", "minmax-W8A8", "passionsr-W8A8"):
        for metric in config.metrics:
            cell = ["--row", row, "--col", metric]
            assert main(["explain", str(TABLES / "table2.csv"), *cell]) == 0
    out = capsys.readouterr().out
    assert f"n/a             2 of 4 images; the others: {FLAT}; {SMALL}" in out
    assert f"n/a             0 of 4 images: {NO_WEIGHTS}" in out


def test_without_missing_scores_a_table_has_no_column_of_notes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_tables(made(tmp_path, lambda *about: 20.0 + about[2]))
    assert not [name for name in table2() if name.endswith("_note")]
    assert "(1)" not in (TABLES / "table2.md").read_text()


def test_a_metric_that_no_image_has(monkeypatch, tmp_path):
    """Everything too small: n/a with its footnote in tables and on the page; the others stand."""
    monkeypatch.chdir(tmp_path)
    test = datasets(tmp_path, "A", count=1)
    none = {"niqe": SMALL, "psnr": 30.0, "psnr_fp": 20.0}
    write_tables(made(tmp_path, lambda *about: none[about[3]], test=test))
    rows = table2()
    assert rows.niqe.isna().all()
    assert set(rows.niqe_note) == {f"NIQE: 0 of 1 images: {SMALL}"}
    assert "n/a (1)" in (TABLES / "table2.md").read_text()
    (TABLES / "table3.md").write_text("**Table 3**\n\n| a |\n|---|\n| 1 |\n")
    page = results_page(RESULTS)
    assert f"(1) NIQE: 0 of 1 images: {SMALL}" in page
    assert "Not computed here: NIQE" not in page


def test_one_image_and_one_seed(monkeypatch, tmp_path):
    """One number has no interval."""
    monkeypatch.chdir(tmp_path)
    write_tables(made(tmp_path, score, limit={"test": 1}))
    rows = table2()
    assert rows.psnr.notna().all()
    assert rows.psnr_lo.isna().all()
    assert rows.psnr_hi.isna().all()


@pytest.mark.parametrize(
    "runs",
    [
        [{**BLOCK, "scopes": ["U"]}],
        [{**BLOCK, "seeds": [0]}, {**BLOCK, "schemes": ["W4A4"], "seeds": [1]}],
        [{**BLOCK, "seeds": [0, 1, 2]}, {**BLOCK, "methods": ["lsq"], "seeds": [1]}],
        [{**BLOCK, "methods": ["official_bias"]}],
        [BLOCK, {**BLOCK, "methods": ["lsq"], "schemes": ["W6A6"]}],
    ],
    ids=["U only", "a seed per bit width", "seeds per method", "released only", "one bit width"],
)
def test_grids_that_are_no_product_have_tables(runs, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = made(tmp_path, score, runs=runs)
    write_tables(config)
    found = {
        (row["method"], row["bits"])
        for path in TABLES.glob("*.csv")
        for row in csv.DictReader(path.open())
        if row["source"] == "measured here"
    }
    assert {(config.entries[r.method].title, r.scheme) for r in config.runs} <= found


# -- the statistics by hand ---------------------------------------------------------------------


def scores(values, seed=0):
    """{method: [per image]} -> score rows of PSNR; None is n/a."""
    return pd.DataFrame(
        [
            {"method": m, "seed": seed, "image": i, "metric": "psnr", "value": v}
            for m, series in values.items()
            for i, v in enumerate(series)
        ]
    )


def of(rows, method):
    return rows[rows.method == method]


def test_rows_are_compared_on_the_images_that_both_have():
    """b is 5 dB below a wherever both have a score; its mean is above, of one easy image more."""
    rows = scores({"a": [20.0, 21.0, 22.0, None], "b": [15.0, 16.0, 17.0, 60.0]})
    found = paired(of(rows, "b"), of(rows, "a"))
    assert (found.mean, found.low, found.high, found.images) == (-5.0, -5.0, -5.0, 3)
    assert estimate(by_seed_and_image(of(rows, "b")).to_numpy()).mean == 27


def test_rows_without_an_image_in_common_are_not_compared():
    rows = scores({"a": [20.0, None], "b": [None, 10.0]})
    assert paired(of(rows, "a"), of(rows, "b")) is None


def test_an_image_that_one_seed_lacks_is_left_out_of_the_interval():
    rows = pd.concat([scores({"a": [10.0, 20.0]}), scores({"a": [12.0, None]}, seed=1)])
    values = by_seed_and_image(rows)
    assert values.to_numpy().tolist() == [[10.0], [12.0]]
    assert estimate(values.to_numpy()).seeds == 2


def test_fewer_scores_are_never_best():
    group = pd.DataFrame({"psnr": [30.0, 20.0, 10.0]}, index=list("abc"))
    shares = pd.DataFrame({"psnr": [0.5, 1.0, 1.0]}, index=list("abc"))
    assert list(mark_best(group, ["psnr"]).psnr) == [True, False, False]
    assert list(mark_best(group, ["psnr"], shares).psnr) == [False, True, False]


def test_parity_of_the_images_that_have_a_score(tmp_path):
    ours = scores({"x": [25.0, None]}).assign(image=["a", "b"])
    log = tmp_path / "log.csv"
    log.write_text("image,psnr\na.png,25.0\nb.png,30.0\n")
    (row,) = compare(ours, log, ["psnr"]).itertuples()
    assert (row.images, row.measured, row.published, row.beyond) == (1, 25.0, 25.0, 0)
    assert compare(ours.assign(value=np.nan), log, ["psnr"]).empty


def test_many_reasons_are_cut():
    note = missing_note(1, ["a", "b", "b", "c", "d", "e"])
    assert note == "1 of 7 images; the others: b; a; c; and 2 more reasons"
    assert missing_note(0, ["a"], "scores") == "0 of 1 scores: a"
