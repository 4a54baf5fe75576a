"""What a start looks at.

Cut files of every kind, leftovers of dead processes, the lock of a dead Snakemake.
"""

import json
import os
import subprocess
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from passionsr.benchmark import recovery
from passionsr.data.images import write_uint8
from passionsr.utils.files import UserError, atomic_path, write_csv, write_json


@pytest.fixture
def results(tmp_path):
    run = tmp_path / "runs" / "a"
    write_uint8(run / "x.png", np.zeros((8, 8, 3), np.uint8))
    write_json(run / "run.json", {"a": 1})
    write_csv(run / "fit.csv", [{"a": 1}], ("a",))
    save_file({"w": torch.arange(5)}, run / "model.safetensors", {"k": "v"})
    write_json(tmp_path / "metrics.json", {})
    for note in ("note.txt", "note.md", "mine.csv", "._run.json", "._x.png", "x.png~"):
        (run / note).write_text("no newline, not ours")
    (run / "folder.png").mkdir()
    return tmp_path


NAMES = [
    "runs/a/x.png",
    "runs/a/run.json",
    "runs/a/fit.csv",
    "runs/a/model.safetensors",
    "metrics.json",
]


def products(results):
    """What the workflow declares; a folder may stand in a product's place, too."""
    return [results / name for name in (*NAMES, "runs/a/folder.png", "runs/a/missing.csv")]


def test_whole_files_pass(results):
    """And only products are looked at, never what somebody put beside them."""
    recovery.check_whole(products(results))


@pytest.mark.parametrize("name", NAMES)
def test_cut_files_are_named_with_the_command(results, name):
    path = results / name
    whole = path.read_bytes()
    lengths = range(len(whole)) if len(whole) < 200 else (0, 4, 60, len(whole) // 2, len(whole) - 1)
    for length in lengths:
        path.write_bytes(whole[:length])
        if whole[:length].endswith(b"\n") and path.suffix != ".png":
            continue  # text that happens to end with a line looks whole: a documented limit
        with pytest.raises(
            UserError, match=r"1 file was cut off.* give your command again: rm -f "
        ) as err:
            recovery.check_whole(products(results))
        subprocess.run(str(err.value).split("again: ")[1], shell=True, check=True)
        assert not path.exists()


def test_leftovers_of_dead_processes_go(results):
    child = subprocess.Popen(["true"])
    child.wait()
    dead = [
        results / "runs" / f".tmp-{child.pid}-abcd_123.png",
        results / f".tmp-{child.pid}-abcd_123",
    ]
    # Not as `atomic_path` names files: somebody's.
    others = [results / ".tmp-abc.json", results / f".tmp-{child.pid}-notes.txt", results / ".tmp-"]
    for path in (*dead, *others):
        path.write_text("x")
    with atomic_path(results / "new.json") as alive:
        recovery.remove_leftovers(results)
        assert alive.exists()
    assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in others)


def test_files_from_the_future_become_files_of_now(results):
    ahead, before = results / "metrics.json", results / "runs" / "a" / "run.json"
    note = results / "runs" / "a" / "note.md"
    old = before.stat().st_mtime_ns
    for path in (ahead, note):
        os.utime(path, (time.time() + 1e6, time.time() + 1e6))
    content = ahead.read_bytes()
    recovery.settle_clock(products(results))
    assert note.stat().st_mtime > time.time() + 1e5  # not ours to change
    assert ahead.stat().st_mtime <= time.time()
    assert ahead.read_bytes() == content
    assert before.stat().st_mtime_ns == old


def test_a_failure_is_explained_where_the_results_cannot_be_written(tmp_path, capsys, monkeypatch):
    recovery.explain_failure(tmp_path)
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.iterdir())

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recovery.tempfile, "TemporaryFile", full)
    recovery.explain_failure(tmp_path)
    assert (
        f"error: {tmp_path} cannot be written (No space left on device)" in capsys.readouterr().err
    )


@pytest.fixture
def locked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / recovery.LOCKS).mkdir(parents=True)
    (tmp_path / recovery.LOCKS / "0.input.lock").write_text("x\n")
    return tmp_path


ARGV = ["snakemake", "--cores", "2", "all", "--config", "file=config/my test.yaml"]


def test_lock_of_a_living_snakemake_is_left_alone(locked):
    recovery.note_holder()
    assert json.loads(recovery.HOLDER.read_text())["pid"] == os.getpid()
    assert recovery.stale_lock(ARGV) is None


def test_lock_of_a_dead_snakemake_prints_the_command(locked):
    child = subprocess.Popen(["true"])
    child.wait()
    recovery.note_holder()
    holder = json.loads(recovery.HOLDER.read_text())
    write_json(recovery.HOLDER, {**holder, "pid": child.pid})
    text = recovery.stale_lock(ARGV)
    assert f"(process {child.pid} on {holder['host']}) is gone" in text
    assert (
        "remove the lock: snakemake --cores 2 all --config 'file=config/my test.yaml' --unlock\n"
        in text
    )
    assert recovery.stale_lock([*ARGV, "--unlock"]) is None
    recovery.HOLDER.unlink()
    assert "an unknown host" in recovery.stale_lock(ARGV)


def test_no_lock_no_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recovery.stale_lock(ARGV) is None
    (tmp_path / recovery.LOCKS).mkdir(parents=True)
    for name in (".DS_Store", "._0.input.lock", "note.txt"):
        (tmp_path / recovery.LOCKS / name).write_text("x")
    assert recovery.stale_lock(ARGV) is None


def test_the_end_of_a_failed_jobs_log_is_shown(tmp_path, capsys):
    (tmp_path / "a.log").write_bytes(b"line\n" * 40 + b"why \xff\n")
    recovery.show_logs([tmp_path / "a.log", tmp_path / "none.log"])
    shown = capsys.readouterr().err.splitlines()
    assert shown[1] == f"end of {tmp_path}/a.log:"
    assert shown[-1] == "  why \ufffd"
    assert len(shown) == 2 + recovery.LOG_LINES
