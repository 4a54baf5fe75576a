"""`passionsr plan`.

The workflow's own graph, known schedules, and what is said where times are missing.
"""

import dataclasses
import re
import subprocess

import pytest
from copies import TEST, environment

from passionsr.benchmark import plan as lib
from passionsr.benchmark.config import load_config
from passionsr.benchmark.job_graph import Job, build_jobs, visits
from passionsr.benchmark.plan import COLUMNS, plan, record
from passionsr.benchmark.schedule import ON_GPU, schedule
from passionsr.benchmark.timing import job_times
from passionsr.cli import main
from passionsr.utils.files import UserError

HEAD = "\t".join(COLUMNS)


def test_jobs_and_edges_are_snakemakes(pytestconfig):
    """The jobs by their names, and what each waits for.

    A benchmark file and a log carry those names.
    """
    config = load_config("config/test.yaml")
    root = pytestconfig.rootpath
    result = subprocess.run(
        ["snakemake", *TEST, "--dag", "dot"],
        cwd=root, env=environment(root), capture_output=True, text=True, check=True,
    )  # fmt: skip
    nodes = dict(re.findall(r'\t(\d+)\[label = "([^"]+)"', result.stdout))
    edges = set(re.findall(r"\t(\d+) -> (\d+)\n", result.stdout))

    def label(number):
        rule, _, run = nodes[number].partition("\\nrun: ")
        if rule == "infer":  # Snakemake shows a wildcard at its first job only
            (run,) = (nodes[a].partition("\\nrun: ")[2] for a, b in edges
                      if b == number and nodes[a].startswith("calibrate"))  # fmt: skip
        if rule.startswith("score_"):
            return rule.replace("_", "-")
        return f"{rule}-{run}" if run else rule

    theirs = {n: label(n) for n in nodes if nodes[n] != "all"}
    ours = build_jobs(config, 2, 4)
    assert sorted(theirs.values()) == sorted(ours)
    assert {(theirs[a], theirs[b]) for a, b in edges if b in theirs} == {
        (need, job.label) for job in ours.values() for need in job.needs
    }


def test_external_outputs_are_scored(shared):
    """One more scoring job, over all its images; the tables wait for it."""
    config = load_config("config/realsr-local.yaml")
    made = build_jobs(config, 6, 24)
    assert made["score-osediff"] == Job("score-osediff", 100, ("data", "metric_weights"))
    waiting = {job.label for job in made.values() if "score-osediff" in job.needs}
    assert waiting == {"tables"}


def jobs(**needs):
    return {
        label: Job(label, 1, tuple(after.split())) for label, after in
        ((name.replace("_", "-"), after.replace("_", "-")) for name, after in needs.items())
    }  # fmt: skip


def test_schedules_worked_by_hand():
    """Four chains on GPUs: the longest first, so that two GPUs end after 6 s, not 7.

    A CPU job waits for no GPU.
    """
    chains = jobs(infer_a="", infer_b="", infer_c="", infer_d="", data_x="")
    seconds = {"infer-a": 2, "infer-b": 3, "infer-c": 3, "infer-d": 4, "data-x": 5}
    assert schedule(chains, seconds, 1).makespan == 12
    two = schedule(chains, seconds, 2)
    assert two.makespan == 6
    assert (two.start["infer-d"], two.start["data-x"]) == (0, 0)
    assert schedule(chains, seconds, 9).makespan == 5
    chain = jobs(data_a="", calibrate_a="data_a", calibrate_b="data_a", infer_a="calibrate_a")
    made = schedule(chain, {"data-a": 1, "calibrate-a": 2, "calibrate-b": 4, "infer-a": 3}, 2)
    assert made.makespan == 6
    assert made.critical == ["data-a", "calibrate-a", "infer-a"]


@pytest.mark.parametrize("gpus", [1, 2, 3, 8, 100])
def test_no_schedule_breaks_a_bound(gpus):
    """Order kept, never more GPUs than there are, and within Graham's bound.

    Work / K + longest chain.
    """
    config = load_config("config/mini-full.yaml")
    made = build_jobs(config, 10, 32)
    seconds = {label: 1 + hash_of(label) % 97 for label in made}
    result = schedule(made, seconds, gpus)
    for label, job in made.items():
        assert all(result.start[label] >= result.end[need] for need in job.needs)
        assert result.end[label] == result.start[label] + seconds[label]
    on_gpu = [label for label in made if made[label].kind in ON_GPU]
    for label in on_gpu:
        at = result.start[label]
        assert sum(result.start[n] <= at < result.end[n] for n in on_gpu) <= gpus
    chain = sum(seconds[label] for label in result.critical)
    work = sum(seconds[label] for label in on_gpu)
    assert max(chain, work / gpus) <= result.makespan <= work / gpus + chain


def hash_of(text):
    return sum(ord(c) * (i + 1) for i, c in enumerate(text))


def test_work_of_a_calibration():
    assert visits({"epochs": 2}, 500, 4) == 1000
    assert visits({"steps": 16}, 24, 4) == 64
    assert visits({"weight_steps": 16, "act_steps": 6, "batch": 8}, 24, 4) == 176
    assert visits({}, 24, 4) == 24


def test_times_scale_with_the_work(tmp_path):
    times = tmp_path / "times.tsv"
    rows = [
        (
            "tiny",
            "calibrate",
            "passionsr.methods.passionsr:PassionSR",
            8,
            10,
            3600,
            500,
            0,
            "measured there",
        ),
        ("tiny", "infer", "*", 1, 1, 1800, 0, 250, "measured there"),
        ("other", "score", "*", 1, 1, 1, 0, 0, "elsewhere"),
    ]
    times.write_text("\n".join([HEAD, *("\t".join(map(str, row)) for row in rows)]) + "\n")
    config = dataclasses.replace(load_config("config/test.yaml"), name="nothing-ran")
    text = plan(config, 1, times)
    # PassionSR: 4 images x 1 epoch = half the measured work, 2 runs; infer: 2 images, 4 runs.
    assert "18 jobs for 4 runs, 2 test and 4 calibration images" in text
    gpu = (2 * (10 + 1800) + 4 * (1 + 3600)) / 3600
    assert f"GPU-hours: {gpu:.2f}; disk: {(2 * 500 + 4 * 2 * 250) / 1000:.2f} GB" in text
    assert "6 times from: measured there" in text
    assert "12 jobs have no measured time" in text
    assert re.search(r"critical path.*calibrate-passionsr-W8A8-UV-s0 -> infer-passionsr-W8A8", text)


def test_what_was_measured_at_no_scale_but_mini(tmp_path):
    """MinMax there : PassionSR there = MinMax here : PassionSR here, per image.

    Start-up is not scaled.
    """
    rows = [
        (
            "tiny",
            "calibrate",
            "passionsr.methods.passionsr:PassionSR",
            10,
            0,
            1000,
            900,
            0,
            "published",
        ),
        (
            "models/mini",
            "calibrate",
            "passionsr.methods.passionsr:PassionSR",
            2,
            5,
            20,
            1,
            0,
            "mini",
        ),
        ("models/mini", "calibrate", "*", 4, 7, 8, 1, 0, "mini"),
    ]
    times = tmp_path / "times.tsv"
    times.write_text("\n".join([HEAD, *("\t".join(map(str, row)) for row in rows)]) + "\n")
    config = dataclasses.replace(load_config("config/test.yaml"), name="nothing-ran")
    job = Job("calibrate-minmax-W8A8-UV-s0", 6, (), "passionsr.baselines.minmax:MinMax")
    made = lib.estimate(config, job, lib.read_times(times))
    assert made.seconds == pytest.approx(7 + 6 * (8 / 4) * (1000 / 10) / (20 / 2))
    assert made.megabytes == 900
    assert made.source == "models/mini, scaled by PassionSR's calibration"
    assert lib.estimate(config, Job("score-W32A32", 6), lib.read_times(times)).source is None


def test_images_that_are_not_there_yet_are_counted():
    """The paper's test sets must have 100 + 93 + 100 images (config/datasets.yaml).

    Its crops are listed.
    """
    text = plan(load_config("config/paper.yaml"), 8)
    assert "63 jobs for 27 runs, 293 test and 500 calibration images" in text
    # data, metric weights, two kinds of tables and the figures: not scaled
    assert "5 jobs have no measured time" in text
    assert "3 times from: models/mini: scores of an image of its size" in text
    assert re.search(r"\| score +\| GPU +\| +3 \| +[1-9]", text)
    assert "scaled times are guesses" in text


def test_a_missing_list_is_no_plan_for_nothing(tmp_path):
    config = dataclasses.replace(load_config("config/test.yaml"), test=tmp_path / "none.tsv")
    with pytest.raises(UserError, match="how many images"):
        plan(config, 1)


def test_a_finished_run_is_taken_as_it_was_and_recorded(finished, monkeypatch, tmp_path):
    monkeypatch.chdir(finished)
    config = load_config("config/test.yaml")
    times = tmp_path / "times.tsv"
    times.write_text(f"{HEAD}\nother\tscore\t*\t1\t1\t1\t0\t0\tkept\n")
    text = plan(config, 2, times)
    assert "18 times from: results/test/benchmarks" in text
    began = [job.label for job in job_times(config.results)]
    assert began[0] in ("data", "metric_weights")
    assert set(began) == build_jobs(config, 2, 4).keys()
    assert "no measured time" not in text
    assert record(config, times, "this test") == 11  # kinds of job, calibrate once per class
    assert times.read_text().endswith("kept\n")
    elsewhere = dataclasses.replace(config, name="nothing-ran")
    hours = re.compile(r"GPU-hours: (\S+); disk: (\S+) GB")
    measured, estimated = (hours.search(t).groups() for t in (text, plan(elsewhere, 2, times)))
    assert measured == estimated  # means of equal work add up to the same sum


def test_shipped_times_cover_the_mini_scale(capsys):
    assert main(["plan", "config/mini-full.yaml", "--gpus", "8"]) == 0
    out = capsys.readouterr().out
    assert "no measured time" not in out
    assert lib.read_times(lib.TIMES)[0]["source"] in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config/none.yaml"], "config/none.yaml: file not found"),
        (["config/test.yaml", "--gpus", "0"], "--gpus 0: give 1 to 1000000000"),
        (["config/test.yaml", "--times", "none.tsv"], "none.tsv: times file not found"),
        (
            ["config/test.yaml", "--times", "config/mini_test.tsv"],
            "expected tab-separated columns model",
        ),
    ],
)
def test_bad_input(capsys, arguments, message):
    assert main(["plan", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
