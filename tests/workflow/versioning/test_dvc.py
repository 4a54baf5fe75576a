"""DVC over Snakemake on config/small.yaml: the round trip, and every way in which old files could pass for new ones.

The tests share one repository, run in order and leave it as they found it: at the commit of `versioned`, in sync.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from copies import SMALL, check_same, copy_for_dvc, edit, environment
from copies import tree as tree_of

from passionsr.benchmark.recovery import PRODUCTS

CONFIG = "config/small.yaml"
STAGES = ["data", "reference", "calibrate", "infer", "score", "report"]
NAME = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t"}  # fmt: skip
FEWER = "[psnr,psnr_fp]"


def run(folder, *command, ok=True):
    """Run a command in a copy; its output, with stderr."""
    result = subprocess.run(
        command, cwd=folder, env=environment(folder, **NAME), capture_output=True, text=True, check=False,
    )  # fmt: skip
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
    return {rule: pairs.count(rule) for rule in pairs if not rule.endswith("_all")}


def skipped(output):
    return re.findall(r"Stage '(\w+)' didn't change, skipping", output)


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
    """A fresh clone gets every byte, also of the files with times in them, and neither tool wants to run anything."""
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
    assert skipped(output) == ["data", "reference"]
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
    edit(
        versioned, "passionsr/tables.py", "Mean over images and seeds", "Mean over seeds and images"
    )
    assert jobs(dvc(versioned, "repro")) == {"tables": 1}
    assert (
        "Mean over seeds and images" in (versioned / "results/small/tables/table2.md").read_text()
    )
    back(versioned)
    nothing_to_do(versioned)


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
    edges = set(re.findall(r'"(\w+)" -> "(\w+)"', dvc(versioned, "dag", "--dot")))
    assert {("data", "reference"), ("data", "calibrate"), ("calibrate", "infer")} <= edges
    assert {("infer", "score"), ("reference", "score"), ("score", "report")} <= edges
    back(versioned)
    nothing_to_do(versioned)


@pytest.mark.slow
def test_traps_stale_records_and_no_records(versioned):
    """Old files under new parameters: Snakemake's records describe others (S1), or there are none (S2)."""
    base, table = "metrics: [psnr, ssim", "results/small/tables/table2.csv"
    swapped = "metrics: [ssim, psnr"
    old = (versioned / table).read_bytes()
    edit(versioned, CONFIG, base, swapped)
    assert jobs(dvc(versioned, "repro", "--single-item", "report")) == {"tables": 1, "figures": 1}
    expected = (versioned / table).read_bytes()
    assert expected != old
    git(versioned, "checkout", "--quiet", ".")
    dvc(versioned, "checkout")
    assert (versioned / table).read_bytes() == old
    clone = versioned.parent / "clone2"
    git(versioned, "clone", "--quiet", ".", str(clone))
    dvc(versioned, "push")
    dvc(clone, "pull")
    # Where there are records the figures are known to be this run's: the order of metrics does not change their bytes, so
    # DVC did not touch them. A clone has no records and trusts no file.
    for folder, wanted in (versioned, ["tables"]), (clone, ["tables", "table3", "figures"]):
        edit(folder, CONFIG, base, swapped)
        assert "differ from dvc.lock" in sync(folder, ok=False)
        ran = jobs(dvc(folder, "repro", "--single-item", "report"))
        assert ran == dict.fromkeys(wanted, 1)
        assert (folder / table).read_bytes() == expected
    back(versioned)
    nothing_to_do(versioned)


@pytest.mark.slow
def test_repro_resumes(versioned):
    """A lost file costs its own job, not its stage."""
    before = tree(versioned)
    (versioned / "results/small/scores/minmax-W4A4-UV-s0.csv").unlink()
    assert jobs(dvc(versioned, "repro")) == {"score_W4A4": 1}
    assert tree(versioned) == before


@pytest.mark.slow
def test_a_failing_stage_fails_repro(versioned):
    edit(versioned, CONFIG, "batch_size: 2", "batch_size: 0")
    assert "batch_size: 0 is less than the minimum" in dvc(versioned, "repro", ok=False)
    git(versioned, "checkout", "--quiet", ".")
    nothing_to_do(versioned)


@pytest.fixture
def guard(monkeypatch):
    monkeypatch.syspath_prepend("workflow/scripts")
    import dvc_stage

    return dvc_stage


def test_a_list_stands_for_its_folder(guard, tmp_path):
    """Outputs whose number only the data knows are declared by a list: images/<run>/set.tsv for set/*.png."""
    images = tmp_path / "images" / "run"
    (images / "set").mkdir(parents=True)
    for path in (images / "set.tsv", images / "set" / "a.png", images / "b.png"):
        path.write_text("")
    assert guard.product(images / "set" / "a.png", tmp_path) == images / "set.tsv"
    assert guard.product(images / "b.png", tmp_path) == images / "b.png"
    assert guard.product(images / "set.tsv", tmp_path) == images / "set.tsv"
    assert guard.product(tmp_path / "metrics.json", tmp_path) == tmp_path / "metrics.json"


def test_dvc_yaml_and_the_guard_name_the_same_folders(guard):
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    assert list(stages) == STAGES
    for name, stage in stages.items():
        assert [o for out in stage["outs"] for o in out] == [
            f"${{results}}/{n}" for n in guard.OWNED[name]
        ]
        assert all(
            options == {"persist": True} for out in stage["outs"] for options in out.values()
        )
        assert "--cores" not in stage["cmd"]
    assert {n for names in guard.OWNED.values() for n in names} == {*PRODUCTS, "metrics.json"}


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(Path("config").glob("*.yaml")) if "\nruns:" in p.read_text()],
    ids=lambda p: p.stem,
)
def test_configurations_have_the_keys_that_dvc_asks_for(path):
    """DVC stops at a parameter that a file does not have."""
    raw = yaml.safe_load(path.read_text())
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"].values()
    asked = [p["${config}"] for stage in stages for p in stage["params"] if "${config}" in p]
    assert len(asked) == len(stages)
    assert {key for keys in asked for key in keys or []} <= raw.keys()


def test_every_module_counts_for_a_product_or_is_ignored():
    """A module in no rule's digest would be a change that DVC sees and Snakemake does not (trap C)."""
    rules = "".join(p.read_text() for p in Path("workflow/rules").glob("*.smk"))
    patterns = re.findall(r'"((?:passionsr|baselines)/[\w/*]+\.py)"', rules)
    counted = {p for pattern in patterns for p in Path().glob(pattern)}
    ignored = {Path(p) for p in Path(".dvcignore").read_text().split("/passionsr/")[1:]}
    ignored = {Path("passionsr") / str(p).strip() for p in ignored}
    # Its results are parameters of the rules; the functions of stages.py are digested one by one.
    known = {Path("passionsr/config.py"), Path("passionsr/stages.py")}
    modules = {
        p
        for top in ("passionsr", "baselines")
        for p in Path(top).rglob("*.py")
        if p.name != "__init__.py"
    }
    assert not counted & ignored
    assert modules - counted - ignored - known == set()
