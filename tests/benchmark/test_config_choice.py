"""--config and --configfile of Snakemake: one configuration, never another than the one given."""

import json
from pathlib import Path

import pytest

from passionsr.benchmark.config_choice import DEFAULT, chosen_file
from passionsr.utils.files import UserError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with two configurations."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    for name in ("a", "b"):
        (tmp_path / "config" / f"{name}.yaml").write_text(f"name: {name}\n")
    return tmp_path


def chosen(config_files=(), **given):
    arguments = [f"{key}={value}" for key, value in given.items()]
    return chosen_file(given, arguments, [Path(name).absolute() for name in config_files])


def test_every_way_to_name_a_configuration_is_one_text(place, monkeypatch):
    """A job's command holds it, and decides whether the job runs again."""
    assert chosen() == DEFAULT
    expected = "config/a.yaml"
    assert chosen(file="config/a.yaml") == expected
    assert chosen(file="./config/a.yaml") == expected
    assert chosen(file=str(place / "config" / "a.yaml")) == expected
    assert chosen(["config/a.yaml"]) == expected
    assert chosen(["config/a.yaml"], file="config/a.yaml") == expected
    link = place / "link"
    link.symlink_to(place / "config")
    assert chosen(["link/a.yaml"]) == "link/a.yaml"
    monkeypatch.setenv("HOME", str(place))
    assert chosen(file="~/config/a.yaml") == expected
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    assert chosen(["../config/a.yaml"]) == chosen(file="../config/a.yaml") == f"../{expected}"


def test_a_config_file_may_hold_what_stands_after_config(place):
    """As a user of Snakemake may keep it; JSON too."""
    Path("run.yaml").write_text("file: config/a.yaml\n")
    assert chosen(["run.yaml"]) == "config/a.yaml"
    assert chosen(["run.yaml"], file="config/a.yaml") == "config/a.yaml"
    Path("run.json").write_text(json.dumps({"file": "config/b.yaml"}))
    assert chosen(["run.json"]) == "config/b.yaml"
    with pytest.raises(UserError, match=r"file: of run.json and --config file=config/a.yaml: two"):
        chosen(["run.json"], file="config/a.yaml")


FILE = "--config file=config/mini.yaml"
KNOWN = f"known: file, the path of a configuration ({FILE})"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fle": "x"}, f"--config fle=x: unknown key; {KNOWN}"),
        ({"File": "x"}, f"--config File=x: unknown key; {KNOWN}"),
        ({"file": "config/a.yaml", "cores": 2}, f"--config cores=2: unknown key; {KNOWN}"),
        ({"batch_size": 2}, "--config batch_size=2: the keys of a benchmark stand in its file: "
         "change batch_size there, or in a copy with another `name:`, and give that as " + FILE),
        *(({"file": value}, "--config file=: no path given, expected that of a configuration "
           f"({FILE})") for value in (None, "")),
        ({"file": 3}, f"--config file=: 3 given, expected the path of a file ({FILE})"),
        ({"file": ["a"]}, f"--config file=: ['a'] given, expected the path of a file ({FILE})"),
    ],
)  # fmt: skip
def test_what_cannot_be_followed_is_an_error(place, given, message):
    with pytest.raises(UserError) as err:
        chosen(**given)
    assert str(err.value) == message


def test_two_configurations(place):
    with pytest.raises(UserError) as err:
        chosen(["config/a.yaml"], file="config/b.yaml")
    assert str(err.value) == (
        "--configfile config/a.yaml and --config file=config/b.yaml: two configurations are named; "
        "give one (a profile may name one)"
    )
    with pytest.raises(UserError) as err:
        chosen(["config/a.yaml", "config/b.yaml"])
    assert str(err.value) == (
        "--configfile config/a.yaml config/b.yaml: a benchmark is one file, and files are not "
        "merged; give one"
    )
    with pytest.raises(UserError) as err:
        chosen_file({"file": "b"}, ["file=a", "file=b"], [])
    assert str(err.value) == "--config file=a file=b: two configurations are named; give one"
