"""Files about the repository itself: its citation and its hosted CI say what is so."""

from pathlib import Path

import yaml

from passionsr import __version__


def test_the_citation_has_what_its_format_requires():
    """Citation File Format 1.2.0: required are cff-version, message, title and authors."""
    citation = yaml.safe_load(Path("CITATION.cff").read_text())
    known = {
        "cff-version", "message", "title", "authors", "abstract", "type", "version", "license",
        "keywords",
    }  # fmt: skip
    assert {"cff-version", "message", "title", "authors"} <= set(citation) <= known
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"] == [{"name": "passionsr-bench contributors"}]
    assert str(citation["version"]) == __version__
    assert citation["license"] == "MIT"
    assert Path("LICENSE").read_text().startswith("MIT License")


def test_hosted_ci_runs_the_command_of_the_readme():
    """Nothing is tested there that `make test` does not test here, and the other way round."""
    workflow = yaml.safe_load(Path(".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["make test"]
    assert Path(".ci/run").read_text().splitlines()[-1] == "make test"
    python = next(s for s in job["steps"] if s.get("uses", "").startswith("actions/setup-python"))
    assert python["with"]["python-version"] == "3.11"
    cache = next(s for s in job["steps"] if s.get("uses", "").startswith("actions/cache"))
    assert "hashFiles('requirements.lock')" in cache["with"]["key"]
