"""The configuration that is given is the one that is planned."""

import re

import pytest
import yaml
from copies import copy_repository, snakemake

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return copy_repository(tmp_path_factory.mktemp("choice") / "repo")


def commands(folder, *arguments):
    """The jobs' commands of a dry run."""
    status, output = snakemake(folder, "all", "-n", "-p", "--quiet", "host", *arguments)
    assert status == 0, output[-3000:]
    found = sorted(re.findall(r"^Shell command: (.*job.py .*)$", output, re.M))
    assert found
    return found


def test_configfile_is_the_configuration(copy):
    """The very jobs and commands of --config file=, and a profile's configfile too."""
    expected = commands(copy, "--config", "file=config/small.yaml")
    assert len(expected) == 12  # jobs
    assert all(" --config config/small.yaml" in line for line in expected)
    assert commands(copy, "--configfile", "config/small.yaml") == expected
    (copy / "lab").mkdir()
    settings = {"configfile": ["config/small.yaml"]}
    (copy / "lab" / "config.yaml").write_text(yaml.safe_dump(settings))
    assert commands(copy, "--profile", "lab") == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--configfile", "config/small.yaml", "--config", "limit=1"], "--config limit=1: the "),
        (["--configfile", "config/small.yaml", "--config", "file=config/test.yaml"],
         "--configfile config/small.yaml and --config file=config/test.yaml: two "),
        (["--configfile", "config/small.yaml", "config/test.yaml"],
         "--configfile config/small.yaml config/test.yaml: a benchmark is one file"),
        (["--config", "file=config"], "config: is a folder, expected a file"),
    ],
    ids=["key of a benchmark", "two ways", "two files", "folder"],
)  # fmt: skip
def test_nothing_is_left_out(copy, arguments, message):
    status, output = snakemake(copy, "-n", *arguments)
    assert status == 1
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {message}")
    assert "Traceback" not in output
