"""`make gpu-check` without a GPU: what it says, and its parts on the CPU with the tiny model."""

import dataclasses

import pytest
import torch

from passionsr.benchmark.config import load_config, load_methods
from passionsr.benchmark.jobs import calibrate as calibrate_job
from passionsr.benchmark.jobs import infer as infer_job
from passionsr.benchmark.paths import image_folder, pairs_to_test
from passionsr.data.images import read_uint8
from passionsr.metrics.suite import MetricSuite
from passionsr.models.tiny import tiny_model
from passionsr.report import gpu_check as lib
from passionsr.report.measured_parts import PartCost, hours, one_calibration


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_one_line(capsys, tmp_path):
    assert lib.main(["--output", str(tmp_path / "table.md")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"error: gpu-check: torch {torch.__version__} finds no GPU here: run it ")
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing(monkeypatch, capsys):
    def absent():
        raise ModuleNotFoundError("No module named 'diffusers'", name="diffusers")

    monkeypatch.setattr(lib, "require_gpu", absent)
    assert lib.main([]) == 2
    assert capsys.readouterr().err == (
        "error: gpu-check: the package diffusers is missing: pip install -e . in the checkout\n"
    )


def test_contract(tiny):
    row = lib.contract(load_methods(lib.METHODS)["minmax"], tiny, lib.tiny_batches(tiny), "cpu")
    assert (row.part, row.what, row.result, row.failed) == ("contract", "minmax", "ok", False)
    assert row.seconds > 0


def test_contract_notices(tiny, monkeypatch):
    """Another artifact the second time, and one that was loaded wrongly."""
    from passionsr.quantization import artifact

    load = artifact.load_quantized

    def damaged(folder):
        model = load(folder)
        with torch.no_grad():
            model.context.add_(1)
        return model

    monkeypatch.setattr(artifact, "load_quantized", damaged)
    seeds = iter(range(9))
    from passionsr.methods import base

    quantize = base.quantize_model
    monkeypatch.setattr(base, "quantize_model", lambda *a: quantize(*a, seed=next(seeds)))
    entry = load_methods(lib.METHODS)["efficientdm"]
    row = lib.contract(entry, tiny, lib.tiny_batches(tiny), "cpu")
    assert row.failed
    assert row.result == (
        "the loaded artifact computes something else; a second calibration gives other bytes"
    )


def test_a_check_that_raises_is_a_row(monkeypatch):
    def broken(*_):
        raise RuntimeError("Expected all tensors to be on the same device\nand more")

    monkeypatch.setattr(lib, "contract", broken)
    rows = list(lib.contract_rows("cpu", lambda: 1.0))
    assert [row.what for row in rows] == list(load_methods(lib.METHODS))
    assert all(row.failed for row in rows)
    assert rows[0].result == "failed: RuntimeError: Expected all tensors to be on the same device"


def test_what_is_not_reached_is_named():
    (row,) = lib.contract_rows("cpu", lambda: 0.0)
    assert not row.failed
    assert row.result.startswith("not reached: minmax, lsq, ")


def test_every_part_of_a_calibration_is_measured():
    options = {"let_lr": 1e-5, "lbq_lr": 1e-5, "lr_unit": "absolute", "let_latent_size": 8}
    rows = list(lib.full_size_rows(tiny_model(), "cpu", 32, options))
    names = [row.what for row in rows[:-1]]
    assert names[0] == "float model"
    assert names[1:] == [
        f"{sub}.{part}"
        for sub in ("encoder", "unet", "decoder")
        for part in ("ranges", "let", "ranges", "lbq")
    ]
    assert [row.result for row in rows if row.what == "unet.let"] == ["4 steps"]
    assert rows[-1].what == "PassionSR, 500 images of 32 px, 2 epochs"
    assert rows[-1].result.endswith(" h, extrapolated")


def test_too_large_a_model_takes_less_memory(monkeypatch):
    calls = []

    def too_large(model, *rest):
        calls.append(model.low_memory)
        if not model.low_memory:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nand more")
        return one_calibration(model, *rest)

    monkeypatch.setattr(lib, "one_calibration", too_large)
    rows = list(lib.full_size_rows(tiny_model(), "cpu", 32, {}))
    assert calls == [False, True]
    assert rows[0].result == "does not fit: CUDA out of memory. Tried to allocate 1 GiB"
    assert "low_memory" in rows[-1].result


def test_hours_by_hand():
    """One sub-model: 4 images; 1 s per image forward, 3 s per step."""
    parts = [
        PartCost("float model", 8.0, 0, 0),
        PartCost("unet.ranges", 9.0, 0, 0),  # kernels are loaded
        PartCost("unet.let", 2 * 4 * 1.0 + 4 * 3.0, 0, 4),
        PartCost("unet.ranges", 4.0, 0, 0),
    ]
    expected = 500 * 2.0 + 4 * 500 * 1.0 + 2 * 500 * 3.0 + 2 * 8 * 1.0
    assert hours(parts) == pytest.approx(expected / 3600)


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    """The test benchmark with one W6A6 run of MinMax, in a folder of its own."""
    config = load_config("config/test.yaml")
    run = dataclasses.replace(config.runs[0], method="minmax", scheme="W6A6")
    config = dataclasses.replace(config, runs=(run,), name="gpu-check", limits={"test": 1})
    monkeypatch.setattr(type(config), "results", property(lambda c: tmp_path / c.name))
    return config


def test_fidelity_beside_the_cpu(benchmark, tmp_path, monkeypatch):
    """The number is the one of the column "PSNR to FP32"; a band decides, where there is one."""
    bands = tmp_path / "expected.tsv"
    bands.write_text(
        "results\ttable\tdataset\tbits\tmethod\tmetric\tlow\thigh\n"
        "there\ttable2\tx\tW6A6\tMinMax\tpsnr_fp\t0\t100\n"
        "broken\ttable4\tx\tW6A6\tMinMax\tpsnr_fp\t0\t1\n"
    )
    monkeypatch.setattr(lib, "BANDS", bands)
    (row,) = lib.fidelity_rows(benchmark, "there", lambda: 1.0)
    assert (row.on_cpu, row.failed) == ("50.00 dB (0.00 to 100.00)", False)
    (run,), (pair,) = benchmark.runs, pairs_to_test(benchmark)
    ours, floats = (
        read_uint8(image_folder(benchmark, name) / f"{pair.name}.png")
        for name in (run.run_id, "fp32")
    )
    expected = MetricSuite(["psnr_fp"]).score(ours, ours, floats)["psnr_fp"]
    assert lib.psnr_to_float(benchmark, run) == pytest.approx(expected, rel=1e-5)  # float32
    assert row.result == f"{expected:.2f} dB"
    # The images are there now.
    monkeypatch.setattr(calibrate_job, "calibrate", lambda *_: None)
    monkeypatch.setattr(infer_job, "infer", lambda *_: None)
    row = lib.fidelity(benchmark, run, "broken")
    assert (row.result, row.failed) == (f"{expected:.2f} dB, outside its band", True)
    row = lib.fidelity(benchmark, run, "nowhere")
    assert (row.on_cpu, row.failed) == ("unknown", False)


def test_every_mini_run_has_a_number_of_the_cpu():
    config = load_config(lib.MINI)
    runs = lib.mini_runs(config)
    assert len(runs) == 9
    assert all(lib.cpu_band(config, run, config.name) for run in runs)


def test_the_report(tmp_path):
    rows = [
        lib.Row("contract", "minmax", "ok", "", 1.25, 17.4),
        lib.Row("hours", "x", "no", failed=True),
    ]
    text = lib.write_report(rows, lib.about("cpu"), tmp_path / "table.md")
    assert text == (tmp_path / "table.md").read_text()
    assert "2 rows, 1 failed" in text
    assert "| contract | minmax | ok | | 1.2 | 17 |" in " ".join(text.split())
