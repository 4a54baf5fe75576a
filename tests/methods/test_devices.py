"""Every method on a pretended accelerator: a tensor on the wrong device raises, without a GPU."""

import functools

import pytest
import torch
from elsewhere import DEVICE, Elsewhere, elsewhere, held, pretended

from passionsr.baselines.efficientdm import QALoRA
from passionsr.benchmark.config import load_methods
from passionsr.calibration.batches import make_batches
from passionsr.calibration.checkpoints import SavedCheckpoints
from passionsr.calibration.sub_models import in_sequence
from passionsr.inference.options import InferenceOptions
from passionsr.inference.super_resolve import super_resolve
from passionsr.methods.base import load_method, quantize_model
from passionsr.models.tiny import SmallShape, small_model
from passionsr.quantization.artifact import load_quantized, save_quantized
from passionsr.quantization.diagnostics import let_ranges, sensitivity
from passionsr.quantization.quantizer import Quantizer
from passionsr.quantization.range_search import BINS, _histogram
from passionsr.quantization.spec import Form, QuantSpec, Scheme

METHODS = load_methods("config/methods.yaml")
# One step or two of every fit stage.
FAST = {
    "passionsr.methods.passionsr:PassionSR": {"epochs": 1, "let_lr": 1e-3, "lbq_lr": 1e-3},
    "passionsr.baselines.lsq:LSQ": {"epochs": 1, "act_lr": 1e-3, "weight_lr": 1e-4},
    "passionsr.baselines.qdiffusion:QDiffusion": {
        "weight_steps": 1, "act_steps": 1, "vae_crop": 2, "batch": 1,
    },
    "passionsr.baselines.efficientdm:EfficientDM": {"steps": 1, "lora_lr": 0.01},
    "passionsr.baselines.ptq4dm:PTQ4DM": {"candidates": 3},
}  # fmt: skip
# Of every class and all switches at once the whole model; of the other options the UNet, several at
# a time. `test_no_row_is_left_out` compares them with the registry.
CASES = [
    *((name, {}, "UV") for name in ("minmax", "lsq", "ptq4dm", "qdiffusion", "efficientdm")),
    ("passionsr", {}, "UV"),
    ("official_all", {}, "UV"),
    ("lsq_plus", {}, "U"),
    ("lsq", {"optimizer": "sgd", "lsq_init": "paper", "per_channel": False}, "U"),
    ("ptq4dm", {"symmetric": False, "candidates": 2, "act_quant_site": "output"}, "U"),
    ("qdiffusion", {"adaround_split_reg": "official", "weight_init": "max", "act_init": "ema",
                    "sm_bits": 16}, "U"),
    ("efficientdm", {"qalora_base": "int", "act_zp": "real", "exceptions": "native"}, "U"),
    ("passionsr_no_let", {"lr_unit": "absolute"}, "U"),
    ("passionsr_no_dqc", {"let_latent_size": 8, "lr_unit": "level", "lbq_form": "int_zp"}, "U"),
    ("passionsr_no_lbq", {"quantize_bias": False}, "U"),
    ("official_sample_reinit", {}, "U"),
]  # fmt: skip
W4A4 = Scheme.parse("W4A4")


@pytest.fixture(scope="module")
def there():
    """A small model on the pretended accelerator; tests must not change it."""
    shape = SmallShape(
        vae_channels=(8, 16), unet_channels=(8, 16), heads=(1, 2), context=(5, 8), vae_groups=4,
        unet_groups=4,
    )  # fmt: skip
    with pretended(), torch.random.fork_rng(devices=[]):
        return small_model(shape, 1).eval().requires_grad_(False).to(DEVICE)


def made_images():
    """Image and ground truth, (1, 1, 3, 16, 16) each."""
    return torch.rand(2, 1, 1, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def batches(there, tmp_path_factory):
    """One image in files, on the CPU: what a job on a GPU has."""
    images, targets = made_images()
    with pretended():
        folder = tmp_path_factory.mktemp("batches")
        return make_batches(there, list(images), 1, 0, list(targets), folder)


def build(name, options):
    entry = METHODS[name]
    return load_method(entry.target, {**FAST.get(entry.target, {}), **entry.options, **options})


@functools.cache
def image():
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def check(model, log):
    """A calibrated model is wholly there, and so is what it makes."""
    with torch.no_grad():
        out = model(image())
    assert all(elsewhere(model).values())
    assert isinstance(out, Elsewhere)
    assert torch.isfinite(held(out)).all()
    assert all(row["steps"] > 0 for row in log.stages)


@pytest.mark.parametrize(("name", "options", "scope"), CASES, ids=lambda v: str(v)[:12])
def test_calibration_and_inference(name, options, scope, there, batches):
    """Swapping, range passes, every fit stage forward and backward, freezing, one forward."""
    with pretended():
        model, log, _ = quantize_model(build(name, options), there, W4A4, scope, batches)
        check(model, log)
    assert bool(log.stages) == (name not in ("minmax", "ptq4dm"))


def test_no_row_is_left_out():
    """Each row of the registry has a case of its class with its options, step sizes aside."""
    cases = [build(name, options) for name, options, _ in CASES]

    def has_a_case(entry):
        kind = type(load_method(entry.target))
        options = {k: v for k, v in entry.options.items()
                   if k != "official" and not k.endswith("_lr")}  # fmt: skip
        return any(
            type(case) is kind and all(getattr(case, k) == v for k, v in options.items())
            for case in cases
        )

    assert [name for name, entry in METHODS.items() if not has_a_case(entry)] == []
    assert build("official_all", {}) in cases


def test_batches_there(there):
    """As `quantize` and the sensitivity job make them: nothing in files."""
    images, targets = made_images()
    with pretended():
        made = make_batches(there, list(images), 1, 0, list(targets))
        assert all(isinstance(t, Elsewhere) for t in vars(made[0]).values())
        model, log, _ = quantize_model(build("lsq", {}), there, W4A4, "UV", made)
        check(model, log)


def test_a_restart_restores_there(there, batches, tmp_path, monkeypatch):
    """What an earlier attempt finished goes back to its device, stale scales too: equal bytes.

    The artifact that is saved from there is read here, and goes there again.
    """
    made = []
    for attempt in range(2):
        if attempt:
            monkeypatch.setattr("passionsr.calibration.fit.train", _never)
        with pretended():
            kept = SavedCheckpoints(tmp_path / "resume", "key")
            method = build("official_lbq_form", {})
            model, log, _ = quantize_model(method, there, W4A4, "U", batches, 0, kept)
            check(model, log)
            save_quantized(model, tmp_path / "artifact", {})
        made.append((tmp_path / "artifact" / "model.safetensors").read_bytes())
    assert made[0] == made[1]
    loaded = load_quantized(tmp_path / "artifact")
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))
    with pretended(), torch.no_grad():
        moved = loaded.to(DEVICE)
        assert all(elsewhere(moved).values())
        assert torch.equal(held(moved(image())), held(model(image())))


def _never(*_, **__):
    pytest.fail("trained again")


@pytest.fixture(scope="module")
def quantized(there, batches):
    """The frozen model of MinMax."""
    with pretended():
        return quantize_model(build("minmax", {}), there, W4A4, "UV", batches)[0]


@pytest.mark.parametrize("posterior", ["mean", "sample"])
def test_tiles(posterior, quantized):
    """The three kinds of tiles and the colour correction."""
    options = InferenceOptions(
        latent_tile=16, latent_overlap=4, encoder_tile=32, decoder_tile=16, colour_fix="adain"
    )
    lr = (torch.rand(12, 26, 3, generator=torch.Generator().manual_seed(2)) * 255).byte().numpy()
    quantized.posterior = posterior
    with pretended():
        assert super_resolve(quantized, lr, options).shape == (48, 104, 3)


def test_diagnostics(there, batches):
    """The sensitivity job, and the ranges of LET's inputs."""
    with pretended():
        model, _ = build("minmax", {}).prepare(there, W4A4, "U")
        assert len(sensitivity(model, batches[0].image)) > 50
        model, _ = build("passionsr", {}).prepare(there, W4A4, "U")
        assert let_ranges(model, batches[0].image)


# -- numbers of the code that other devices run ---------------------------------------------------


def test_the_histogram_is_histc():
    """Counts in 8192 bins; a value at an edge may fall to either side of it."""
    rows = torch.randn(1, 50_000, generator=torch.Generator().manual_seed(1)).relu()
    low, high = float(rows.min()), float(rows.max())
    expected = torch.histc(rows, BINS, low, high)
    with pretended():
        counts = held(_histogram(rows.to(DEVICE), low, high))
    assert counts.sum() == expected.sum() == rows.numel()
    assert (counts.cumsum(0) - expected.cumsum(0)).abs().max() <= 2
    assert counts[0] == expected[0]  # the zeros


@pytest.mark.parametrize("size", [5, 6])
def test_bounds_of_two_groups(size):
    """Values and gradients of the two ways from a group's bound to its channels."""
    quantizer = Quantizer(
        QuantSpec(bits=4, form=Form.AFFINE, per_channel=True, split=2), (3, 6)
    ).double()
    bound = torch.rand(3, 2, generator=torch.Generator().manual_seed(1)).double()
    weights = torch.rand(3, size, generator=torch.Generator().manual_seed(2)).double()
    here = bound.clone().requires_grad_(True)
    ours = quantizer._per_channel(here, size)
    (ours * weights).sum().backward()
    with pretended():
        far = bound.to(DEVICE).requires_grad_(True)
        theirs = quantizer._per_channel(far, size)
        (theirs * weights.to(DEVICE)).sum().backward()
    assert torch.equal(held(theirs), ours.detach())
    # Two sums of at most six numbers, in float64.
    assert torch.allclose(held(far.grad), here.grad, rtol=1e-14)


# -- the pretended accelerator itself -------------------------------------------------------------


def test_mixing_is_refused():
    with pretended():
        x, y = torch.ones(2, device=DEVICE), torch.ones(2)
        for mixed in (
            lambda: x + y,
            lambda: y.add_(x),
            lambda: torch.cat([x, y]),
            lambda: torch.stack([x.sum(), y.sum()]),
            lambda: torch.where(x > 0, x, y),
            lambda: torch.nn.functional.linear(x, y[None]),
            lambda: y[torch.zeros(1, dtype=torch.long, device=DEVICE)],
            lambda: x.index_select(0, torch.zeros(1, dtype=torch.long)),
            lambda: torch.randn(2, device=DEVICE, generator=torch.Generator()),
        ):
            with pytest.raises(RuntimeError, match=r"two devices|generator of the CPU"):
                mixed()
        with pytest.raises((TypeError, RuntimeError), match="numpy"):
            x.numpy()
        # As a GPU does.
        assert torch.equal((x + torch.tensor(2.0)).cpu(), torch.full((2,), 3.0))
        assert torch.equal(x[torch.tensor([1])].cpu(), torch.ones(1))
        assert torch.equal(x.copy_(y * 5).cpu(), torch.full((2,), 5.0))
        assert torch.zeros_like(x).device == x.device == torch.arange(2, device=x.device).device
        assert float(x.sum()) == 10.0


def test_a_parameter_made_on_the_cpu_is_noticed(there, batches, monkeypatch):
    """EfficientDM's low-rank matrices as they were: made on the CPU, wherever the layer is."""
    init = QALoRA.__init__

    def on_the_cpu(self, layer, rank, integer_base):
        init(self, layer, rank, integer_base)
        self.a, self.b = (torch.nn.Parameter(t.detach().cpu(), False) for t in (self.a, self.b))

    monkeypatch.setattr(QALoRA, "__init__", on_the_cpu)
    with pretended(), pytest.raises(RuntimeError, match="tensors on two devices"):
        quantize_model(build("efficientdm", {}), there, W4A4, "UV", batches)


def test_inputs_of_a_sub_model_are_there(there, batches):
    """In scope U the float latents come from files."""
    with pretended():
        model, _ = build("minmax", {}).prepare(there, W4A4, "U")
        ((_, inputs, _),) = in_sequence(model, batches, "U")
    assert all(isinstance(x, Elsewhere) for x in inputs)
