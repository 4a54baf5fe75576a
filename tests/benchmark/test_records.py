"""run.json: what is written is read back, in the keys that older files have.

Other files are refused.
"""

import dataclasses
import json

import pytest
import torch

from passionsr.benchmark.config import load_config
from passionsr.benchmark.records import (
    MEASURED_FIELDS,
    Phases,
    RunRecord,
    check_run,
    read_record,
    write_record,
)
from passionsr.utils.files import UserError, write_json


@pytest.fixture
def config(tmp_path, monkeypatch):
    config = load_config("config/test.yaml")
    monkeypatch.setattr(type(config), "results", property(lambda c: tmp_path / c.name))
    return config


@pytest.fixture
def written(config):
    """(run, record, path of run.json)."""
    run = config.runs[-1]
    fits = [{"stage": "unet.let", "seconds": 1.23456, "peak_mib": 900, "steps": 4},
            {"stage": "unet.lbq", "seconds": 2.0, "peak_mib": 950}]  # fmt: skip
    phases = Phases()
    phases.end("load")
    phases.end("quantize")
    made = write_record(
        config, run, device="x86_64", model_bytes=4825599, seconds=3.14159, fits=fits, phases=phases
    )
    return run, made, config.results / "runs" / run.run_id / "run.json"


def test_round_trip(config, written):
    run, made, path = written
    assert read_record(config, run.run_id) == made
    raw = json.loads(path.read_text())
    assert raw["class"] == config.entries[run.method].target
    assert raw["run"] == dataclasses.asdict(run)
    assert raw["options"] == config.options(run)
    assert raw["stage_seconds"] == {"unet.let": 1.23, "unet.lbq": 2.0}
    assert raw["stage_peak_mib"] == {"unet.let": 900, "unet.lbq": 950}
    assert (raw["seconds"], raw["model_bytes"]) == (3.14, 4825599)
    assert [phase["phase"] for phase in raw["phases"]] == ["load", "quantize"]
    assert raw["peak_mib_before_calibration"] == raw["phases"][0]["peak_mib"] > 0
    assert raw["peak_mib"] >= raw["phases"][-1]["peak_mib"]
    assert path.read_text() == json.dumps(raw, indent=2, sort_keys=True) + "\n"
    check_run(config, run.run_id)


def test_memory_of_a_gpu(config, monkeypatch):
    """On a GPU every number of memory is the GPU's, and the record says so."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123 << 20)
    config = dataclasses.replace(config, device="cuda")
    phases = Phases(config.device)
    phases.end("load")
    run = config.runs[0]
    write_record(
        config, run, device="a GPU", model_bytes=1, seconds=1.0, fits=[], phases=phases
    )  # fmt: skip
    made = read_record(config, run.run_id)
    assert (made.memory, made.peak_mib, made.phases[0].peak_mib) == ("gpu", 123, 123)


def test_older_records_are_of_the_host(config, written):
    run, _, path = written
    raw = json.loads(path.read_text())
    assert raw.pop("memory") == "host"
    write_json(path, raw)
    assert read_record(config, run.run_id).memory == "host"


def test_keys_of_the_file(written):
    """The keys that results in DVC have; what is measured is a part of them."""
    raw = json.loads(written[2].read_text())
    assert set(raw) == {
        "run",
        "class",
        "options",
        "config",
        "config_digest",
        "run_digest",
        "git",
        "versions",
        "device",
        "threads",
        "model_bytes",
        "memory",
        *MEASURED_FIELDS,
    }
    assert set(MEASURED_FIELDS) < set(raw)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seconds": None}, "seconds: Field required"),
        ({"peak_mib": "much"}, "peak_mib: Input should be a valid integer"),
        ({"phases": [{"phase": "load"}]}, "phases.0.seconds: Field required"),
        ({"new": 1}, "new: Extra inputs are not permitted"),
    ],
)
def test_other_files_are_refused_in_one_line(config, written, changes, message):
    run, _, path = written
    raw = {**json.loads(path.read_text()), **changes}
    write_json(path, {key: value for key, value in raw.items() if value is not None})
    with pytest.raises(UserError, match="not the record of a run") as err:
        read_record(config, run.run_id)
    assert f"({message}" in str(err.value)
    assert "delete its folder and run again" in str(err.value)
    assert "\n" not in str(err.value)


def test_a_run_of_another_configuration(config, written):
    run, _, path = written
    write_json(path, {**json.loads(path.read_text()), "run_digest": "0" * 16})
    with pytest.raises(UserError, match=r"another configuration \(0{16}, expected"):
        check_run(config, run.run_id)
    path.unlink()
    with pytest.raises(UserError, match=r"run\.json: file not found"):
        check_run(config, run.run_id)


def test_every_field_is_documented():
    text = RunRecord.__doc__
    missing = [name for name in RunRecord.model_fields if f"{name}" not in text]
    assert missing == []
