"""What is drawn is what is declared, on grids that are no full product and on small images."""

from pathlib import Path

import numpy as np
import pytest
from made_results import BLOCK, datasets, made, write_outputs

from passionsr.benchmark.config import load_config
from passionsr.report.figure_list import crops_runs, drawn_runs, figure_files, one_seed_each
from passionsr.report.figures import crops_figure, plt, shown_pairs, write_figures, zoom_box

RELEASED = {**BLOCK, "methods": ["official_bias"], "schemes": ["W6A6"]}


def score(run_id, dataset, number, metric):
    return 20.0 + len(run_id) / 8 + number


# Blocks of runs -> scheme -> "method-seed" of the runs side by side in its crops figure.
GRIDS = {
    "full product": (
        [{**BLOCK, "schemes": ["W8A8", "W4A4"], "seeds": [0, 1]}],
        {"W8A8": ["minmax-0", "passionsr-0"], "W4A4": ["minmax-0", "passionsr-0"]},
    ),
    "a seed per bit width": (
        [BLOCK, {**BLOCK, "schemes": ["W4A4"], "seeds": [1]}],
        {"W8A8": ["minmax-0", "passionsr-0"], "W4A4": ["minmax-1", "passionsr-1"]},
    ),
    "a seed per method": (
        [{**BLOCK, "methods": ["minmax"], "seeds": [3, 2]}, {**BLOCK, "methods": ["passionsr"]}],
        {"W8A8": ["minmax-2", "passionsr-0"]},
    ),
    "a seed per scope": (
        [{**BLOCK, "scopes": ["U"]}, {**BLOCK, "seeds": [1]}],
        {"W8A8": ["minmax-1", "passionsr-1"]},
    ),
    "a bit width of UNet only": (
        [BLOCK, {**BLOCK, "scopes": ["U"], "schemes": ["W4A4"]}],
        {"W8A8": ["minmax-0", "passionsr-0"]},
    ),
    "a bit width of released rows only": (
        [BLOCK, RELEASED],
        {"W8A8": ["minmax-0", "passionsr-0"]},
    ),
    "UNet only": (
        [{**BLOCK, "scopes": ["U"]}],
        {"W8A8": ["minmax-0", "passionsr-0"]},
    ),
    "released rows only": ([RELEASED], {}),
    "a method at one bit width": (
        [{**BLOCK, "methods": ["minmax"], "schemes": ["W8A8", "W4A4"]}, BLOCK],
        {"W8A8": ["minmax-0", "passionsr-0"], "W4A4": ["minmax-0"]},
    ),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_every_declared_figure_is_drawn_and_no_other(grid, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    runs, expected = GRIDS[grid]
    test = datasets(tmp_path, "A", count=1)
    config = made(tmp_path, score, runs=runs, test=test)
    shown = {
        scheme: [f"{run.method}-{run.seed}" for run in chosen]
        for scheme, chosen in crops_runs(config).items()
    }
    assert shown == expected
    write_outputs(config)
    write_figures(config)
    assert {*Path("results/made/figures").iterdir()} == {*figure_files(config)}
    assert all(path.stat().st_size for path in figure_files(config))


def test_the_workflow_declares_that_list():
    text = Path("workflow/rules/common.smk").read_text()
    assert "FIGURES = [str(path) for path in figure_files(CFG)]" in text


def test_shipped_configurations_keep_their_figures():
    config = load_config("config/mini-full.yaml")
    assert {path.name for path in figure_files(config)} == {
        "crops_W8A8.png", "crops_W6A6.png", "crops_W4A4.png", "loss_curves.png", "loss_curves.csv",
        "ranges_let.png", "bits_sweep.png", "sensitivity.png",
    }  # fmt: skip
    runs = one_seed_each(drawn_runs(config))
    assert {run.seed for run in runs} == {0}
    assert len(runs) == 10 * 3
    assert len(drawn_runs(config)) == 10 * 3 * 3


def test_without_fidelity_and_with_what_is_missing(monkeypatch, tmp_path):
    """No metric against FP32, or none with a score: the sweep says so."""
    monkeypatch.chdir(tmp_path)
    test = datasets(tmp_path, "A", count=1)
    for keys in ({"metrics": ["psnr"]}, {"metrics": ["lpips_fp"]}):
        config = made(tmp_path, lambda *about: "16x16 px", test=test, **keys)
        write_outputs(config)
        write_figures(config)
        assert {*Path("results/made/figures").iterdir()} == {*figure_files(config)}


def test_seeds_are_said_where_they_differ(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    runs, _ = GRIDS["a seed per method"]
    test = datasets(tmp_path, "AB", count=1, side=4)
    config = made(tmp_path, score, runs=runs, test=test)
    write_outputs(config)
    figure = crops_figure(config, shown_pairs(config), crops_runs(config)["W8A8"])
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    labels = [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]
    plt.close(figure)
    assert titles == ["HR", "LR", "FP32", "MinMax, seed 2", "PassionSR, seed 0"]
    assert labels == ["A/0", "B/0"]


@pytest.mark.parametrize("shape", [(4, 4), (63, 64), (64, 64), (64, 200), (65, 64), (66, 66)])
def test_the_box_lies_in_any_image(shape):
    image = np.zeros((*shape, 3), np.uint8)
    image[:, shape[1] // 2 :: 2] = 255  # all detail in the right half
    y, x = zoom_box(image)
    assert y == 0
    assert x == (128 if shape[1] == 200 else 0)
