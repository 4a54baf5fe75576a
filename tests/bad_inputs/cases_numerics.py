"""Bad inputs of arithmetic: NaN and infinite values, ranges of no width, the smallest images."""

import functools
import json

import numpy as np
import torch
import yaml
from bad_inputs.table import BadInput
from PIL import Image

from passionsr.utils.files import sha256_file

MODEL, ARTIFACT, LR = "model", "artifact", "lr.png"
UPSCALE = ["upscale", LR, "sr.png", "--model"]
FITTED = {"epochs": 1, "let_lr": 1.0e-3, "lbq_lr": 1.0e-3}


def images(folder, height=8, width=8):
    """lr.png and a calibration folder of two images, of one size."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    (folder / "cal").mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "cal" / f"{index}.png")
    Image.fromarray(pixels[0]).save(folder / LR)


def model_folder(folder, **weights):
    """The tiny model with some weights filled with one value each; "-" stands for "." in names."""
    from passionsr.models.folder import save_model
    from passionsr.models.tiny import tiny_model

    model = tiny_model()
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameters[name.replace("-", ".")].fill_(value)
    save_model(model, folder / MODEL)


def one_weight(folder, value=1e30):
    """The issue's example: one weight of the VAE's first layer."""
    from passionsr.models.folder import save_model
    from passionsr.models.tiny import tiny_model

    model = tiny_model()
    model.vae.encoder.conv_in.weight[0, 0, 0, 0] = value
    save_model(model, folder / MODEL)


def quantize(method, scheme="W8A8"):
    return ["quantize", ARTIFACT, "--model", MODEL, "--method", method, "--scheme", scheme,
            "--calibration", "cal"]  # fmt: skip


def with_options(folder, target, **options):
    """A registry of one method, "mine"."""
    entry = {"class": target, "title": "mine", "options": options}
    (folder / "methods.yaml").write_text(yaml.safe_dump({"mine": entry}))
    return [*quantize("mine"), "--methods", "methods.yaml"]


def huge_weight(method, folder):
    images(folder)
    one_weight(folder)
    return quantize(method)


def huge_weight_upscaled(folder):
    images(folder)
    one_weight(folder)
    return [*UPSCALE, MODEL]


def infinite_output(folder):
    images(folder)
    model_folder(folder, **{"vae-decoder-conv_out-weight": 3e38})
    return [*UPSCALE, MODEL]


def nan_weight(folder):
    images(folder)
    one_weight(folder, float("nan"))
    return [*UPSCALE, MODEL]


def nan_in_artifact(folder):
    """Another program has changed the file and its hash."""
    from safetensors.torch import load_file, save_file

    artifact(folder, 8, 8)
    path = folder / ARTIFACT / "model.safetensors"
    state = load_file(path)
    for name in ("unet.conv_in.act_quantizer.lower", "unet.conv_out.act_quantizer.upper"):
        state[name].fill_(float("nan"))
    save_file(state, path)
    scheme = json.loads((path.parent / "scheme.json").read_text())
    (path.parent / "scheme.json").write_text(json.dumps({**scheme, "sha256": sha256_file(path)}))
    return [*UPSCALE, ARTIFACT]


def rate(folder, target="passionsr.methods.passionsr:PassionSR", **options):
    images(folder)
    model_folder(folder)
    return with_options(folder, target, **options)


def no_width(folder):
    images(folder)
    model_folder(folder, **{"vae-encoder-conv_in-weight": 0, "unet-conv_in-weight": 0.5})
    return quantize("ptq4dm", "W4A4")


def nan_pixels(_folder):
    from passionsr.calibration.batches import make_batches
    from passionsr.models.tiny import tiny_model

    pixels = [torch.rand(1, 3, 8, 8) for _ in range(3)]
    pixels[1][0, 0, 0, 0] = float("nan")
    return lambda: make_batches(tiny_model(), pixels, 2, seed=0)


def half_precision(_folder):
    from passionsr.calibration.batches import make_batches
    from passionsr.models.tiny import tiny_model

    return lambda: make_batches(tiny_model().half(), [torch.rand(1, 3, 8, 8)], 1, seed=0)


@functools.cache
def small_artifact(height, width):
    """PassionSR's artifact of the tiny model, calibrated at one size; made once."""
    from passionsr.calibration.batches import make_batches
    from passionsr.methods.base import quantize_model
    from passionsr.methods.passionsr import PassionSR
    from passionsr.models.tiny import tiny_model
    from passionsr.quantization.spec import Scheme

    model = tiny_model()
    pixels = torch.rand(1, 3, 4 * height, 4 * width, generator=torch.Generator().manual_seed(0))
    batches = make_batches(model, [pixels], 1, 0)
    return quantize_model(PassionSR(**FITTED), model, Scheme.parse("W6A6"), "UV", batches)[0]


def artifact(folder, height, width, calibrated=(8, 8)):
    from passionsr.quantization.artifact import save_quantized

    images(folder, height, width)
    save_quantized(small_artifact(*calibrated), folder / ARTIFACT, {})


def small_image(height, width, *options, calibrated=(8, 8)):
    def prepare(folder):
        artifact(folder, height, width, calibrated)
        return [*UPSCALE, ARTIFACT, *options]

    return prepare


def unwritable(folder):
    """What no calibration hands over: the last line of defence."""
    from passionsr.models.tiny import tiny_model
    from passionsr.quantization.artifact import save_quantized

    model = tiny_model()
    for parameter in list(model.parameters())[:5]:
        parameter.fill_(float("inf"))
    return lambda: save_quantized(model, folder / ARTIFACT, {})


def small_calibration(folder):
    images(folder, 1, 3)
    model_folder(folder)
    return with_options(folder, "passionsr.methods.passionsr:PassionSR", **FITTED)


MADE = tuple(f"{ARTIFACT}/{name}" for name in ("model.safetensors", "scheme.json"))
BEGINS_IN_THE_VAE = (
    "the float model's latent of the calibration images holds NaN or infinite values: they begin "
    "in vae.encoder.down_blocks.0.resnets.0.norm1, and the largest weight is 1e+30 in "
    "vae.encoder.conv_in.weight; correct that layer, or make or fetch the model again"
)
OUTPUT = "the output image holds NaN or infinite values; check the model's weights"
REFUSED = [
    *(
        (f"a weight of 1e30, {method}", functools.partial(huge_weight, method), BEGINS_IN_THE_VAE)
        for method in ("minmax", "ptq4dm", "passionsr")
    ),
    ("a weight of 1e30, upscale", huge_weight_upscaled, OUTPUT),
    ("an output that overflows", infinite_output, OUTPUT),
    (
        "NaN in a model folder",
        nan_weight,
        "model: vae.encoder.conv_in.weight holds NaN or infinite values (1 of 361 tensors); make "
        "or fetch the model again",
    ),
    (
        "NaN in an artifact",
        nan_in_artifact,
        "artifact/model.safetensors: unet.conv_in.act_quantizer.lower, "
        "unet.conv_out.act_quantizer.upper hold NaN or infinite values (2 of 1545 tensors); "
        "calibrate again",
    ),
    (
        "let_lr of 1000",
        lambda folder: rate(folder, let_lr=1000.0, undo_worse=False),
        "encoder.let: the loss is nan after the last step; lower its learning rate, or check the "
        "weights and the calibration images",
    ),
    (
        "a negative learning rate",
        lambda folder: rate(folder, "passionsr.baselines.lsq:LSQ", act_lr=-1.0),
        "passionsr.baselines.lsq:LSQ: option act_lr: -1.0 given, expected a number of at least 0",
    ),
    (
        "NaN in a pixel",
        nan_pixels,
        "calibration image 2 of 3 holds NaN or infinite values: give pixels in [0, 1]",
    ),
    (
        "a model of half precision",
        half_precision,
        "the float model has torch.float16 weights: calibrate it in torch.float32 (model.float())",
    ),
    (
        "infinity in what is to be saved",
        unwritable,
        "{folder}/artifact: not written, for the quantized model cannot be used: "
        "vae.encoder.conv_in.weight, vae.encoder.conv_in.bias, "
        "vae.encoder.down_blocks.0.resnets.0.norm1.weight and 2 more hold NaN or infinite values "
        "(5 of 361 tensors); check the float model and the calibration images, or lower the "
        "learning rates",
    ),
]
ROWS = [
    BadInput(kind=2, given=given, prepare=prepare, answer=answer)
    for given, prepare, answer in REFUSED
]
ROWS.append(
    BadInput(
        kind=2,
        given="weights all 0, weights all equal",
        prepare=no_width,
        answer=ARTIFACT,
        status=0,
        made=MADE,
    )
)
ROWS += [
    BadInput(
        kind=8,
        given=f"LR of {height}x{width} px{', as released' * bool(options)}, calibrated at "
        f"{calibrated[0]}x{calibrated[1]}",
        prepare=small_image(height, width, *options, calibrated=calibrated),
        answer="sr.png",
        status=0,
        made=("sr.png",),
    )
    for height, width, options, calibrated in (
        (1, 1, (), (8, 8)),
        (1, 9, (), (8, 8)),
        (2, 1, (), (1, 1)),
        (3, 5, (), (3, 1)),
        (1, 3, ("--resize", "official", "--process-size", "4"), (8, 8)),
        (3, 1, ("--resize", "official", "--process-size", "4"), (3, 1)),
    )
]
ROWS.append(
    BadInput(
        kind=8,
        given="calibration images of 1x3 px",
        prepare=small_calibration,
        answer=ARTIFACT,
        status=0,
        made=MADE,
    )
)
