"""The built wheel, installed where the checkout is not importable, used from an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from copies import ROOT, copy_repository
from PIL import Image

from passionsr import __version__

pytestmark = pytest.mark.slow

SOURCES = ("passionsr", "baselines", "config", "pyproject.toml", "README.md", "LICENSE")
DEFAULTS = ("methods.yaml", "budgets.yaml", "datasets.yaml", "published_table4.csv")
LR = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def run(*command, folder=None):
    """A finished process without PYTHONPATH; one thread, so that sums are those of this one."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment.update(PASSIONSR_CACHE=str(ROOT / ".cache"), OMP_NUM_THREADS="1")
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Made by `python -m build`: the sdist from a copy of the sources, the wheel from the sdist."""
    folder = tmp_path_factory.mktemp("build")
    copy_repository(folder / "source", SOURCES)
    command = ("-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source")
    built = run(sys.executable, *command)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    assert (folder / "dist" / f"passionsr_bench-{__version__}.tar.gz").is_file()
    return folder / "dist" / f"passionsr_bench-{__version__}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The commands of a new virtual environment; its other packages are those of this one."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    assert run(sys.executable, "-m", "venv", "--without-pip", folder).returncode == 0
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    done = run(*pip, wheel)
    assert done.returncode == 0, done.stderr
    # Path files in that folder, such as that of an editable passionsr, do not count.
    site = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
    ).stdout.strip()
    Path(site, "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_what_the_wheel_holds(wheel):
    """One top-level package; the links of the checkout have become files; no model."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        contents = {name: archive.read(name) for name in names}
    tops = {PurePosixPath(name).parts[0] for name in names}
    assert tops == {"passionsr", f"passionsr_bench-{__version__}.dist-info"}
    modules = {
        p.relative_to(ROOT).as_posix(): p.read_bytes() for p in ROOT.glob("passionsr/**/*.py")
    }
    for path in ROOT.glob("baselines/*.py"):
        modules[f"passionsr/baselines/{path.name}"] = path.read_bytes()
    data = {f"passionsr/defaults/{n}": (ROOT / "config" / n).read_bytes() for n in DEFAULTS}
    held = {name: text for name, text in contents.items() if name.startswith("passionsr/")}
    assert held == {**modules, **data}


def test_nothing_of_the_checkout_is_imported(installed, tmp_path):
    code = "import passionsr, passionsr.baselines as b; print(passionsr.__file__, b.__file__)"
    done = run(installed / "python", "-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for path in done.stdout.split():
        assert Path(path).is_relative_to(installed.parent), path


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """An otherwise empty folder with a float model and two LR images."""
    from passionsr.models.folder import save_model

    folder = tmp_path_factory.mktemp("place")
    save_model(tiny, folder / "model")
    (folder / "lr").mkdir()
    for index in range(2):
        Image.fromarray(np.roll(LR, index, 0)).save(folder / "lr" / f"{index}.png")
    return folder


def test_commands_from_an_empty_folder(installed, place):
    """Quantize, upscale and score; the image is what this checkout makes of the artifact."""
    from passionsr.inference.super_resolve import super_resolve
    from passionsr.quantization.artifact import load_quantized

    def passionsr(*arguments):
        done = run(installed / "passionsr", *arguments, folder=place)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert passionsr("--version") == f"passionsr {__version__}\n"
    options = ("--method", "minmax", "--scheme", "W8A8", "--calibration", "lr", "--model", "model")
    assert passionsr("quantize", "artifact", *options).endswith("\nartifact\n")
    for model, folder in (("artifact", "sr"), ("model", "hr")):
        passionsr("upscale", "lr/0.png", f"{folder}/0.png", "--model", model)
    made = np.asarray(Image.open(place / "sr" / "0.png"))
    assert np.array_equal(made, super_resolve(load_quantized(place / "artifact"), LR))
    printed = passionsr("score", "sr", "hr", "scores.csv", "--metrics", "psnr")
    values = dict(line.split(": ") for line in printed.splitlines())
    assert float(values["psnr"]) > 30  # W8A8 against float, measured: 40.5 dB
    assert (place / "scores.csv").read_text().startswith("image,metric,value,reason\n0,psnr,")


def test_a_configuration_is_checked(installed, tmp_path):
    """What checks a configuration is in the package, not beside it."""
    (tmp_path / "config").mkdir()
    lists = ("mini_test.tsv", "mini_calibration.tsv")
    for name in ("test.yaml", "methods.yaml", "budgets.yaml", *lists):
        shutil.copy(ROOT / "config" / name, tmp_path / "config" / name)
    shutil.copytree(ROOT / "config" / "mini_calibration", tmp_path / "config" / "mini_calibration")
    done = run(installed / "passionsr", "check", "config/test.yaml", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "config/test.yaml: 4 runs, results in results/test\n"


def test_what_is_missing_is_said_in_one_line(installed, place):
    """The model of the checkout is not in the wheel; methods are found without ./config."""
    done = run(installed / "passionsr", "upscale", "lr/0.png", "x.png", folder=place)
    assert done.returncode == 2
    assert done.stderr.startswith("error: models/mini: no model here")
    options = ("--method", "none", "--scheme", "W8A8", "--calibration", "lr")
    done = run(installed / "passionsr", "quantize", "x", *options, folder=place)
    assert done.returncode == 2
    assert done.stderr.startswith("error: method 'none' is unknown; known: minmax, lsq, ")
    assert done.stderr.count("\n") == 1
