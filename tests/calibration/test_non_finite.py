"""Values that are not finite stop a calibration in one line; ranges of no width do not."""

import copy
import math
import re

import pytest
import torch

from passionsr.benchmark.config import load_methods
from passionsr.calibration.batches import make_batches
from passionsr.calibration.checkpoints import SavedCheckpoints
from passionsr.calibration.fit import FitConfig, FitLog, FitStage, ParamGroup, fit
from passionsr.calibration.sub_models import in_sequence
from passionsr.inference.super_resolve import super_resolve
from passionsr.methods.base import load_method, quantize_model
from passionsr.quantization.artifact import load_quantized, save_quantized
from passionsr.quantization.quantizer import Quantizer
from passionsr.quantization.range_search import (
    BINS,
    shrink_search,
    symmetric_search,
    two_sided_search,
)
from passionsr.quantization.spec import QuantSpec, Scheme
from passionsr.utils.files import UserError
from passionsr.utils.finite import NonFiniteError, is_finite

METHODS = load_methods("config/methods.yaml")
W4A4 = Scheme.parse("W4A4")
FAST = {
    "PassionSR": {"epochs": 1},
    "LSQ": {"epochs": 1},
    "QDiffusion": {"weight_steps": 2, "act_steps": 2, "vae_crop": 4},
    "EfficientDM": {"steps": 2},
    "PTQ4DM": {"candidates": 10},
}


def build(name, **options):
    entry = METHODS[name]
    fast = FAST.get(entry.target.partition(":")[2], {})
    return load_method(entry.target, {**fast, **entry.options, **options})


def changed(model, **weights):
    """A copy with weights filled: name with "-" for "." -> value."""
    new = copy.deepcopy(model)
    parameters = dict(new.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name.replace("-", ".")].fill_(value)
    return new


@pytest.fixture(scope="module")
def batches(tiny):
    generator = torch.Generator().manual_seed(3)
    images, targets = torch.rand(2, 2, 1, 3, 16, 16, generator=generator)
    return make_batches(tiny, list(images), 1, 0, list(targets))


# -- the float model and its images ---------------------------------------------------------------


def test_the_issues_example_is_one_line(tiny):
    model = copy.deepcopy(tiny)
    model.vae.encoder.conv_in.weight[0, 0, 0, 0] = 1e30
    with pytest.raises(NonFiniteError) as caught:
        make_batches(model, [torch.rand(1, 3, 16, 16)], 1, 0)
    assert re.fullmatch(
        r"the float model's latent of the calibration images holds NaN or infinite values: they "
        r"begin in vae\.encoder\.\S+, and the largest weight is 1e\+30 in "
        r"vae\.encoder\.conv_in\.weight; .*",
        str(caught.value),
    )


@pytest.mark.parametrize(
    ("weight", "output"),
    [
        ("vae-quant_conv-bias", "latent"),
        ("unet-conv_out-bias", "x0"),
        ("vae-decoder-conv_out-bias", "output image"),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_every_output_of_the_float_model_is_checked(weight, output, value, tiny):
    name = weight.replace("-", ".")
    with pytest.raises(NonFiniteError, match=f"model's {output} .* weight {name} is not finite"):
        make_batches(changed(tiny, **{weight: value}), [torch.rand(1, 3, 16, 16)], 1, 0)


def test_pixels_and_ground_truth_are_checked(tiny):
    images = [torch.rand(1, 3, 8, 8) for _ in range(3)]
    bad = [*images[:2], torch.full((1, 3, 8, 8), math.inf)]
    with pytest.raises(NonFiniteError, match=r"^calibration image 3 of 3 holds NaN"):
        make_batches(tiny, bad, 2, 0)
    with pytest.raises(NonFiniteError, match=r"^ground truth of calibration image 3 of 3 holds"):
        make_batches(tiny, images, 2, 0, bad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(tiny, dtype):
    model = copy.deepcopy(tiny)
    model.vae.to(dtype)
    with pytest.raises(UserError, match=f"has {dtype} weights: calibrate it in torch.float32"):
        make_batches(model, [torch.rand(1, 3, 8, 8, dtype=dtype)], 1, 0)


@pytest.mark.parametrize("value", [3e38, -3e38])
def test_an_infinite_output_is_no_white_or_black_image(value, tiny):
    """The model's own forward pass clamps infinity to 1 or 0."""
    model = changed(tiny, **{"vae-decoder-conv_out-weight": value})
    pixels = torch.zeros(2, 2, 3, dtype=torch.uint8).numpy()
    with pytest.raises(NonFiniteError, match="the output image holds NaN or infinite values"):
        super_resolve(model, pixels)


# -- ranges ---------------------------------------------------------------------------------------

# Every class, and each part of PassionSR switched off.
EVERY = ["minmax", "ptq4dm", "lsq", "lsq_plus", "qdiffusion", "efficientdm", "passionsr",
         "passionsr_no_let", "passionsr_no_lbq", "passionsr_no_dqc", "official_all",
         "official_sample_reinit", "official_act_zp", "official_quant_site"]  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", EVERY)
def test_ranges_that_are_not_finite_name_their_layer(name, value, tiny, batches):
    """The float model went bad after its outputs were made, so the ranges are the first to see."""
    model = changed(tiny, **{"vae-decoder-conv_in-weight": value})
    where = r"^decoder\.(ranges|let): (vae\.post_quant_conv|vae\.decoder\.)\S* "
    with pytest.raises(NonFiniteError, match=where):
        quantize_model(build(name), model, W4A4, "UV", batches)


@pytest.mark.parametrize("name", EVERY)
def test_ranges_whose_width_overflows(name, tiny, batches):
    """Bounds of -3e38 and 3e38 are finite; their distance is not."""
    model = changed(tiny, **{"unet-conv_in-weight": 3e38})
    model.unet.conv_in.weight[:, ::2] *= -1
    with pytest.raises(NonFiniteError, match=r"^unet\.(ranges|let|steps|qalora|lbq|round)"):
        quantize_model(build(name), model, W4A4, "U", batches)


def test_what_goes_to_the_next_sub_model_is_checked(tiny, batches):
    model, _ = build("minmax").prepare(tiny, W4A4, "UV")
    sequence = in_sequence(model, batches, "UV")
    next(sequence)
    model.vae.quant_conv.bias.fill_(math.inf)
    with pytest.raises(
        NonFiniteError, match=r"^encoder: after calibration .* begin in vae\.quant_conv"
    ):
        next(sequence)


def test_a_range_pass_that_failed_is_not_kept(tiny, batches, tmp_path):
    model = changed(tiny, **{"vae-decoder-conv_in-weight": math.nan})
    with pytest.raises(NonFiniteError):
        quantize_model(
            build("minmax"), model, W4A4, "UV", batches, 0, SavedCheckpoints(tmp_path, "key")
        )
    assert len(list(tmp_path.iterdir())) == 2  # of the encoder and the UNet


SEARCHES = [shrink_search, symmetric_search, two_sided_search]


@pytest.mark.parametrize("size", [7, BINS + 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_hides_nothing(search, bad, size):
    """A comparison with NaN is false: bounds of 0 would come out."""
    x = torch.linspace(-1, 1, size)
    x[size // 2] = bad
    lower, upper = Quantizer(QuantSpec(bits=4)).search(x, search)
    assert not is_finite(upper - lower)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_whose_errors_overflow_takes_the_extremes(search):
    """1e30 to the power of 2.4 is beyond float32; the other channel is searched as ever."""
    x = torch.tensor([[-1e30, 0.3, 1.7e30], [-1.0, 0.2, 0.9]])
    quantizer = Quantizer(QuantSpec(bits=4, per_channel=True), (2, 3))
    lower, upper = quantizer.search(x, search)
    assert float(lower[0]) == float(x[0, 0])
    assert float(upper[0]) == float(x[0, 2])
    alone = Quantizer(QuantSpec(bits=4, per_channel=True), (1, 3)).search(x[1:], search)
    assert float(lower[1]) == float(alone[0])
    assert float(upper[1]) == float(alone[1])


@pytest.mark.parametrize("name", EVERY)
def test_ranges_of_no_width_work(name, tiny, batches, tmp_path):
    """Weights all 0, all equal, a dead channel, in every part, and a flat image."""
    model = changed(
        tiny,
        **{
            "vae-encoder-conv_in-weight": 0.0,
            "vae-decoder-mid_block-resnets-0-conv1-weight": 0.5,
            "unet-conv_in-weight": 0.25,
            "unet-conv_in-bias": 0.0,
            "unet-time_embedding-linear_1-weight": 0.0,
            "unet-mid_block-attentions-0-transformer_blocks-0-attn1-to_q-weight": 0.0,
        },
    )
    model.vae.decoder.conv_in.weight[0] = 0
    model.vae.decoder.conv_in.bias[0] = 0
    flat = make_batches(model, [torch.full((1, 3, 16, 16), 0.5)], 1, 0, [b.hr for b in batches[:1]])
    quantized, log, _ = quantize_model(build(name), model, W4A4, "UV", flat)
    save_quantized(quantized, tmp_path, {})
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert is_finite(load_quantized(tmp_path)(image))
    assert all(math.isfinite(s["loss_after"]) for s in log.stages)


# -- fit stages -----------------------------------------------------------------------------------

RATES = [
    ("passionsr", ("let_lr",)),
    ("passionsr", ("lbq_lr",)),
    ("official_all", ("let_lr", "lbq_lr")),
    ("lsq", ("act_lr", "weight_lr")),
    ("lsq_plus", ("act_lr",)),
    ("qdiffusion", ("weight_lr", "act_lr")),
    ("efficientdm", ("lora_lr", "act_lr")),
]


@pytest.mark.parametrize("rate", [1e3, 1e30])
@pytest.mark.parametrize(("name", "options"), RATES)
def test_a_huge_learning_rate(name, options, rate, tiny, batches, tmp_path):
    """One line that names the fit stage or what it left behind, or a model that is finite."""
    method = build(name, **dict.fromkeys(options, rate))
    message = ""
    try:
        model, log, _ = quantize_model(method, tiny, W4A4, "UV", batches)
    except UserError as err:
        message = str(err)
    if message:
        assert re.match(r"(encoder|unet|decoder)[.:].* learning rate", message)
    else:
        save_quantized(model, tmp_path, {})
        assert all(math.isfinite(s["loss_after"]) for s in log.stages)


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize(("name", "options"), RATES)
def test_an_option_that_is_no_learning_rate(name, options, rate):
    with pytest.raises(UserError, match=r": option \w+_lr: .* expected a number of at least 0"):
        build(name, **dict.fromkeys(options, rate))


@pytest.mark.parametrize(("name", "options"), RATES)
def test_a_learning_rate_that_no_optimizer_takes(name, options, tiny, batches):
    with pytest.raises(UserError, match=r"^(encoder|unet)\.\S+: the learning rate is "):
        quantize_model(build(name, **dict.fromkeys(options, 1e38)), tiny, W4A4, "UV", batches)


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf])
def test_a_fit_refuses_what_is_no_learning_rate(rate):
    with pytest.raises(UserError, match=r"^unet\.let: the learning rate is "):
        stage_of(lambda parameter, _: parameter.sum(), lr=rate)


def stage_of(loss, **config):
    parameter, log = torch.nn.Parameter(torch.ones(1)), FitLog()
    fit([ParamGroup([parameter])], lambda item: loss(parameter, item), [0, 1],
        FitConfig(**config), FitStage("unet.let", log))  # fmt: skip
    return parameter, log


def test_a_loss_that_turns_to_nan_names_stage_and_step():
    seen = []

    def loss(parameter, _):
        seen.append(1)
        return parameter.sum() * (math.nan if len(seen) == 5 else 1.0)  # two before the first step

    with pytest.raises(NonFiniteError, match=r"^unet\.let: the loss is nan at step 2; lower"):
        stage_of(loss, epochs=3)


@pytest.mark.parametrize("undo", [True, False])
def test_a_loss_that_is_not_finite_at_the_end_is_not_kept(undo):
    """Its last step spoiled it: undone, or one line."""

    def loss(parameter, _):
        return torch.where(parameter == 1, parameter, torch.inf).sum()

    if undo:
        parameter, log = stage_of(loss, steps=1)
        assert float(parameter) == 1
        assert log.stages[0]["undone"]
        return
    with pytest.raises(NonFiniteError, match=r"^unet\.let: the loss is inf after the last step"):
        stage_of(loss, steps=1, undo_worse=False)


def test_a_parameter_that_is_not_finite_is_not_kept():
    """The gradient of a square root at 0, and a loss that does not show it."""

    def loss(parameter, _):
        return torch.where(parameter.isnan(), 1.0, (parameter * 0).sqrt()).sum()

    with pytest.raises(NonFiniteError, match=r"^unet\.let: a parameter is not finite"):
        stage_of(loss, steps=1, undo_worse=False)


# -- saving and loading ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quantized(tiny, batches):
    return quantize_model(build("minmax"), tiny, W4A4, "U", batches)[0]


def test_saving_refuses_and_writes_nothing(quantized, tmp_path):
    model = copy.deepcopy(quantized)
    model.vae.decoder.conv_norm_out.bias[0] = math.inf
    with pytest.raises(NonFiniteError, match=r"not written.* vae\.decoder\.conv_norm_out\.bias h"):
        save_quantized(model, tmp_path / "new", {})
    assert not (tmp_path / "new").exists()
    save_quantized(quantized, tmp_path / "old", {})
    before = {p: p.read_bytes() for p in (tmp_path / "old").iterdir()}
    with pytest.raises(NonFiniteError):
        save_quantized(model, tmp_path / "old", {})
    assert {p: p.read_bytes() for p in (tmp_path / "old").iterdir()} == before
