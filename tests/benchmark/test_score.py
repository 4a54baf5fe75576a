"""The scoring job keeps a score exactly as long as all it was computed from is the same."""

import csv
import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from passionsr.benchmark.config import ExternalOutputs, load_config
from passionsr.benchmark.job_code import metric_code
from passionsr.benchmark.jobs import score as lib
from passionsr.benchmark.paths import scores_file
from passionsr.data.datasets import ImagePair
from passionsr.data.images import write_uint8
from passionsr.metrics import registry, suite, weights
from passionsr.utils.files import UserError, read_json, write_json

RUN = "minmax-W8A8-UV-s0"


@pytest.fixture
def scored(tmp_path, monkeypatch):
    """(config, what was computed): two images in tmp_path; scores are numbers that count up."""
    config = replace(load_config("config/test.yaml"), metrics=("psnr", "niqe", "psnr_fp"))
    monkeypatch.chdir(tmp_path)
    computed = []

    class Counting:
        device = None

        def __init__(self, names, device):
            self.names = names
            Counting.device = device

        def measure(self, sr, hr, fp, resize, only):
            assert fp is not None or "psnr_fp" not in only
            computed.extend(only)
            return {name: (float(len(computed)), "") for name in only}

    monkeypatch.setattr(suite, "MetricSuite", Counting)
    monkeypatch.setattr(lib, "scored_outputs", lambda config, run_id: images(run_id))
    for name in ("a", "b"):
        image(f"lr/{name}.png", 4)
        for folder in ("hr", "fp", "sr"):
            image(f"{folder}/{name}.png", 16)
    write_json(config.results / "metrics.json", dict.fromkeys(config.metrics))
    return config, computed


def image(path, size, seed=0):
    rng = np.random.default_rng([seed, *path.encode()])
    write_uint8(Path(path), rng.integers(0, 256, (size, size, 3), dtype=np.uint8))


def images(run_id):
    reference = None if run_id == "fp32" else "fp"
    return [
        lib.ScoredImage(
            ImagePair(name, Path(f"lr/{name}.png"), Path(f"hr/{name}.png")),
            Path(f"sr/{name}.png"),
            reference and Path(f"{reference}/{name}.png"),
        )
        for name in ("a", "b")
    ]


def again(config, computed, run_ids=(RUN,)):
    """The names that another start of the job computes."""
    del computed[:]
    lib.score(config, run_ids)
    return list(computed)


def rows(config, metric, run_id=RUN):
    with scores_file(config, run_id, metric).open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_nothing_is_computed_twice(scored, monkeypatch):
    config, computed = scored
    assert again(config, computed) == ["psnr", "niqe", "psnr_fp"] * 2
    assert [(r["image"], r["metric"], r["seed"]) for r in rows(config, "niqe")] == [
        ("a", "niqe", "0"), ("b", "niqe", "0"),
    ]  # fmt: skip
    before = {m: scores_file(config, RUN, m).read_bytes() for m in config.metrics}
    monkeypatch.setattr(suite, "MetricSuite", None)  # it is not even built
    assert again(config, computed) == []
    assert before == {m: scores_file(config, RUN, m).read_bytes() for m in config.metrics}


def test_another_device_scores_anew(scored):
    """A GPU's sums end in other digits, so the CPU's scores do not stand for them."""
    config, computed = scored
    assert again(config, computed)
    assert suite.MetricSuite.device == "cpu"
    there = replace(config, device="cuda")
    assert again(there, computed) == ["psnr", "niqe", "psnr_fp"] * 2
    assert suite.MetricSuite.device == "cuda"
    assert again(there, computed) == []


def test_a_new_metric_is_the_only_one_computed(scored):
    config, computed = scored
    assert again(replace(config, metrics=("psnr", "niqe")), computed)
    before = rows(config, "psnr")
    assert again(config, computed) == ["psnr_fp"] * 2
    assert rows(config, "psnr") == before


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("sr/b.png", ["psnr", "niqe", "psnr_fp"]),
        ("hr/b.png", ["psnr"]),
        ("fp/b.png", ["psnr_fp"]),
        ("lr/b.png", []),
    ],
)
def test_a_changed_image_costs_what_is_compared_with_it(scored, path, expected):
    config, computed = scored
    again(config, computed)
    image(path, 4 if path.startswith("lr") else 16, seed=1)
    assert again(config, computed) == expected


def test_float_and_external_outputs_have_no_fidelity(scored):
    config, computed = scored
    assert again(config, computed, ("fp32",)) == ["psnr", "niqe"] * 2
    assert [r["value"] for r in rows(config, "psnr_fp", "fp32")] == ["", ""]
    assert again(config, computed, ("fp32",)) == []


def test_what_is_not_available_is_computed_once_it_is(scored):
    config, computed = scored
    reasons = {"psnr": None, "niqe": "no weights", "psnr_fp": None}
    write_json(config.results / "metrics.json", reasons)
    again(config, computed)
    assert [r["value"] for r in rows(config, "niqe")] == ["", ""]
    write_json(config.results / "metrics.json", dict.fromkeys(config.metrics))
    assert again(config, computed) == ["niqe"] * 2


def test_a_cut_file_is_computed_again(scored):
    """Wherever a file was cut: a row counts only with its whole digest, which stands last."""
    config, computed = scored
    again(config, computed)
    path = scores_file(config, RUN, "psnr")
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        assert again(config, computed) in (["psnr"], ["psnr"] * 2)


def test_sizes_that_may_differ_are_another_score(scored):
    config, computed = scored
    again(config, computed)
    assert len(again(replace(config, resize_mismatch=True), computed)) == 6


def test_a_missing_image_is_named(scored):
    config, _ = scored
    Path("fp/b.png").unlink()
    with pytest.raises(UserError, match=r"fp/b\.png: image not found"):
        lib.score(config, [RUN])


def test_what_an_image_lacks_is_written_with_its_reason_and_final(scored, monkeypatch):
    """The other images and metrics are there; another start of the job tries nothing again."""
    config, computed = scored
    counting = suite.MetricSuite.measure

    def measure(self, sr, hr, fp, resize, only):
        scores = counting(self, sr, hr, fp, resize, only)
        if "niqe" in scores and len(computed) > 3:  # the second image
            scores["niqe"] = (None, "16x16 px; it needs 96 px on each side")
        return scores

    monkeypatch.setattr(suite.MetricSuite, "measure", measure)
    assert again(config, computed) == ["psnr", "niqe", "psnr_fp"] * 2
    assert [(r["value"], r["reason"]) for r in rows(config, "niqe")] == [
        ("3.0", ""), ("", "16x16 px; it needs 96 px on each side"),
    ]  # fmt: skip
    assert all(r["value"] and not r["reason"] for r in rows(config, "psnr"))
    assert again(config, computed) == []
    image("sr/b.png", 16, seed=1)
    assert again(config, computed) == ["psnr", "niqe", "psnr_fp"]


def test_reasons_of_whole_columns(scored):
    config, computed = scored
    write_json(config.results / "metrics.json", {"psnr": None, "niqe": "x", "psnr_fp": None})
    assert again(config, computed, ("fp32",)) == ["psnr"] * 2
    assert {r["reason"] for r in rows(config, "niqe", "fp32")} == {registry.NO_WEIGHTS}
    assert {r["reason"] for r in rows(config, "psnr_fp", "fp32")} == {registry.NO_REFERENCE}


def test_an_external_output_that_is_not_there(scored, monkeypatch):
    """Its image is n/a for every metric, until it comes."""
    config, computed = scored
    given = [dataclasses.replace(i, required=False, reference=None) for i in images(RUN)]
    monkeypatch.setattr(lib, "scored_outputs", lambda config, run_id: given)
    Path("sr/b.png").unlink()
    assert again(config, computed) == ["psnr", "niqe"]
    for metric in ("psnr", "niqe", "psnr_fp"):
        assert rows(config, metric)[1]["reason"] == lib.NO_OUTPUT
    assert again(config, computed) == []
    image("sr/b.png", 16)
    assert again(config, computed) == ["psnr", "niqe"]
    assert [bool(r["value"]) for r in rows(config, "psnr")] == [True, True]


def test_external_outputs_may_lack_images(tmp_path, monkeypatch):
    """Only they: an output that a run should have made is an error."""
    outputs = ExternalOutputs("theirs", "Theirs", "A", tmp_path / "theirs")
    config = replace(load_config("config/test.yaml"), external_outputs=(outputs,))
    pair = ImagePair("A/x", Path("x.png"), Path("x.png"), "A")
    monkeypatch.setattr(lib, "read_sheet", lambda path: [pair])
    assert lib.scored_outputs(config, "theirs") == [
        lib.ScoredImage(pair, tmp_path / "theirs" / "x.png", None, required=False)
    ]
    monkeypatch.setattr(lib, "check_image_lists", lambda config, run_id: None)
    monkeypatch.setattr(lib, "pairs_to_test", lambda config: [pair])
    assert all(i.required for i in lib.scored_outputs(config, RUN))


def test_an_output_of_another_size_is_named(scored, monkeypatch):
    config, _ = scored

    def measure(self, *arguments, only):
        raise UserError("SR is 16x16 but HR is 20x16; they must be of one size")

    monkeypatch.setattr(suite.MetricSuite, "measure", measure)
    with pytest.raises(UserError, match=r"^sr/a\.png: SR is 16x16 but HR is 20x16"):
        lib.score(config, [RUN])


def test_the_probe_survives_weights_that_cannot_be_fetched(scored, monkeypatch):
    config, _ = scored

    def unreachable(cache=None):
        raise UserError("basicsr==1.4.2 could not be downloaded")

    monkeypatch.setattr(weights, "ensure_weights", unreachable)
    lib.probe_metrics(config)
    assert read_json(config.results / "metrics.json") == {
        "psnr": None, "niqe": "basicsr==1.4.2 could not be downloaded", "psnr_fp": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "changes"),
    [
        ("settings", {"test_y_channel": False}, True),
        ("pyiqa", "ssim", True),
        ("kind", "NR", True),
        ("seed", 1, True),
        ("min_side", 5, True),
        ("title", "x", False),
        ("digits", 1, False),
        ("lower_better", True, False),
        ("headline", False, False),
        ("margin", 9.0, False),
        ("float_margin", 9.0, False),
        ("tolerance", None, False),
        ("name", "x", False),
    ],
)
def test_what_computes_a_metric(field, value, changes, monkeypatch):
    before = metric_code("psnr")
    changed = replace(registry.METRICS["psnr"], **{field: value})
    monkeypatch.setitem(registry.METRICS, "psnr", changed)
    assert (metric_code("psnr") != before) == changes


def test_every_field_of_a_metric_is_in_that_list():
    fields = {f.name for f in dataclasses.fields(registry.Metric)}
    marks = test_what_computes_a_metric.pytestmark
    assert {case[0] for mark in marks for case in mark.args[1]} == fields


def test_the_version_of_pyiqa_counts(monkeypatch):
    before = metric_code("psnr")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
    assert metric_code("psnr") != before
