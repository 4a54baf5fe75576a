"""`passionsr compare`: any two rows, every metric, paired; what cannot be compared is one line."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from passionsr.benchmark.config import load_config
from passionsr.report import compare as module
from passionsr.report.compare import compare
from passionsr.utils.files import UserError

SEEDS, IMAGES = 5, 8


def rows(method, scheme, values, metric="psnr", seeds=range(SEEDS)):
    return pd.DataFrame(
        [
            {"method": method, "scheme": scheme, "scope": "UV", "seed": seed, "dataset": None,
             "image": f"i{i}", "metric": metric, "value": value}
            for seed, line in zip(seeds, np.atleast_2d(values), strict=True)
            for i, value in enumerate(line)
        ]
    )  # fmt: skip


@pytest.fixture
def config():
    return dataclasses.replace(load_config("config/test.yaml"), metrics=("psnr", "lpips"))


@pytest.fixture
def given(monkeypatch, config):
    """compare() of score rows that are given."""

    def compared(frames, *args, **options):
        monkeypatch.setattr(module, "load_scores", lambda _: pd.concat(frames, ignore_index=True))
        return compare(config, *args, **options)

    return compared


def noise(seed=0):
    return np.random.default_rng(seed).normal(0, 1, (SEEDS, IMAGES))


def cells(text, title):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {title}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_difference_that_is_there(given):
    base = 25 + 4 * noise()
    frames = [
        rows("passionsr", "W8A8", base + 1 + 0.1 * noise(1)),
        rows("minmax", "W8A8", base),
        rows("passionsr", "W8A8", 0.2 + 0.01 * noise(2), "lpips"),
        rows("minmax", "W8A8", 0.2 + 0.01 * noise(3), "lpips"),
    ]
    text = given(frames, "passionsr-W8A8", "minmax-W8A8")
    *_, difference, interval, p, ahead = cells(text, "PSNR-Y")
    assert difference == f"{(1 + 0.1 * noise(1)).mean():+.2f}"
    assert float(interval.split()[0]) > 0
    assert float(p) < 0.01
    assert ahead == "passionsr-W8A8"
    assert cells(text, "LPIPS")[-1] == "not decided"
    # Lower is better: the same numbers the other way round.
    swapped = given(frames, "minmax-W8A8", "passionsr-W8A8")
    assert cells(swapped, "PSNR-Y")[3] == difference.replace("+", "-")
    assert cells(swapped, "PSNR-Y")[-1] == "passionsr-W8A8"
    assert "8 images and 5 seed(s)" in text


def test_lower_is_better(given):
    frames = [rows("passionsr", "W8A8", 0.2 + 0.001 * noise(1), "lpips"),
              rows("minmax", "W8A8", 0.3 + 0.001 * noise(2), "lpips")]  # fmt: skip
    text = given(frames, "passionsr-W8A8", "minmax-W8A8")
    assert cells(text, "LPIPS")[-1] == "passionsr-W8A8"
    assert cells(text, "PSNR-Y")[1:4] == ["n/a", "n/a", "n/a"]


def test_a_reference_has_no_seeds(given):
    """FP32 is the same under every seed; by hand where the seeds of the other agree as well."""
    line = np.random.default_rng(4).normal(25, 3, (1, IMAGES))
    moved = line - 1 + np.random.default_rng(5).normal(0, 0.2, (1, IMAGES))
    frames = [rows("fp32", "W32A32", line, seeds=[0]),
              rows("minmax", "W8A8", np.repeat(moved, SEEDS, 0))]  # fmt: skip
    low, high = (
        float(v) for v in cells(given(frames, "fp32", "minmax-W8A8"), "PSNR-Y")[4].split(" .. ")
    )
    gaps = (line - moved)[0]
    expected = stats.t.interval(0.95, IMAGES - 1, gaps.mean(), stats.sem(gaps))
    assert (low, high) == pytest.approx(expected, abs=0.006)  # two digits are printed


def test_one_seed_says_nothing_about_seeds(given):
    frames = [
        rows(m, "W8A8", noise(i)[:1], seeds=[0]) for i, m in enumerate(("passionsr", "minmax"))
    ]
    text = given(frames, "passionsr-W8A8", "minmax-W8A8")
    assert cells(text, "PSNR-Y")[-2:] == ["", ""]
    assert ".." in cells(text, "PSNR-Y")[4]
    assert "with one seed the interval is over images only" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("pasionsr-W8A8", "minmax-W8A8"),
         "row 'pasionsr-W8A8' is not in results/test (scope UV); rows: minmax-W8A8, minmax-W4A4, "
         "passionsr-W8A8, passionsr-W4A4, fp32, bicubic"),
        (("passionsr-W8A8", "minmax-W8A8"),
         "passionsr-W8A8 has seeds [0, 1, 2, 3, 4], minmax-W8A8 [1, 2, 3, 4, 5]: rows of different "
         "seeds cannot be paired; run the same seeds for both"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(given, args, message):
    frames = [
        rows("passionsr", "W8A8", noise()),
        rows("minmax", "W8A8", noise(), seeds=range(1, 6)),
    ]
    with pytest.raises(UserError) as caught:
        given(frames, *args)
    assert str(caught.value) == message


def test_dataset_of_an_embedded_test_set(given):
    with pytest.raises(UserError, match=r"dataset 'RealSR': give --dataset; test has none, its"):
        given([rows("minmax", "W8A8", noise())], "minmax-W8A8", "fp32", dataset="RealSR")
