"""The command line: names, errors (one line, exit status 2, nothing half-written), start."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image

from passionsr import __version__
from passionsr.cli import InferenceArguments, cli_reference, guarded, main
from passionsr.utils.defaults import PACKAGED, default_file
from passionsr.utils.files import UserError, atomic_path, sha256_file, write_json

LR = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def save(path, array=LR, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def place(tmp_path, tiny):
    """A model, an LR image, a calibration folder and an SR / HR pair, all good."""
    from passionsr.models.folder import save_model

    save_model(tiny, tmp_path / "model")
    save(tmp_path / "lr.png")
    for index in range(2):
        save(tmp_path / "cal" / f"{index}.png", np.roll(LR, index, 0))
    save(tmp_path / "sr" / "a.png", LR)
    save(tmp_path / "hr" / "a.png", LR)
    return tmp_path


def upscale(p, source="lr.png"):
    return ["upscale", str(p / source), str(p / "out" / "x.png"), "--model", str(p / "model")]


def quantize(p, method="minmax", scheme="W8A8", cal="cal"):
    return ["quantize", str(p / "out"), "--model", str(p / "model"), "--method", method,
            "--scheme", scheme, "--calibration", str(p / cal)]  # fmt: skip


def score(p, metrics="psnr"):
    return ["score", str(p / "sr"), str(p / "hr"), str(p / "out" / "s.csv"), "--metrics", metrics]


def truncated(p):
    path = save(
        p / "bad.png", np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    )
    path.write_bytes(path.read_bytes()[:3000])


def with_nan(p):
    from safetensors.torch import load_file, save_file

    path = p / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["quant_conv.bias"][0] = math.nan
    save_file(state, path)
    manifest = json.loads((p / "model" / "manifest.json").read_text())
    manifest["vae/diffusion_pytorch_model.safetensors"] = sha256_file(path)
    (p / "model" / "manifest.json").write_text(json.dumps(manifest))


def wrong_hash(p):
    path = p / "model" / "context.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


NOTHING = lambda p: None  # noqa: E731
CASES = {
    "unknown method": (
        NOTHING,
        lambda p: quantize(p, method="gptq"),
        "method 'gptq' is unknown; known: minmax",
    ),
    "0 bits": (
        NOTHING,
        lambda p: quantize(p, scheme="W0A8"),
        "bit width 0 is not supported: give 2 to 16",
    ),
    "33 bits": (NOTHING, lambda p: quantize(p, scheme="W8A33"), "bit width 33 is not supported"),
    "no scheme": (
        NOTHING,
        lambda p: quantize(p, scheme="int8"),
        "is not of the form W<bits>A<bits>",
    ),
    "missing image": (NOTHING, lambda p: upscale(p, "none.png"), "none.png: image not found"),
    "no calibration images": (
        NOTHING,
        lambda p: quantize(p, cal="none"),
        "no PNG images for calibration",
    ),
    "size mismatch": (
        lambda p: save(p / "hr" / "a.png", np.zeros((12, 8, 3), np.uint8)),
        score,
        "a: SR is 8x8 but HR is 8x12; they must be of one size",
    ),
    "missing HR": (
        lambda p: (p / "hr" / "a.png").unlink(),
        score,
        "no HR image for 1 of 1 outputs",
    ),
    "unknown metric": (NOTHING, lambda p: score(p, "fid"), "unknown metric fid; known: psnr"),
    "grey": (
        lambda p: save(p / "bad.png", LR[..., 0]),
        lambda p: upscale(p, "bad.png"),
        "mode is L, expected 8-bit RGB",
    ),
    "alpha": (
        lambda p: save(p / "bad.png", np.dstack([LR, LR[..., :1]])),
        lambda p: upscale(p, "bad.png"),
        "mode is RGBA, expected 8-bit RGB without alpha",
    ),
    "16 bit": (
        lambda p: save(p / "bad.png", LR[..., 0].astype(np.uint16) * 257),
        lambda p: upscale(p, "bad.png"),
        "mode is I;16, expected 8-bit RGB",
    ),
    "truncated": (
        truncated,
        lambda p: upscale(p, "bad.png"),
        "cannot be read as an image, perhaps truncated",
    ),
    "not an image": (
        lambda p: (p / "bad.png").write_text("x"),
        lambda p: upscale(p, "bad.png"),
        "cannot be read as an image",
    ),
    "NaN in weights": (with_nan, upscale, "vae.quant_conv.bias holds NaN or infinite values"),
    "wrong hash": (wrong_hash, upscale, "context.safetensors: sha256 is"),
    "no model": (lambda p: (p / "model" / "manifest.json").unlink(), upscale, "no model here"),
    "mixed calibration sizes": (
        lambda p: save(p / "cal" / "2.png", LR[:4]),
        quantize,
        "calibration images differ in size",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=[k.replace(" ", "-") for k in CASES])
def test_bad_input(case, place, capsys):
    prepare, command, message = CASES[case]
    prepare(place)
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file()}
    assert main(command(place)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file()} == before


def test_good_input_works(place, capsys):
    """The same commands on good input, so that the cases above fail for their stated reason."""
    assert main(quantize(place)) == 0
    assert (
        main(
            ["upscale", str(place / "lr.png"), str(place / "y.png"), "--model", str(place / "out")]
        )
        == 0
    )
    assert Image.open(place / "y.png").size == (32, 32)
    assert main(upscale(place)) == 0
    assert main(score(place)) == 0
    assert "psnr: 80.0000" in capsys.readouterr().out  # equal images: 10 log10(1 / 1e-8)
    assert (place / "out" / "s.csv").read_text().startswith("image,metric,value,reason\n")


def test_bugs_are_not_dressed_as_user_errors():
    def broken():
        raise KeyError("bug")

    with pytest.raises(KeyError):
        guarded(broken)


def test_atomic_write_leaves_nothing_behind(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})

    def write_half():
        with atomic_path(target) as tmp:
            tmp.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_half()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert json.loads(target.read_text()) == {"old": 1}


def test_user_error_is_one_line(capsys):
    def failing():
        raise UserError("first\n  second")

    assert guarded(failing) == 2
    assert capsys.readouterr().err == "error: first second\n"


# -- the command line itself --------------------------------------------------------------------

OPTIONS = {
    "upscale": "input output --model --colour-fix --posterior --prompt --resize --process-size "
    "--latent-tile --latent-overlap --encoder-tile --decoder-tile --tile-norm",
    "import-osediff": "output --checkpoint --sha256 --base --revision --context --entry",
    "quantize": "output --model --method --scheme --scope --calibration --methods --seed",
    "score": "sr hr output --metrics",
    "fetch": "source",
    "check": "config",
    "bench": "results --step --tiles --sizes --model --threads",
    "explain": "table --row --col --dataset --config",
    "compare": "row other --config --scope --dataset",
    "plan": "config --gpus --times --test-images --record",
    "check-results": "results --expected",
    "expect": "results --expected",
    "readme": "--readme --results --grid",
}


def test_commands_and_options_keep_their_names():
    """Scripts and pages of others call them."""
    sections = cli_reference().split("\n## `passionsr ")[1:]
    found = {}
    for section in sections:
        names = [
            line.split("`")[1].split()[0] for line in section.splitlines() if line[:3] == "* `"
        ]
        found[section.split("`")[0]] = {n.rstrip(",") for n in names} - {"-h"}
    assert found == {command: set(options.split()) for command, options in OPTIONS.items()}


def test_the_reference_page_is_up_to_date():
    page = Path("docs/reference/cli.md").read_text()
    assert page == cli_reference(), "run `python tools/make_cli_reference.py`"


def test_inference_options_are_those_of_the_library():
    """Names, defaults and choices stand in both places, because help must not import torch."""
    from passionsr.inference.super_resolve import InferenceOptions

    def described(cls):
        hints = get_type_hints(cls)
        return {f.name: (f.default, get_args(hints[f.name])) for f in dataclasses.fields(cls)}

    assert described(InferenceArguments) == described(InferenceOptions)


USAGE = {
    "no command": ([], "Missing command. (see `passionsr --help`)"),
    "unknown command": (["scale"], "No such command 'scale'"),
    "missing argument": (["upscale"], "Missing argument 'input'. (see `passionsr upscale --help`)"),
    "missing option": (["quantize", "x", "--scheme", "W6A6"], "Missing option '--method'"),
    "unknown option": (["check", "a.yaml", "--fast"], "No such option: --fast"),
    "not a choice": (["upscale", "a", "b", "--resize", "crop"], "not one of 'pad', 'official'"),
    "not a number": (["plan", "c.yaml", "--gpus", "two"], "Invalid value for '--gpus'"),
    "no value": (["bench", "--tiles", "--sizes"], "Option '--sizes' requires an argument"),
    "too many": (["check", "a.yaml", "b.yaml"], "Got unexpected extra argument(s) (b.yaml)"),
}


@pytest.mark.parametrize("case", USAGE, ids=[k.replace(" ", "-") for k in USAGE])
def test_usage_errors_are_one_line(case, capsys):
    arguments, message = USAGE[case]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_an_interrupted_command_ends_with_130(monkeypatch):
    def interrupted(source):
        raise KeyboardInterrupt

    monkeypatch.setattr("passionsr.data.dataset_registry.fetch_dataset_source", interrupted)
    assert main(["fetch", "S"]) == 130


def test_several_sizes_after_one_name(monkeypatch, capsys):
    """`--sizes 64 128` and `--sizes 64 --sizes 128` are the same; a next option ends the list."""
    asked = []

    def report(model, sizes, threads):
        asked.append((model, list(sizes), threads))
        return "table"

    monkeypatch.setattr("passionsr.benchmark.tiled_memory.tile_report", report)
    monkeypatch.setattr("passionsr.benchmark.tiled_memory.difference_report", lambda *_: "table")
    assert main(["bench", "results/x", "--tiles", "--sizes", "64", "128", "--threads", "2"]) == 0
    assert main(["bench", "--tiles", "--sizes", "64", "--sizes", "128", "--threads", "2"]) == 0
    assert main(["bench", "--tiles"]) == 0
    assert asked[:2] == [(Path("models/mini"), [64, 128], 2)] * 2
    assert asked[2] == (Path("models/mini"), [512, 1024, 2048], 1)


def run_python(code, **environment):
    """(exit status, stdout) of a new process; stderr goes to the test's."""
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["upscale", "--help"], ["--version"]])
def test_help_and_version_import_nothing_slow(arguments):
    """Help took 0.27 s, torch takes seconds. Modules are compared: times depend on the load."""
    slow = {"torch", "diffusers", "pandas", "numpy", "numba", "PIL", "rich", "yaml"}
    code = (
        f"import sys; from passionsr.cli import main; status = main({arguments}); "
        f"print(sorted({slow} & set(sys.modules))); sys.exit(status)"
    )
    status, out = run_python(code)
    *text, imported = out.splitlines()
    assert status == 0
    assert imported == "[]"
    if arguments == ["--version"]:
        assert text == [f"passionsr {__version__}"]


def imported(arguments, of):
    """Which of some modules a command imports, in a process of its own."""
    code = (
        f"import sys; from passionsr.cli import main; status = main({list(map(str, arguments))}); "
        f"print(sorted({of} & set(sys.modules))); sys.exit(status)"
    )
    status, out = run_python(code)
    assert status == 0
    return out.splitlines()[-1]


@pytest.mark.parametrize("command", [["check", "config/mini.yaml"], ["plan", "config/mini.yaml"]])
def test_questions_about_a_configuration_import_no_model(command):
    assert imported(command, {"torch", "diffusers", "pandas", "numba"}) == "[]"


# What diffusers, torch or we would import, and what one small image does not need.
NOT_FOR_AN_IMAGE = {
    "accelerate", "bitsandbytes", "diffusers.models.transformers.transformer_flux",
    "diffusers.models.autoencoders.autoencoder_kl_wan", "diffusers.models.unets.unet_1d", "numba",
    "matplotlib", "networkx", "pandas", "peft", "pyiqa", "scipy", "snakemake", "sympy",
    "tokenizers", "torch._dynamo", "torch._inductor", "torchvision", "transformers",
}  # fmt: skip


def test_upscaling_imports_what_it_uses(place):
    """A command takes as long to start as to work; times depend on the load, so modules count."""
    assert imported(upscale(place), NOT_FOR_AN_IMAGE) == "[]"
    assert main(quantize(place)) == 0
    command = [*upscale(place)[:-1], place / "out"]
    assert imported(command, NOT_FOR_AN_IMAGE) == "[]"


def test_shell_completion():
    code = "from passionsr.cli import main; main()"
    asked = {"_PASSIONSR_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    status, out = run_python(code, COMP_WORDS="passionsr up", **asked)
    assert (status, out.split()) == (0, ["upscale"])
    asked["COMP_CWORD"] = "3"
    status, out = run_python(code, COMP_WORDS="passionsr upscale --tile-norm ", **asked)
    assert (status, out.split()) == (0, ["pooled", "official"])


def test_which_registry_counts(tmp_path, monkeypatch, capsys):
    """An explicit file, else ./config/methods.yaml, else the one that comes with the package."""
    from passionsr.benchmark.standalone import find_method

    monkeypatch.chdir(tmp_path)
    assert default_file("methods.yaml") == PACKAGED / "methods.yaml"
    assert find_method("minmax").title == "MinMax"
    line = '{class: "passionsr.baselines.minmax:MinMax", title: %s}\n'
    here = tmp_path / "config" / "methods.yaml"
    here.parent.mkdir()
    here.write_text("minmax: " + line % "here")
    assert find_method("minmax").title == "here"
    other = tmp_path / "other.yaml"
    other.write_text("minmax: " + line % "other")
    assert find_method("minmax", other).title == "other"
    with pytest.raises(UserError, match=r"method 'lsq' is unknown; known: minmax$"):
        find_method("lsq")
