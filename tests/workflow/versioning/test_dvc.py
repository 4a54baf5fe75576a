"""DVC over Snakemake on config/small.yaml.

The round trip, and every way in which old files could pass for new ones.

The tests share one repository, run in order and leave it as they found it: at the commit of
`versioned`, in sync.
"""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from copies import SMALL, check_same, copy_for_dvc, edit, environment
from copies import tree as tree_of

from passionsr.benchmark.paths import PRODUCTS

CONFIG = "config/small.yaml"
NAME = {
    "GIT_AUTHOR_NAME": "t",
    "GIT_AUTHOR_EMAIL": "t@t",
    "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@t",
}
FEWER = "[psnr,psnr_fp]"


def run(folder, *command, ok=True):
    """Run a command in a copy; its output, with stderr."""
    result = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder, **NAME),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode == 0) == ok, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def dvc(folder, *arguments, ok=True):
    return run(folder, sys.executable, "-m", "dvc", *arguments, ok=ok)


def git(folder, *arguments):
    return run(folder, "git", *arguments)


def sync(folder, *arguments, ok=True):
    return run(folder, sys.executable, "workflow/scripts/dvc_sync.py", *arguments, ok=ok)


def jobs(output):
    """What Snakemake ran in one `dvc repro`: rule -> count, the targets left out."""
    pairs = re.findall(r"Finished jobid: \d+ \(Rule: (\w+)\)", output)
    return {rule: pairs.count(rule) for rule in pairs if rule != "all"}


def nothing_to_do(folder):
    assert "Data and pipelines are up to date" in dvc(folder, "status")
    assert "Data and pipelines are up to date" in dvc(folder, "repro")
    planned = run(folder, "snakemake", *SMALL, "-n")
    assert "Nothing to be done" in planned


def tree(folder):
    return tree_of(folder, SMALL)


def back(folder):
    """Code, configuration and products of the commit again."""
    git(folder, "checkout", "--quiet", ".")
    sync(folder, "checkout")


@pytest.fixture(scope="module")
def versioned(tmp_path_factory):
    """A repository, committed, in which `dvc repro` has run from nothing."""
    folder = tmp_path_factory.mktemp("dvc") / "repo"
    copy_for_dvc(folder, SMALL)
    dvc(folder, "repro")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "repro")
    return folder


@pytest.mark.slow
def test_repro_makes_what_snakemake_makes(versioned, undisturbed):
    folder, expected = undisturbed
    check_same(versioned, expected)
    assert tree(versioned).keys() == tree(folder).keys()  # what is measured is there, too


@pytest.mark.slow
def test_repro_leaves_nothing_to_do(versioned):
    nothing_to_do(versioned)
    assert git(versioned, "status", "--porcelain") == ""


@pytest.mark.slow
def test_push_clone_pull(versioned):
    """A fresh clone gets every byte, also of the files with times in them.

    And neither tool wants to run anything.
    """
    assert "pushed" in dvc(versioned, "push")
    clone = versioned.parent / "clone"
    git(versioned, "clone", "--quiet", ".", str(clone))
    sync(clone, "pull")
    assert tree(clone) == tree(versioned)
    assert (clone / "results/small/metrics.json").read_bytes() == (
        versioned / "results/small/metrics.json"
    ).read_bytes()
    nothing_to_do(clone)
    # Metric weights are no product: what is restored can be built upon.
    edit(clone, CONFIG, "sensitivity: null", "sensitivity: W4A4")
    assert jobs(dvc(clone, "repro")) == {"sensitivity": 1, "tables": 1, "figures": 1}


@pytest.mark.slow
def test_a_changed_bit_width_runs_only_what_it_needs_and_back(versioned):
    lock, before = (versioned / "dvc.lock").read_bytes(), tree(versioned)
    edit(versioned, CONFIG, "schemes: [W4A4]", "schemes: [W4A4, W6A6]")
    output = dvc(versioned, "repro")
    assert jobs(output) == {
        "calibrate": 2,
        "infer": 2,
        "score_W6A6": 1,
        "tables": 1,
        "table3": 1,
        "figures": 1,
    }
    grown = tree(versioned)
    assert {p for p in before if before[p] != grown[p]} <= {
        p for p in before if "/tables/" in p or "/figures/" in p
    }
    # Trap "shrink": removed rows must leave the tables and the folders.
    git(versioned, "checkout", "--quiet", CONFIG)
    assert jobs(dvc(versioned, "repro")) == {"tables": 1, "table3": 1, "figures": 1}
    assert tree(versioned) == before
    assert (versioned / "dvc.lock").read_bytes() == lock


@pytest.mark.slow
def test_trap_changed_code(versioned):
    """Code that makes tables remakes tables; code that makes nothing costs a look."""
    module = "passionsr/report/table_list.py"
    edit(versioned, module, '"Mean over {over}', '"Mean taken over {over}')
    assert jobs(dvc(versioned, "repro")) == {"tables": 1}
    table = versioned / "results/small/tables/table2.md"
    assert "Mean taken over images" in table.read_text()
    back(versioned)
    edit(versioned, "passionsr/cli.py", "import logging", "import json\nimport logging")
    assert jobs(dvc(versioned, "repro")) == {}
    back(versioned)
    nothing_to_do(versioned)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "ran"),
    [
        (
            "threads: 1",
            "threads: 1\nposterior: sample",
            {"reference": 1, "infer": 2, "score_W32A32": 1, "score_W4A4": 1},
        ),
        ("threads: 1", "threads: 1\nresize_mismatch: true", {"score_W32A32": 1, "score_W4A4": 1}),
        ("threads: 1", "threads: 1\nmemory_mb: 2900", {}),
    ],
    ids=["posterior", "resize_mismatch", "memory_mb"],
)
def test_trap_a_key_that_no_stage_names(versioned, old, new, ran):
    """A key that is not in the file yet reaches DVC, too: the whole file is the parameter."""
    edit(versioned, CONFIG, old, new)
    assert jobs(dvc(versioned, "repro")) == {**ran, "tables": 1, "figures": 1}
    back(versioned)


@pytest.mark.slow
def test_experiment_metrics_plots_dag(versioned):
    dvc(versioned, "exp", "run", "--set-param", f"{CONFIG}:metrics={FEWER}", "--name", "fewer")
    assert "fewer" in dvc(versioned, "exp", "show", "--csv")
    summary = "results/small/tables/summary.json"
    diff = json.loads(dvc(versioned, "metrics", "diff", "--json"))[summary]
    gone = diff["W4A4.UV.minmax.ssim"]
    assert gone["new"] is None
    assert gone["old"] > 0
    shown = json.loads(dvc(versioned, "metrics", "show", "--json"))[""]["data"][summary]["data"]
    assert set(shown["W4A4"]["UV"]["minmax"]) == {"psnr", "psnr_fp"}
    assert "metrics" in dvc(versioned, "params", "diff", "--targets", CONFIG)
    dvc(versioned, "plots", "show", "--out", "dvc_plots")
    page = (versioned / "dvc_plots/index.html").read_text()
    assert "<DVC_" not in page
    curves = (versioned / "results/small/figures/loss_curves.csv").read_text().splitlines()
    assert page.count('"phase"') >= len(curves) - 1 > 0
    assert '"method": "PassionSR"' in page
    assert len(list((versioned / "dvc_plots/static").glob("*.png"))) == 2
    assert "benchmark" in dvc(versioned, "dag", "--dot")
    back(versioned)
    nothing_to_do(versioned)


@pytest.mark.slow
def test_traps_stale_records_and_no_records(versioned):
    """Old files under new parameters.

    Snakemake's records describe others (S1), or there are none (S2).
    """
    base, table = "metrics: [psnr, ssim", "results/small/tables/table2.csv"
    swapped = "metrics: [ssim, psnr"
    old = (versioned / table).read_bytes()
    edit(versioned, CONFIG, base, swapped)
    assert jobs(dvc(versioned, "repro"))["tables"] == 1
    expected = (versioned / table).read_bytes()
    assert expected != old
    git(versioned, "checkout", "--quiet", ".")
    dvc(versioned, "checkout")
    assert (versioned / table).read_bytes() == old
    clone = versioned.parent / "clone2"
    git(versioned, "clone", "--quiet", ".", str(clone))
    dvc(versioned, "push")
    dvc(clone, "pull")
    for folder in versioned, clone:
        edit(folder, CONFIG, base, swapped)
        assert "differ from dvc.lock" in sync(folder, ok=False)
    # Nothing simpler than the guard: Snakemake alone takes the old table for the new
    # configuration's.
    run(versioned, "snakemake", "--cores", "1", *SMALL)
    assert (versioned / table).read_bytes() == old
    for folder in versioned, clone:
        assert jobs(dvc(folder, "repro"))["tables"] == 1
        assert (folder / table).read_bytes() == expected
    back(versioned)
    nothing_to_do(versioned)


@pytest.mark.slow
def test_repro_resumes(versioned):
    """A lost file costs its own job and what is made from it, no model."""
    before = tree(versioned)
    (versioned / "results/small/scores/minmax-W4A4-UV-s0/psnr.csv").unlink()
    assert jobs(dvc(versioned, "repro")) == {"score_W4A4": 1, "tables": 1, "figures": 1}
    assert tree(versioned) == before


@pytest.mark.slow
def test_a_failing_snakemake_fails_repro(versioned):
    edit(versioned, CONFIG, "batch_size: 2", "batch_size: 0")
    assert "batch_size: 0 given, expected" in dvc(versioned, "repro", ok=False)
    git(versioned, "checkout", "--quiet", ".")
    nothing_to_do(versioned)


@pytest.fixture
def guard(monkeypatch):
    monkeypatch.syspath_prepend("workflow/scripts")
    import dvc_benchmark

    return dvc_benchmark


def test_a_list_stands_for_its_folder(guard, tmp_path):
    """Outputs whose number only the data knows are declared by a list.

    Images/<run>/set.tsv for set/*.png.
    """
    images = tmp_path / "images" / "run"
    (images / "set").mkdir(parents=True)
    for path in (images / "set.tsv", images / "set" / "a.png", images / "b.png"):
        path.write_text("")
    assert guard.product(images / "set" / "a.png", tmp_path) == images / "set.tsv"
    assert guard.product(images / "b.png", tmp_path) == images / "b.png"
    assert guard.product(images / "set.tsv", tmp_path) == images / "set.tsv"
    assert guard.product(tmp_path / "metrics.json", tmp_path) == tmp_path / "metrics.json"


@pytest.fixture
def guarded(guard, tmp_path, monkeypatch):
    """Runs the guard on results/x with a Snakemake that asks for `asked`; the files before it ran.

    Snakemake has a record of `recorded`, all of another time; DVC's cache has `cached`.
    """
    monkeypatch.chdir(tmp_path)
    results = Path("results/x")
    monkeypatch.setattr(guard, "load_config", lambda _: SimpleNamespace(results=results))

    def run(files, asked, recorded=(), cached=()):
        for name in files:
            (results / name).parent.mkdir(parents=True, exist_ok=True)
            (results / name).write_text(name)
        for name in recorded:
            place = guard.record(results / name)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text('{"endtime": 1.0}')
        for name in cached:
            md5 = hashlib.md5(name.encode()).hexdigest()
            place = guard.CACHE / md5[:2] / md5[2:]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(name)
        before = []

        def snakemake(*arguments, **_):
            there = [f for f in results.rglob("*") if f.is_file()]
            if "--list-untracked" not in arguments:
                before.extend(sorted(f.relative_to(results).as_posix() for f in there))
                return None
            wanted = {results / name for name in asked}
            # As Snakemake does, which never names hidden files.
            return "\n".join(str(f) for f in there if f not in wanted and f.name[0] != ".")

        monkeypatch.setattr(guard, "snakemake", snakemake)
        guard.run_benchmark(Path("x.yaml"), results)
        after = sorted(f.relative_to(results).as_posix() for f in results.rglob("*") if f.is_file())
        return before, after

    return run


NOTES = [
    "tables/note.md",
    "tables/.DS_Store",
    "runs/a/NOTES.txt",
    "figures/mine.png",
    "images/a/a.md",
]


def test_the_guard_deletes_products_only(guarded):
    """Products that Snakemake did not write last go before it runs; nobody's note ever does."""
    files = ["tables/table2.md", "runs/a/run.json", *NOTES]
    before, after = guarded(files, asked=["tables/table2.md", "runs/a/run.json"], cached=files)
    assert before == after == sorted(NOTES)


def test_the_guard_removes_runs_that_nothing_asks_for(guarded):
    """Those of another configuration: known to Snakemake here, or in DVC's cache."""
    made = ["runs/b/run.json", "tables/released.md"]
    brought = ["runs/c/fit.csv", "images/c/0.png", "scores/c/psnr.csv"]
    own = ["runs/d/fit.csv", "images/a/0.png"]  # in no cache: deleting it would lose it
    before, after = guarded(
        [*made, *brought, *own, *NOTES], asked=[], recorded=made, cached=[*brought, *NOTES]
    )
    assert before == sorted([*made, *brought, *own, *NOTES])
    assert after == sorted([*own, *NOTES])


def test_a_file_that_a_list_does_not_name_is_nobodys_output(guarded):
    """`images/a/set.tsv` stands for the images that it names, not for all in the folder."""
    files = ["images/a/set/0801x4.png", "images/a/set/mine.png"]
    results = Path("results/x/images/a")
    results.mkdir(parents=True)
    (results / "set.tsv").write_text("0801x4\t00\n")
    _, after = guarded(files, asked=["images/a/set.tsv"])
    assert after == ["images/a/set/mine.png"]


def test_dvc_yaml_and_the_guard_name_the_same_folders(guard):
    (stage,) = yaml.safe_load(Path("dvc.yaml").read_text())["stages"].values()
    assert stage["outs"] == [{f"${{results}}/{name}": {"persist": True}} for name in guard.OUTS]
    assert "--cores" not in stage["cmd"]  # the command is part of dvc.lock
    assert {*guard.OUTS} == {*PRODUCTS, "metrics.json"}


def test_the_whole_configuration_is_a_parameter():
    """So that no key can be forgotten.

    DVC asks Snakemake after every change, and Snakemake knows what it reaches.
    """
    (stage,) = yaml.safe_load(Path("dvc.yaml").read_text())["stages"].values()
    assert stage["params"] == [{"${config}": None}]
    assert {"Snakefile", "workflow", "passionsr", "baselines", "config"} <= {*stage["deps"]}
