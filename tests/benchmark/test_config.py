"""Configurations, the registry, and files that must agree with each other."""

import re
from pathlib import Path

import pytest
import yaml

from passionsr.benchmark.config import Run, load_config, load_methods
from passionsr.utils.files import UserError

CONFIGS = sorted(
    p for p in Path("config").glob("*.yaml") if p.stem not in {"methods", "budgets", "datasets"}
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configurations_are_valid(path):
    config = load_config(path)
    assert config.runs
    assert config.results == Path("results") / path.stem


def test_mini_covers_the_story():
    """Every method and ablation at W6A6, PassionSR against MinMax at every bit width."""
    config = load_config("config/mini.yaml")
    used = {
        scheme: {r.method for r in config.runs if r.scheme == scheme and r.scope == "UV"}
        for scheme in ("W8A8", "W6A6", "W4A4")
    }
    known = {
        name for name, e in load_methods("config/methods.yaml").items() if e.ablation != "released"
    }
    assert used["W6A6"] == known - {"lsq_plus"}
    assert all(methods >= {"minmax", "passionsr"} for methods in used.values())


def changed(tmp_path, **changes):
    raw = yaml.safe_load(Path("config/mini.yaml").read_text())
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**raw, **changes}))
    return path


def block(**changes):
    base = {"methods": ["minmax"], "schemes": ["W8A8"], "scopes": ["UV"], "seeds": [0]}
    return [{**base, **changes}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"typo": 1}, "'typo' was unexpected"),
        ({"runs": []}, "runs"),
        ({"batch_size": 0}, "batch_size: 0 is less than the minimum"),
        ({"metrics": ["psnrr"]}, "unknown metric psnrr"),
        ({"name": "../x"}, "name: '../x' does not match"),
        ({"methods": "config/none.yaml"}, "config/none.yaml: file not found"),
        ({"runs": block(methods=["adaround2"])}, "method 'adaround2' is unknown; known: minmax"),
        ({"runs": block(schemes=["W0A8"])}, "bit width 0 is not supported"),
        ({"runs": block(schemes=["W8A33"])}, "bit width 33 is not supported"),
        ({"runs": block(schemes=["8bit"])}, "does not match"),
        ({"runs": block(scopes=["V"])}, "is not one of"),
    ],
)
def test_bad_configurations(tmp_path, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(changed(tmp_path, **changes))


def test_registry_entries_are_checked(tmp_path):
    (tmp_path / "m.yaml").write_text("x: {klass: 'a:B'}\n")
    with pytest.raises(UserError, match="x: give class"):
        load_methods(tmp_path / "m.yaml")


def test_run_digest_follows_what_a_run_depends_on(tmp_path):
    base = load_config("config/mini.yaml")
    run = Run("passionsr", "W6A6", "UV", 0)
    same = load_config(changed(tmp_path, metrics=["psnr"]))
    assert same.run_digest(run) == base.run_digest(run)
    other = load_config(changed(tmp_path, batch_size=2))
    assert other.run_digest(run) != base.run_digest(run)
    no_let = Run("passionsr_no_let", "W6A6", "UV", 0)
    assert base.run_digest(no_let) != base.run_digest(run)


def test_budget_is_under_the_registrys_options():
    config = load_config("config/mini.yaml")
    options = config.options(Run("passionsr_no_let", "W6A6", "UV", 0))
    assert options["let"] is False
    assert "epochs" in options


def test_budget_by_name_or_in_place(tmp_path):
    run = Run("passionsr", "W6A6", "UV", 0)
    assert load_config(changed(tmp_path, budget="paper")).options(run)["let_lr"] == 1e-5
    own = {"passionsr.methods.passionsr:PassionSR": {"epochs": 7}}
    assert load_config(changed(tmp_path, budget=own)).options(run) == {"epochs": 7}
    assert load_config(changed(tmp_path, budget="default")).options(run) == {}
    with pytest.raises(
        UserError, match=r"budget 'huge' is unknown; .*budgets.yaml has smoke, mini, default, paper"
    ):
        load_config(changed(tmp_path, budget="huge"))


def test_budget_changes_the_digest(tmp_path, monkeypatch):
    """A budget of the same name with other numbers is another configuration."""
    from passionsr.benchmark import config as module

    before = load_config("config/mini.yaml")
    monkeypatch.setattr(
        module, "load_budget", lambda *_: {"passionsr.methods.passionsr:PassionSR": {"epochs": 9}}
    )
    after = load_config("config/mini.yaml")
    assert after.digest != before.digest
    run = Run("passionsr", "W6A6", "UV", 0)
    assert after.run_digest(run) != before.run_digest(run)


def test_unknown_ablation_table(tmp_path):
    path = tmp_path / "methods.yaml"
    path.write_text('a: {class: "m:C", ablation: true}\n')
    with pytest.raises(UserError, match="a: ablation is one of parts, released"):
        load_methods(path)


def locked() -> dict[str, str]:
    found = re.findall(
        r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", Path("requirements.lock").read_text(), re.M
    )
    return {name.lower(): version for name, version in found}


def test_environment_yml_equals_the_lock():
    environment = yaml.safe_load(Path("environment.yml").read_text())
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    pins = dict(line.split("==") for line in pip if "==" in line)
    direct = re.findall(r'^    "([A-Za-z0-9-]+)[><=]', Path("pyproject.toml").read_text(), re.M)
    assert {d.lower() for d in direct} <= set(pins)
    assert pins == {name: locked()[name] for name in pins}


def test_lock_is_hashed_and_names_no_address():
    text = Path("requirements.lock").read_text()
    assert "://" not in text
    assert "--index-url" not in text
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.M)[1:]
    assert len(entries) > 100
    assert all("--hash=sha256:" in entry for entry in entries)
