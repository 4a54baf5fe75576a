"""The same bytes whatever the number of cores and the order of jobs."""

import json
import re
import shutil

import pytest
from copies import SMALL, check_same, copy_repository, results_of, snakemake

from passionsr.benchmark import reproducibility
from passionsr.benchmark.timing import job_times
from passionsr.report.bands import violations

pytestmark = pytest.mark.slow
RUN = "passionsr-W4A4-UV-s0"
ROOT_RULES = ("workflow", "rules", "quantize.smk")


def order(folder):
    """Jobs in the order in which they began."""
    labels = [job.label for job in job_times(results_of(folder, SMALL))]
    assert {"data", "tables"} < set(labels)
    return labels


def test_cores_and_order(undisturbed, tmp_path):
    """One core and reversed priorities (each run inferred before the next) against two cores."""
    finished, expected = undisturbed
    folder = copy_repository(tmp_path / "repo")
    rules = folder.joinpath(*ROOT_RULES)
    text = rules.read_text()
    assert text.count("    priority: 10\n") == 1
    text = text.replace("    priority: 10\n", "    priority: -10\n")
    rules.write_text(re.sub(r"(log:\n\s+f\"{RESULTS}/logs/infer)", r"priority: 20\n    \1", text))
    status, output = snakemake(folder, *SMALL)
    assert status == 0, output[-3000:]
    assert order(folder) != order(finished)
    check_same(folder, expected)


def test_numbers_lie_in_their_bands(undisturbed):
    """What another machine may change is bounded.

    The small benchmark's rows of config/expected.tsv.
    """
    finished, _ = undisturbed
    assert violations(results_of(finished, SMALL), finished / "config" / "expected.tsv") == []


@pytest.mark.parametrize(
    "name", [f"runs/{RUN}/run.json", f"runs/{RUN}/fit.csv", f"images/{RUN}/astronaut_face.png"]
)
def test_the_comparison_sees_a_changed_byte(undisturbed, name, tmp_path):
    """Only what is listed as measured is left out of the comparison."""
    finished, expected = undisturbed
    results = results_of(tmp_path, SMALL)
    shutil.copytree(results_of(finished, SMALL), results)
    path = results / name
    before = path.read_bytes()
    if name.endswith("run.json"):
        about = json.loads(before)
        path.write_text(json.dumps({**about, "seconds": -1, "peak_mib": 0}))
        assert reproducibility.differences(expected, reproducibility.products(results)) == []
        path.write_text(json.dumps({**about, "run_digest": "0"}))
    else:
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    changed = reproducibility.differences(expected, reproducibility.products(results))
    assert changed == [name]
    path.write_bytes(before)
    check_same(tmp_path, expected)
