"""What runs again after a change: of the code, and of every key of a configuration.

`snakemake -n` on a finished benchmark.
"""

import dataclasses
import re
import shutil

import pytest
import yaml
from copies import SMALL, edit, snakemake

from passionsr.benchmark.config import Config

CONFIG = "config/small.yaml"
RUNS = {"minmax-W4A4-UV-s0", "passionsr-W4A4-UV-s0"}


@pytest.fixture(scope="module")
def small(undisturbed, tmp_path_factory):
    """A repository copy in which the small benchmark has run; a test puts back what it changes."""
    return shutil.copytree(
        undisturbed[0], tmp_path_factory.mktemp("reruns") / "repo", symlinks=True
    )


def planned(folder):
    """(rules that would run, run ids that would be calibrated)."""
    status, output = snakemake(folder, *SMALL, "-n", "--quiet", "host")
    assert status == 0, output[-3000:]
    if "Nothing to be done" in output:
        return set(), set()
    jobs = re.findall(r"^(?:local)?rule (\w+):\n((?: .*\n)+)", output, re.M)
    calibrated = [
        re.search(r"wildcards: run=(\S+)", about) for rule, about in jobs if rule == "calibrate"
    ]
    return {rule for rule, _ in jobs} - {"all"}, {found[1] for found in calibrated}


AFTER_CALIBRATION = {"calibrate", "infer", "score_W4A4", "tables", "table3", "figures"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "old", "new", "rules", "runs"),
    [
        (
            "baselines/minmax.py",
            "return FitLog()",
            "return FitLog(rows=[])",
            AFTER_CALIBRATION,
            {"minmax-W4A4-UV-s0"},
        ),
        ("baselines/lsq.py", "log = FitLog()", "log = FitLog(rows=[])", set(), set()),
        (
            "passionsr/methods/passionsr.py",
            "log = FitLog()",
            "log = FitLog(rows=[])",
            AFTER_CALIBRATION,
            {"passionsr-W4A4-UV-s0"},
        ),
        ("passionsr/calibration/fit.py", "EVALUATED = 8", "EVALUATED = 7", AFTER_CALIBRATION, RUNS),
        (
            "passionsr/report/rendering.py",
            "EMBEDDED = ",
            "OTHER = 1\nEMBEDDED = ",
            {"tables"},
            set(),
        ),
        ("passionsr/report/bands.py", "import csv", "import csv, json", set(), set()),
        (
            "passionsr/cli.py",
            "from __future__ import annotations",
            "from __future__ import annotations\nimport csv",
            set(),
            set(),
        ),
    ],
    ids=[
        "one baseline",
        "a baseline without runs",
        "PassionSR",
        "the shared loop",
        "rendering",
        "bands",
        "command line",
    ],
)
def test_changed_code(small, module, old, new, rules, runs):
    """A run depends on the shared core and its own method; the report recomputes no model."""
    before = (small / module).read_text()
    edit(small, module, old, new)
    try:
        ran, calibrated = planned(small)
    finally:
        (small / module).write_text(before)
    assert (ran, calibrated) == (rules, runs)


@pytest.mark.slow
def test_comments_and_docstrings_run_nothing(small):
    changed = (
        "baselines/minmax.py",
        "passionsr/quantization/layer.py",
        "passionsr/report/tables.py",
    )
    before = {name: (small / name).read_text() for name in changed}
    for name, text in before.items():
        (small / name).write_text(re.sub('"""', '"""Changed. ', text, count=1) + "\n# changed\n")
    try:
        assert planned(small) == (set(), set())
    finally:
        for name, text in before.items():
            (small / name).write_text(text)


@pytest.mark.slow
def test_a_new_method_recalibrates_nothing(small):
    """One file and one line in the registry.

    Only its own run is planned once a configuration names it.
    """
    method = small / "baselines" / "mine.py"
    registry, config = small / "config" / "methods.yaml", small / CONFIG
    before = registry.read_text(), config.read_text()
    method.write_text((small / "baselines" / "minmax.py").read_text().replace("MinMax", "Mine"))
    registry.write_text(before[0] + 'mine: {class: "passionsr.baselines.mine:Mine", title: Mine}\n')
    try:
        assert planned(small) == (set(), set())
        edit(small, CONFIG, "methods: [minmax, passionsr]", "methods: [minmax, passionsr, mine]")
        ran, calibrated = planned(small)
    finally:
        method.unlink()
        registry.write_text(before[0])
        config.write_text(before[1])
    assert ran == AFTER_CALIBRATION
    assert calibrated == {"mine-W4A4-UV-s0"}


MODEL = {"reference", *AFTER_CALIBRATION, "score_W32A32"}
SCORES = {"score_W4A4", "score_W32A32"}
DATA = {"data", *MODEL}
# Key -> (a changed value, what it reaches). Tables and figures read the whole configuration.
REACHES = {
    "model": ("sd21-random", MODEL),
    "family": ("passionsr.models.osediff.family:OSEDIFF", MODEL),  # another name is another family
    "test": ("config/other_test.tsv", DATA),
    "calibration": (
        "config/other_calibration.tsv",
        DATA,
    ),
    "limit": ({"test": 1, "calibration": 2}, DATA),
    "methods": ("config/other_methods.yaml", AFTER_CALIBRATION),
    "budget": ("mini", AFTER_CALIBRATION),
    "sensitivity": ("W4A4", {"sensitivity", "tables", "figures"}),
    "batch_size": (4, AFTER_CALIBRATION),
    "metrics": (["psnr", "psnr_fp"], {"metric_weights", *SCORES, "tables", "figures"}),
    "threads": (2, {"metric_weights", *DATA}),
    "posterior": ("sample", {"reference", "infer", *SCORES, "tables", "figures"}),
    "inference": (
        {"latent_tile": 16, "latent_overlap": 4},
        {"reference", "infer", *SCORES, "tables", "figures"},
    ),
    "resize_mismatch": (True, {*SCORES, "tables", "figures"}),
    "device": ("cuda", MODEL),
    "low_memory": (True, {"tables", "figures"}),
    "memory_mb": (4000, {"tables", "figures"}),
    "expected_layers": ({"unet": 1}, AFTER_CALIBRATION),
}
# `name` is another benchmark, in another folder; `runs` has tests of its own; external_outputs and
# datasets need image files.
ELSEWHERE = {"name", "runs", "external_outputs"}


def test_every_key_has_an_expectation():
    """A new key must say what it reaches."""
    keys = {f.name for f in dataclasses.fields(Config)}  # attributes of the checked configuration
    renamed = {"limits": "limit", "entries": "methods", "datasets": "test", "photos": "calibration"}
    known = {*REACHES, *ELSEWHERE, "digest"}
    assert {renamed.get(key, key) for key in keys} == known


@pytest.mark.slow
@pytest.mark.parametrize("key", REACHES)
def test_a_changed_key_reaches_its_jobs(small, key):
    """No product survives a key that reaches it, and nothing else runs again."""
    path = small / CONFIG
    before = path.read_text()
    others = {
        "config/other_test.tsv": _fewer(small / "config/mini_test.tsv"),
        "config/other_calibration.tsv": _fewer(small / "config/mini_calibration.tsv"),
        "config/other_methods.yaml": (small / "config/methods.yaml")
        .read_text()
        .replace("title: PassionSR}", "title: PassionSR, options: {let: false}}"),
    }
    for name, text in others.items():
        (small / name).write_text(text)
    (small / "config/budgets.yaml").touch()
    value, reached = REACHES[key]
    path.write_text(yaml.safe_dump({**yaml.safe_load(before), key: value}))
    try:
        ran, _ = planned(small)
    finally:
        path.write_text(before)
    assert ran == reached


def _fewer(path):
    """A data list without its first row."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return "\n".join([lines[0], *lines[2:]]) + "\n"
