"""A calibration killed between any two stages ends with the bytes of one that was not.

And repeats no finished stage.
"""

import shutil

import pytest
import torch

from passionsr.benchmark.config import load_methods, parse_scheme
from passionsr.calibration import checkpoints as resume
from passionsr.calibration import fit
from passionsr.methods.base import load_method, quantize_model
from passionsr.quantization.artifact import save_quantized
from passionsr.utils.files import sha256_file

METHODS = load_methods("config/methods.yaml")
FAST = {
    "passionsr.methods.passionsr:PassionSR": {"epochs": 1, "let_lr": 1e-3, "lbq_lr": 1e-3},
    "passionsr.baselines.lsq:LSQ": {"epochs": 1, "act_lr": 1e-3, "weight_lr": 1e-4},
    "passionsr.baselines.qdiffusion:QDiffusion": {"weight_steps": 2, "act_steps": 2, "vae_crop": 4},
    "passionsr.baselines.efficientdm:EfficientDM": {"steps": 3, "lora_lr": 0.01},
}
# One of each class; the stale zero point (state that a forward pass changes) and noise drawn in a
# loss, too.
NAMES = (
    "minmax",
    "lsq",
    "lsq_plus",
    "ptq4dm",
    "qdiffusion",
    "efficientdm",
    "passionsr",
    "passionsr_no_dqc",
    "official_lbq_form",
    "official_encoder_noise",
    "official_all",
)


class Killed(BaseException):
    pass


def calibrate(name, tiny, batches, out, folder=None, key="k"):
    """An artifact's sha256 and the fit's rows; with `folder`, resumable there."""
    entry = METHODS[name]
    method = load_method(entry.target, {**FAST.get(entry.target, {}), **entry.options})

    def run(checkpoints=None):
        scheme = parse_scheme("W4A4")
        return quantize_model(method, tiny, scheme, "UV", batches, 7, checkpoints)

    if folder is None:
        model, log, _ = run()
    else:
        model, log, _ = run(resume.SavedCheckpoints(folder, key))
    save_quantized(model, out, {})
    stages = [
        {k: v for k, v in row.items() if k not in ("seconds", "peak_mib")} for row in log.stages
    ]
    return sha256_file(out / "model.safetensors"), log.rows, stages


@pytest.fixture
def stage_counts(monkeypatch):
    """Names of the stages that did their work, in order."""
    done = []
    keep = resume.SavedCheckpoints._keep

    def note(self, stage, *rest):
        keep(self, stage, *rest)
        done.append(stage)

    monkeypatch.setattr(resume.SavedCheckpoints, "_keep", note)
    return done


def killed_after(count, name, tiny, batches, out, folder, monkeypatch, key="k"):
    """A calibration that dies once `count` stages are on disk."""
    keep, kept = resume.SavedCheckpoints._keep, []

    def dying(self, stage, *rest):
        keep(self, stage, *rest)
        kept.append(stage)
        if len(kept) == count:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(resume.SavedCheckpoints, "_keep", dying)
        with pytest.raises(Killed):
            calibrate(name, tiny, batches, out, folder, key)


@pytest.mark.parametrize("name", NAMES)
def test_killed_same_bytes(name, tiny, tiny_batches, tmp_path, stage_counts, monkeypatch, rng):
    folder = tmp_path / "resume"
    expected = calibrate(name, tiny, tiny_batches, tmp_path / "whole", folder)
    stages = list(stage_counts)
    assert {s.split(".")[0] for s in stages} == {"encoder", "unet", "decoder"}
    shutil.rmtree(folder)
    # PassionSR is killed twice.
    deaths = sorted(rng.sample(range(1, len(stages)), 2 if name == "passionsr" else 1))
    for before, death in zip([0, *deaths], deaths, strict=False):
        print(f"{name}: killed after stage {death} of {len(stages)}, {stages[death - 1]}")
        killed_after(death - before, name, tiny, tiny_batches, tmp_path, folder, monkeypatch)
    stage_counts.clear()
    assert calibrate(name, tiny, tiny_batches, tmp_path / "resumed", folder) == expected
    assert stage_counts == stages[deaths[-1] :]  # what was finished was not done again


def test_finished_stages_are_not_trained_again(tiny, tiny_batches, tmp_path, monkeypatch):
    folder = tmp_path / "resume"
    expected = calibrate("passionsr", tiny, tiny_batches, tmp_path / "a", folder)
    monkeypatch.setattr(fit, "train", lambda *a, **k: pytest.fail("trained again"))
    assert calibrate("passionsr", tiny, tiny_batches, tmp_path / "b", folder) == expected


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other key"])
def test_what_does_not_fit_is_not_used(
    damage, tiny, tiny_batches, tmp_path, stage_counts, monkeypatch
):
    """A damaged file, or one of another configuration, costs its stage and nothing else."""
    expected = calibrate("passionsr", tiny, tiny_batches, tmp_path / "a")
    folder = tmp_path / "resume"
    killed_after(4, "passionsr", tiny, tiny_batches, tmp_path / "x", folder, monkeypatch)
    files = sorted(folder.iterdir())
    assert len(files) == 4
    key = "k"
    if damage == "truncated":
        files[2].write_bytes(files[2].read_bytes()[:-7])
    elif damage == "flipped":
        data = bytearray(files[2].read_bytes())
        data[-5] ^= 1
        files[2].write_bytes(data)
    else:
        key = "another"
    stage_counts.clear()
    assert calibrate("passionsr", tiny, tiny_batches, tmp_path / "b", folder, key) == expected
    finished = ["encoder.ranges", "encoder.let", "encoder.ranges", "encoder.lbq"]
    assert stage_counts[:4] == (
        finished if damage == "other key" else ["encoder.ranges", *stage_counts[1:4]]
    )
    assert stage_counts.count("encoder.let") == (damage == "other key")
    assert stage_counts.count("encoder.ranges") == (2 if damage == "other key" else 1)
    assert stage_counts.count("encoder.lbq") == (damage == "other key")


def test_a_full_disk_costs_the_resume_only(tiny, tiny_batches, tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    expected = calibrate("passionsr", tiny, tiny_batches, tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(resume, "atomic_path", refuse)
        assert (
            calibrate("passionsr", tiny, tiny_batches, tmp_path / "b", tmp_path / "r") == expected
        )


def test_key_depends_on_everything(tiny):
    x = torch.arange(4.0)
    key = resume.calibration_key("digest", "code", tiny, [x, None])
    assert key == resume.calibration_key("digest", "code", tiny, [x.clone(), None])
    others = [
        resume.calibration_key("other", "code", tiny, [x, None]),
        resume.calibration_key("digest", "other", tiny, [x, None]),
        resume.calibration_key("digest", "code", tiny, [x + 1, None]),
        resume.calibration_key("digest", "code", tiny, [x.reshape(2, 2), None]),
        resume.calibration_key("digest", "code", tiny.unet, [x, None]),
    ]
    assert len({key, *others}) == 6


def test_forget(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "resume" / name).mkdir(parents=True)
    resume.forget(tmp_path / "resume" / "a")
    assert (tmp_path / "resume" / "b").is_dir()
    resume.forget(tmp_path / "resume" / "b")
    assert not (tmp_path / "resume").exists()
