"""The generated files are not older than the definitions that they come from."""

import re
from pathlib import Path

import pytest
from make_reference import PAGES

from passionsr.benchmark.config_keys import ConfigFile
from passionsr.benchmark.config_reference import key_jobs


@pytest.mark.parametrize("name", PAGES)
def test_generated_files_are_up_to_date(name):
    made = PAGES[name]()
    assert Path(name).read_text() == made, f"{name} is old: run python tools/make_reference.py"


def test_the_page_has_a_row_for_every_key():
    page = PAGES["docs/reference/configuration.md"]()
    rows = [row.split(" | ") for row in re.findall(r"^\| `(.*) \|$", page, re.M)]
    described = {row[0].rstrip("`"): (row[1], row[2]) for row in rows if row[-1].strip()}
    assert min(len(row) for row in rows) == 4  # key, type, default, perhaps jobs, description
    assert {path.rpartition(".")[2] for path in key_jobs()} <= described.keys()
    assert set(ConfigFile.model_fields) <= described.keys()
    assert described["threads"] == ("an integer from 1 to 1024", "`1`")
    assert described["device"][1] == "`cpu`"
    assert described["batch_size"][1] == "required"
