"""What lies in the results folder and is none of the workflow's: never named, changed, deleted."""

import os
import time

import pytest
from copies import TEST, copy_repository, results_of, snakemake

NOTES = (
    "tables/note.md", "tables/._table2.md", "tables/table2.md~", "runs/mine/fit.csv",
    "images/my_run/crop.png", "figures/old.png", "data/test/HR/._a.png", ".tmp-notes.png",
    "todo.json",
)  # fmt: skip


@pytest.mark.slow
def test_a_note_is_not_cut_off(tmp_path):
    """Notes without a last line's end, from the future; then a table that was cut off."""
    folder = copy_repository(tmp_path / "repo")
    results = results_of(folder, TEST)
    ahead = time.time() + 1e6
    for name in NOTES:
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_text("mine")
        os.utime(results / name, (ahead, ahead))
    status, output = snakemake(folder, *TEST, "--dry-run")
    assert status == 0, output[-3000:]
    (results / "tables" / "table2.md").write_text("| cut")
    (results / "figures" / "loss_curves.png").write_bytes(b"cut")
    status, output = snakemake(folder, *TEST, "--dry-run")
    assert status == 1
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: 2 files were cut off (power loss, full disk); remove, then give")
    named = line.partition("again: rm -f ")[2].split()
    assert sorted(named) == [
        "results/test/figures/loss_curves.png",
        "results/test/tables/table2.md",
    ]
    for name in NOTES:
        assert (results / name).read_text() == "mine"
        assert (results / name).stat().st_mtime == pytest.approx(ahead, abs=1)
