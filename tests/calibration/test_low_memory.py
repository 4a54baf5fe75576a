"""Memory before speed (config key `low_memory`) and the full-size configuration.

Same numbers, no second copy.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from passionsr.baselines.efficientdm import _squared_error
from passionsr.benchmark.config import load_config, load_methods
from passionsr.benchmark.float_model import load_float_model
from passionsr.benchmark.jobs.calibrate import calibrate, check_counts
from passionsr.benchmark.jobs.data import make_data
from passionsr.benchmark.records import Phases, read_record, write_record
from passionsr.calibration import batches as calibration
from passionsr.calibration.batches import make_batches
from passionsr.calibration.sub_models import in_sequence, output_loss
from passionsr.methods.base import load_method, quantize_model
from passionsr.methods.passionsr import PassionSR
from passionsr.models.osediff.sd21 import sd21_model
from passionsr.quantization.artifact import load_quantized, save_quantized
from passionsr.quantization.equivalent_transform import (
    ConvGeometry,
    expand_borders,
    shift_response,
)
from passionsr.quantization.layer import QuantizedLayer
from passionsr.quantization.spec import Scheme
from passionsr.quantization.swap import match_attention, match_layers
from passionsr.report.proof import run_rows, summary, write_proof
from passionsr.utils.files import UserError, sha256_file, write_json, write_text

METHODS = load_methods("config/methods.yaml")
FAST = {
    "passionsr": {"epochs": 1, "let_lr": 1e-3, "lbq_lr": 1e-3},
    "lsq": {"epochs": 1, "act_lr": 1e-3, "weight_lr": 1e-4},
    "qdiffusion": {"weight_steps": 3, "act_steps": 2, "vae_crop": 4},
    "efficientdm": {"steps": 3, "lora_lr": 0.01},
    "minmax": {},
    "ptq4dm": {},
}
W6A6 = Scheme.parse("W6A6")


def build(name):
    entry = METHODS[name]
    return load_method(entry.target, {**FAST[name], **entry.options})


def batches_in(tiny, folder):
    """Two batches of the float teacher's outputs, in files of `folder` where one is given."""
    generator = torch.Generator().manual_seed(3)
    images, targets = torch.rand(2, 4, 1, 3, 32, 32, generator=generator)
    return make_batches(tiny, list(images), 2, 0, list(targets), folder)


def test_batches_in_files(tiny, tmp_path):
    """The same values, and none of them in memory before it is read."""
    ours, theirs = batches_in(tiny, tmp_path), batches_in(tiny, None)
    assert len(list(tmp_path.iterdir())) == 2 * 6
    for a, b in zip(ours, theirs, strict=True):
        assert all(torch.equal(x, vars(b)[name]) for name, x in vars(a).items())
    assert all(t.data_ptr() % 4096 == 0 for t in vars(ours[1]).values())
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    assert {str(p) for p in tmp_path.iterdir()} <= mapped


@pytest.mark.parametrize("scope", ["U", "UV"])
def test_batches_of_the_cpu_serve_a_model_elsewhere(scope, tiny, tiny_batches):
    """What is kept in files is on the CPU.

    Every loss brings it to the model (meta stands in for a GPU: mixing raises).
    """
    prepared, _ = PassionSR().prepare(copy.deepcopy(tiny).to("meta"), W6A6, scope)
    switches = ("encoder_noise", "independent"), ("unet_let_loss", "eps"), ("decoder_target", "hr")
    for sub, inputs, pairs in in_sequence(prepared, tiny_batches, scope):
        losses = [output_loss(sub)(pairs[0]), _squared_error(sub, pairs[0])]
        for options in ({}, *({name: value} for name, value in switches)):
            loss = PassionSR(**options)._loss(prepared, sub, "let")
            losses.append(loss((inputs[0], tiny_batches[0])))
        assert all(loss.is_meta for loss in losses)


@pytest.mark.parametrize("name", FAST)
def test_lean_gives_the_same_bytes(name, tiny, tmp_path):
    """Recomputed blocks, weights quantized at every forward, no copy, batches in files.

    Nothing of it may change a number.
    """
    digests = []
    for low_memory in (False, True):
        teacher = copy.deepcopy(tiny)
        batches = batches_in(teacher, tmp_path / "teacher" if low_memory else None)
        teacher.low_memory = low_memory
        model, _, _ = quantize_model(build(name), teacher, W6A6, "UV", batches)
        assert (model is teacher) == low_memory
        save_quantized(model, tmp_path / str(low_memory), {})
        digests.append(sha256_file(tmp_path / str(low_memory) / "model.safetensors"))
    assert digests[0] == digests[1]


def test_lean_makes_no_second_copy_of_the_weights(tiny):
    """The swapped layers hold the very memory of the float ones; an ordinary model is copied."""
    for low_memory in (False, True):
        teacher = copy.deepcopy(tiny)
        teacher.low_memory = low_memory
        before = {n: m.weight.data_ptr() for n, m in match_layers(teacher, "UV")}
        model, _ = PassionSR().prepare(teacher, W6A6, "UV")
        after = {
            n: m.weight.data_ptr()
            for n, m in model.named_modules()
            if isinstance(m, QuantizedLayer)
        }
        assert after.keys() == before.keys()
        assert all((after[n] == before[n]) == low_memory for n in before)


def test_lean_keeps_no_quantized_weight(tiny, tiny_batches):
    teacher = copy.deepcopy(tiny)
    teacher.low_memory = True
    model, _, _ = quantize_model(build("minmax"), teacher, W6A6, "UV", tiny_batches)
    with torch.no_grad():
        model(tiny_batches[0].image)
    layers = [m for m in model.modules() if isinstance(m, QuantizedLayer)]
    kept = [k.value for m in layers for k in (m._kept_weight, m._kept_sum, m._kept_shift)]
    assert kept == [None] * len(kept)
    assert all(m._frozen_weight is None for m in layers)
    assert model.unet.is_gradient_checkpointing


def test_a_form_with_memory_is_refused(tiny):
    """Its second forward differs from its first, and checkpointing runs both."""
    teacher = copy.deepcopy(tiny)
    teacher.low_memory = True
    with pytest.raises(UserError, match="set low_memory: false"):
        PassionSR(lbq_form="int_zp_stale").prepare(teacher, W6A6, "UV")


def test_loading_builds_no_float_model(tiny, tiny_batches, tmp_path):
    """Every tensor comes from the file; none is left on the meta device."""
    model, _, _ = quantize_model(build("passionsr"), tiny, W6A6, "U", tiny_batches)
    save_quantized(model, tmp_path, {})
    loaded = load_quantized(tmp_path)
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    assert loaded.context.device.type == "cpu"


def test_borders_of_the_smallest_maps():
    """A 2 x 2 map has borders and no interior; below that the frozen border map cannot be used."""
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    offset = torch.randn(3)
    small = shift_response(offset, conv.weight, ConvGeometry.of(conv), (64, 64))
    for size in ((2, 2), (2, 7), (3, 2)):
        constant = offset.reshape(1, -1, 1, 1).expand(1, -1, *size)
        expected = torch.conv2d(constant, conv.weight, None, padding=1)
        torch.testing.assert_close(expand_borders(small, *size, (1, 1)), expected)
    with pytest.raises(ValueError, match="below the 3 of the border map"):
        expand_borders(small, 1, 4, (1, 1))


@pytest.mark.parametrize("name", FAST)
def test_full_size_layers_are_all_swapped(name):
    """282 + 72 layers, 32 attentions with two products each, on the meta device."""
    config = load_config("config/paper-random.yaml")
    entry = METHODS[name]
    _, report = load_method(entry.target, entry.options).prepare(sd21_model(), W6A6, "UV")
    counted = [r for r in report if r.kind != "attention"]
    assert sum(r.name.startswith("unet.") for r in counted) == config.expected_layers["unet"] == 282
    assert sum(r.name.startswith("vae.") for r in counted) == config.expected_layers["vae"] == 72
    assert sum(r.kind == "attention" for r in report) == 32
    assert sum(r.weight_bits == 8 for r in counted) == 6
    assert next(r for r in counted if r.name == "unet.conv_in").weight_bits == 6


def test_wrong_counts_stop_a_run(tiny):
    config = load_config("config/paper-random.yaml")
    run = config.runs[0]
    _, report = build("minmax").prepare(tiny, W6A6, "UV")
    with pytest.raises(UserError, match="layers of vae were quantized, expected 72"):
        check_counts(config, run, report)
    exact = {"unet": 0, "vae": 0}
    for name, _ in match_layers(tiny, "UV"):
        exact[name.split(".")[0]] += 1
    check_counts(replace(config, expected_layers=exact), run, report)


def test_sd21_shape():
    model = sd21_model()
    assert len(match_attention(model)) == 32
    assert (model.latent_factor, model.size_multiple) == (8, 64)
    assert all(p.is_meta for p in model.parameters())


def test_device_follows_the_model(tiny):
    """Everything that wrapping and batching create sits where the model sits."""
    model = copy.deepcopy(tiny).to("meta")
    prepared, _ = PassionSR().prepare(model, W6A6, "UV")
    assert all(t.is_meta for t in (*prepared.parameters(), *prepared.buffers()))
    batches = make_batches(model, [torch.rand(1, 3, 32, 32)], 1, 0, [torch.rand(1, 3, 32, 32)])
    assert all(t.is_meta for t in (batches[0].image, batches[0].output, batches[0].hr))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_absent_device_is_one_clear_line(tiny):
    config = replace(load_config("config/test.yaml"), device="cuda")
    with pytest.raises(UserError, match="torch finds no GPU here; set device: cpu"):
        load_float_model(config)


def test_proof_table(tmp_path, monkeypatch):
    """From a real (tiny) run's records: phases, fit stages, counts.

    What is not finished is named.
    """
    config = load_config("config/test.yaml")
    config = replace(
        config, low_memory=True, limits={"test": 1, "calibration": 2}, name="prooftest"
    )
    monkeypatch.setattr(type(config), "results", property(lambda c: tmp_path / c.name))
    make_data(config)
    run = next(r for r in config.runs if r.method == "passionsr")
    folders = []
    monkeypatch.setattr(
        calibration, "make_batches", lambda *a: folders.append(a[-1]) or make_batches(*a)
    )
    calibrate(config, run)
    assert folders == [tmp_path / "prooftest" / "resume" / run.run_id / "teacher"]
    assert not folders[0].exists()  # like everything that only a restart needs
    made = json.loads((tmp_path / "prooftest" / "runs" / run.run_id / "run.json").read_text())
    assert [p["phase"] for p in made["phases"]] == [
        "load",
        "float outputs",
        "quantize",
        "save",
        "ranges",
    ]
    path = tmp_path / "prooftest" / "runs" / run.run_id / "run.json"
    before = path.read_bytes()
    write_json(path, read_record(config, run.run_id).model_dump(by_alias=True))
    assert path.read_bytes() == before
    missing = write_proof(config)
    assert run not in missing
    assert len(missing) == len(config.runs) - 1
    text = (tmp_path / "prooftest" / "tables" / "proof.md").read_text()
    stages_run = (
        "encoder.let",
        "encoder.lbq",
        "unet.let",
        "unet.lbq",
        "decoder.let",
        "decoder.lbq",
    )
    found = [text.index(f"- {stage} ") for stage in stages_run]
    assert found == sorted(found)
    assert "not run" in text  # no inference yet
    infer = f"infer-{run.run_id}"
    write_text(tmp_path / "prooftest" / "benchmarks" / f"{infer}.tsv", "s\tmax_rss\n12.5\t7\n")
    lines = "started 2026-01-01T00:00:00.000+00:00, ready after 2.25 s\npeak memory 2048 MiB\n"
    write_text(tmp_path / "prooftest" / "logs" / f"{infer}.log", lines)
    assert run_rows(config, run)[-1][1:] == ("inference", None, 10.25, 2048)
    cells = [cell.strip() for cell in summary(config, run)]
    assert cells[-2:] == ["10", "2.0"]
    assert f"Not run: {missing[0].run_id}" in text


def test_proof_sums_blocks(tmp_path, monkeypatch):
    """Block by block reconstruction has hundreds of fit stages: one row per sub-model and kind."""
    config = replace(load_config("config/test.yaml"), name="prooftest")
    monkeypatch.setattr(type(config), "results", property(lambda c: tmp_path / c.name))
    run = config.runs[0]
    names = ["unet.round.conv_in", "unet.round.mid_block", "unet.steps"]
    steps = "\n".join(["stage,steps", *(f"{name},{i + 1}" for i, name in enumerate(names))])
    write_text(tmp_path / "prooftest" / "runs" / run.run_id / "stages.csv", steps)
    measured = zip(names, (1.5, 2.0, 4.0), (50, 60, 70), strict=True)
    fits = [{"stage": name, "seconds": s, "peak_mib": mib} for name, s, mib in measured]
    phases = Phases()
    phases.rows.append({"phase": "quantize", "seconds": 9.0, "peak_mib": 70})
    write_record(
        config, run, device="x", model_bytes=1, seconds=9.0, fits=fits, phases=phases
    )  # fmt: skip
    assert [tuple(row[1:]) for row in run_rows(config, run)] == [
        ("- unet.round (2 blocks)", 3, 3.5, 60),
        ("- unet.steps", 3, 4.0, 70),
        ("quantize", None, 9.0, 70),
    ]
