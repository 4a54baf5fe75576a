"""What users bring and cannot be used: one clear line, exit status 2, nothing half-written.

`make bad-inputs` prints the whole table. A row is added to one of the cases_*.py beside this file.
"""

import importlib
from pathlib import Path

import pytest
from bad_inputs.table import KINDS, attempt, check

CACHE = Path(__file__).resolve().parent.parent.parent / ".cache"  # of metric weights
ROWS = [
    row
    for path in sorted(Path(__file__).parent.glob("cases_*.py"))
    for row in importlib.import_module(f"bad_inputs.{path.stem}").ROWS
]


@pytest.mark.bad_inputs
@pytest.mark.parametrize("row", ROWS, ids=[f"{r.kind}-{r.given}" for r in ROWS])
def test_bad_input(row, tmp_path, monkeypatch, capsys, record_property):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PASSIONSR_CACHE", str(CACHE))
    outcome = attempt(row, tmp_path, capsys)
    answer = check(row, tmp_path, outcome)
    made = ", ".join(row.made) or "none"
    record_property("bad_input", [row.kind, row.given, answer, row.status, made])


@pytest.mark.bad_inputs
def test_every_kind_has_rows():
    missing = [title for kind, title in KINDS.items() if kind not in {row.kind for row in ROWS}]
    assert not missing
    names = [(row.kind, row.given) for row in ROWS]
    assert len(names) == len(set(names))
