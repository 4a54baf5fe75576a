"""What a run on a GPU cost stands in the tables as memory of the GPU."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from passionsr.benchmark.config import load_config
from passionsr.report import scores
from passionsr.report.proof import summary_titles
from passionsr.report.rendering import PublishedBlock, write_table
from passionsr.report.result_pages import table_section
from passionsr.report.table_list import COST, tables_of
from passionsr.report.tables import _cost_per_run, means_per_dataset


@pytest.fixture
def config():
    return replace(load_config("config/test.yaml"), metrics=("psnr",))


@pytest.fixture
def record(monkeypatch):
    """Every run has this record; tests say whose memory it is."""
    made = SimpleNamespace(
        seconds=7.0, memory="host", peak_mib=28_000, peak_mib_before_calibration=4_000
    )
    monkeypatch.setattr(scores, "read_record", lambda *_: made)
    return made


def table4(config):
    return next(spec for spec in tables_of(config) if spec.name == "table4")


def costed(config):
    """Table 4's rows of one image."""
    rows = [("fp32", "W32A32"), *((r.method, r.scheme) for r in config.runs)]
    values = pd.DataFrame(
        [
            {"method": m, "scheme": s, "scope": "UV", "seed": 0, "image": 0, "metric": "psnr",
             "value": 20.0} for m, s in rows
        ]
    )  # fmt: skip
    table = means_per_dataset(config, values, ["minmax", "passionsr"], "UV", ("fp32",))
    return scores.with_cost(table, scores.run_costs(config), "UV")


def test_columns_of_a_gpu(config, record, tmp_path):
    """All of it, above the published GB, under a title of its own."""
    record.memory = "gpu"
    there = replace(config, device="cuda")
    spec = table4(there)
    write_table(spec, there, costed(there), PublishedBlock(), tmp_path)
    text = " ".join((tmp_path / "table4.md").read_text().split())
    assert "GPU memory, MiB" in text
    assert "| MinMax | 7 | 28000 |" in text
    section = table_section(table4(config), pd.read_csv(tmp_path / "table4.csv"))
    assert "GPU memory, MiB" in section
    assert "memory above imports" not in section + text
    assert "GPU MiB" in _cost_per_run(there, scores.run_costs(there))


def test_columns_of_a_cpu(config, record, tmp_path):
    assert table4(config).cost == COST
    write_table(table4(config), config, costed(config), PublishedBlock(), tmp_path)
    text = " ".join((tmp_path / "table4.md").read_text().split())
    assert "memory above imports, MiB" in text
    assert "| MinMax | 7 | 24000 |" in text
    assert "MiB above imports" in _cost_per_run(config, scores.run_costs(config))


def test_titles_of_the_proof():
    assert summary_titles(["UNet"], "cpu")[4] == "peak RSS, GiB"
    assert summary_titles(["UNet"], "cuda")[4] == "peak GPU memory, GiB"
