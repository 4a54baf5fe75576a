"""Bad inputs of configurations, registries, names and files of other programs."""

import json
import os
import re
import shutil
from pathlib import Path

from bad_inputs.table import BadInput

ROOT = Path(__file__).resolve().parent.parent.parent
METHODS = "plain: {class: 'passionsr.baselines.minmax:MinMax'}\n"
BASE = {
    "name": "given",
    "model": "tiny",
    "test": str(ROOT / "config" / "mini_test.tsv"),
    "calibration": str(ROOT / "config" / "mini_calibration.tsv"),
    "methods": "methods.yaml",
    "runs": [{"methods": ["plain"], "schemes": ["W6A6"], "scopes": ["UV"], "seeds": [0]}],
    "batch_size": 1,
    "metrics": ["psnr"],
}
PASSIONSR = "passionsr.methods.passionsr:PassionSR"
NAME = "expected a name of at most 64 letters, digits, _ and -, not beginning with -"


def config(folder, *, path="c.yaml", registry=METHODS, extra="", **changes):
    """Write a configuration, a line per key, and its registry; return `passionsr check` of it."""
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in {**BASE, **changes}.items()]
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text("".join(lines) + extra)
    (folder / "methods.yaml").write_text(registry)
    (folder / "budgets.yaml").write_text("default: {}\n")
    return ["check", path]


def checked(kind, given, answer, **how):
    """A row of `passionsr check`."""
    return BadInput(kind, given, lambda folder: config(folder, **how), answer)


def raw(kind, given, answer, content):
    """A row of `passionsr check` on a file with these bytes."""

    def prepare(folder):
        (folder / "c.yaml").write_bytes(content)
        return ["check", "c.yaml"]

    return BadInput(kind, given, prepare, answer)


def block(**changes):
    return [{**BASE["runs"][0], **changes}]


def options(text):
    return METHODS + f"p: {{class: '{PASSIONSR}', options: {{{text}}}}}\n"


def linked(folder):
    """The workflow of this repository in a folder of its own, by links."""
    for name in ("Snakefile", "workflow", "passionsr", "baselines", "config", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)


def planned(name):
    """A dry run of a configuration of that name, with a method that is not there."""

    def prepare(folder):
        linked(folder)
        config(folder, path=name, runs=block(methods=["plane"]))
        return ["$", "snakemake", "--cores", "1", "-n", "-q", "all", "--config", f"file={name}"]

    return prepare


def model(folder, change=None):
    """A copy of the mini model; `change` of its folder, then upscale an image with it."""
    from PIL import Image

    shutil.copytree(ROOT / "models" / "mini", folder / "model")
    Image.new("RGB", (8, 8)).save(folder / "lr.png")
    if change is not None:
        change(folder / "model")
    return ["upscale", "lr.png", "out/sr.png", "--model", "model"]


def with_model(given, answer, change):
    return BadInput(11, given, lambda folder: model(folder, change), answer)


def artifact(content):
    """An artifact folder whose scheme.json holds this text."""

    def prepare(folder):
        from PIL import Image

        Image.new("RGB", (8, 8)).save(folder / "lr.png")
        (folder / "model").mkdir()
        (folder / "model" / "scheme.json").write_text(content)
        (folder / "model" / "model.safetensors").write_bytes(b"")
        return ["upscale", "lr.png", "out/sr.png", "--model", "model"]

    return prepare


def file(name, content, *command):
    """A command on one file with these bytes."""

    def prepare(folder):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return list(command)

    return prepare


def cut(folder):
    """A context cut in half, with a manifest that says so."""
    from passionsr.utils.files import sha256_file

    path = folder / "context.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[path.name] = sha256_file(path)
    (folder / "manifest.json").write_text(json.dumps(manifest))


TIMES = b"""model	job	class	units	startup_s	work_s	mb_per_job	mb_per_unit	source
*	infer	*	many	1	1	1	1	me
"""
SCHEME = {"format": 1, "layers": {}, "attention": {}, "sha256": "0" * 64}
NOT_A_LIST = "not a list of files with their sha256, as passionsr writes it"
FOREIGN = "the file of another program, or damaged"

# What the registry of methods is quoted for, in the first line that names it.
REGISTRY = "c.yaml line 5: methods: methods.yaml line 2"

ROWS = [
    # -- names used raw ---------------------------------------------------------------------------
    checked(9, "results name that is a path", f'c.yaml line 1: name: "../x" given, {NAME}',
            name="../x"),
    checked(9, "results name like an option", f'c.yaml line 1: name: "-x" given, {NAME}',
            name="-x"),
    checked(9, "results name of 65 letters",
            f'c.yaml line 1: name: "{"x" * 56}... given, {NAME}', name="x" * 65),
    checked(9, "name that Windows reserves",
            "c.yaml line 1: name: con is no file name on Windows: give another name", name="con"),
    checked(9, "method named with a regex character",
            f'{REGISTRY}: a+b: "a+b" given, {NAME}',
            registry=METHODS + "a+b: {class: 'a:B'}\n"),
    checked(9, "methods equal but for case",
            f"{REGISTRY}: PLAIN: two rows of the tables are called plain and PLAIN, which is one "
            "file name on Windows and macOS: give one another name",
            registry=METHODS + "PLAIN: {class: 'a:B'}\n"),
    checked(9, "method named as the float model",
            f"{REGISTRY}: fp32: this is the name of a row that is not quantized; give another",
            registry=METHODS + "fp32: {class: 'a:B'}\n"),
    checked(9, "title of two lines",
            f'{REGISTRY}: p.title: "a\\nb" given, expected text in one line or null',
            registry=METHODS + "p: {class: 'a:B', title: \"a\\nb\"}\n"),
    checked(9, "model folder with braces",
            "c.yaml line 2: model: the path 'my {model}' holds braces, which Snakemake takes for a "
            "wildcard: rename it", model="my {model}"),
    BadInput(9, "configuration path with a space and quotes",
             lambda folder: config(folder, path="my 'c' {x} $y.yaml"),
             "my 'c' {x} $y.yaml: 1 runs, results in results/given", status=0),
    BadInput(9, "method that a dry run of the workflow does not know", planned("my c.yaml"),
             "my c.yaml line 6: runs[0].methods[0]: method 'plane' is unknown; known: plain",
             status=1),
    # -- found only by a later job ----------------------------------------------------------------
    checked(10, "metric twice", "c.yaml line 8: metrics: psnr is given twice: give it once",
            metrics=["psnr", "psnr"]),
    checked(10, "seed twice", "c.yaml line 6: runs[0].seeds: 0 is given twice: give it once",
            runs=block(seeds=[0, 0])),
    checked(10, "key twice", "c.yaml line 9: key 'name' is given twice, first in line 1",
            extra="name: other\n"),
    checked(10, "octal number", "c.yaml line 9: 010 is an octal number in YAML 1.1 and not in YAML "
            "1.2: write the number in decimal digits, or text in quotes", extra="threads: 010\n"),
    checked(10, "number of base 60", "c.yaml line 9: 1:30 is a number of base 60 in YAML 1.1 and "
            "not in YAML 1.2: write the number in decimal digits, or text in quotes",
            extra="memory_mb: 1:30\n"),
    checked(10, "not a number", "c.yaml line 9: .nan given, expected a finite number",
            extra="memory_mb: .nan\n"),
    checked(10, "nothing where a list is meant",
            "c.yaml line 8: metrics: null given, expected a list of at least 1 entry, each one of "
            "psnr, ssim, lpips, dists, niqe, musiq, maniqa, clipiqa, psnr_fp, lpips_fp",
            metrics=None),
    checked(10, "truth value as a number",
            "c.yaml line 7: batch_size: true given, expected an integer of at least 1",
            batch_size=True),
    checked(10, "option in quotes",
            f"{REGISTRY}: p.options.let_lr: {PASSIONSR}: option let_lr: \"1e-3\" given, expected "
            "a number of at least 0", registry=options('let_lr: "1e-3"')),
    checked(10, "option below its range",
            f"{REGISTRY}: p.options.epochs: {PASSIONSR}: option epochs: -1 given, expected an "
            "integer of at least 0", registry=options("epochs: -1")),
    checked(10, "option of a wrong type",
            f"{REGISTRY}: p.options.let: {PASSIONSR}: option let: 1 given, expected true or false",
            registry=options("let: 1")),
    checked(10, "class that is not there",
            f"{REGISTRY}: p.class: passionsr.methods.passionsr:Passion: "
            "passionsr.methods.passionsr has no class Passion; its classes: PassionSR",
            registry=METHODS + "p: {class: 'passionsr.methods.passionsr:Passion'}\n"),
    checked(10, "key of the registry that is `no`",
            "c.yaml line 5: methods: methods.yaml line 2: key no is read as bool, expected text: "
            "put it in quotes", registry=METHODS + "no: {class: 'a:B'}\n"),
    checked(10, "limit larger than the list",
            "c.yaml line 9: limit.test: 99 given, but there are 10 images: give at most 10",
            limit={"test": 99}),
    checked(10, "calibration on test images",
            "c.yaml line 4: calibration: astronaut.png is a test image, too: calibrate on other "
            "images, or the scores say nothing", calibration=BASE["test"]),
    checked(10, "seed of 20 digits",
            "c.yaml line 6: runs[0].seeds[0]: 99999999999999999999 given, expected an integer from "
            "0 to 9223372036854775807", runs=block(seeds=[99999999999999999999])),
    BadInput(10, "number with an exponent", lambda folder: config(folder, registry=options(
             "let_lr: 1e-3")), "c.yaml: 1 runs, results in results/given", status=0),
    raw(10, "two documents", "c.yaml line 2: not valid YAML (column 1: expected a single document "
        "in the stream but found another document)", b"a: 1\n---\nb: 2\n"),
    raw(10, "a list on the top level", 'c.yaml: top level: ["a"] given, expected a mapping with '
        "the keys name, model, family, test, calibration, methods, runs, budget, batch_size, "
        "metrics, limit, sensitivity, threads, device, posterior, inference, resize_mismatch, "
        "low_memory, memory_mb, expected_layers, external_outputs", b"- a\n"),
    raw(10, "a tab", "c.yaml line 2: not valid YAML (column 1: found character '\\t' that cannot "
        "start any token)", b"a:\n\tb: 1\n"),
    # -- files of other programs -----------------------------------------------------------------
    raw(11, "configuration in UTF-16", "c.yaml: not a text file in UTF-8 (byte 1 does not belong "
        "there): save it as UTF-8", "a: 1".encode("utf-16")),
    raw(11, "configuration in Latin-1", "c.yaml: not a text file in UTF-8 (byte 9 does not belong "
        "there): save it as UTF-8", "# Grün: ä".encode("latin-1").replace(b"\xfc", b"u")),
    raw(11, "configuration nested too deeply",
        "c.yaml: not a configuration (nested too deeply)", b"a: " + b"[" * 5000),
    with_model("manifest that is cut",
               "model/manifest.json: not valid JSON (Expecting ',' delimiter: line 2 column 19 "
               "(char 20))",
               lambda m: (m / "manifest.json").write_text('{\n"family.json": "1"')),
    with_model("manifest of another program", f"model/manifest.json: {NOT_A_LIST} ('name' is none):"
               f" {FOREIGN}", lambda m: (m / "manifest.json").write_text('{"name": "app"}')),
    with_model("manifest that is a list", f"model/manifest.json: {NOT_A_LIST} ('[]' is none): "
               f"{FOREIGN}", lambda m: (m / "manifest.json").write_text("[]")),
    with_model("manifest of no files", f"model/manifest.json: {NOT_A_LIST} ('{{}}' is none): "
               f"{FOREIGN}", lambda m: (m / "manifest.json").write_text("{}")),
    with_model("manifest that leaves its folder",
               f"model/manifest.json: {NOT_A_LIST} ('../lr.png' is none): {FOREIGN}",
               lambda m: (m / "manifest.json").write_text(json.dumps({"../lr.png": "0" * 64}))),
    with_model("family.json of another program",
               'model/family.json: expected {"family": "<name>"}, as passionsr writes it',
               lambda m: (m / "family.json").write_text('["osediff"]')),
    with_model("weights that are cut", "model: not a whole model of family osediff (Error while "
               "deserializing header: incomplete metadata, file not fully covered): fetch or make "
               "it again", cut),
    BadInput(11, "scheme.json that is a list", artifact("[]"), "model/scheme.json: format is None, "
             "expected 1: an artifact of another version or program; calibrate again"),
    BadInput(11, "scheme.json with NaN", artifact('{"format": NaN}'),
             "model/scheme.json: not valid JSON (NaN is no number)"),
    BadInput(11, "scheme.json without layers", artifact('{"format": 1}'),
             "model/scheme.json: layers is missing or no dict; calibrate again"),
    BadInput(11, "scheme.json nested too deeply", artifact("[" * 100_000),
             "model/scheme.json: not valid JSON (nested too deeply)"),
    BadInput(11, "scheme.json of other weights", artifact(json.dumps(SCHEME)), re.compile(
             r"^model/model\.safetensors: sha256 is e3b0c44\w+, expected 0{64}; the file is "
             r"empty: put the right file there$")),
    BadInput(11, "table of bands in Latin-1", file("bands.tsv", b"results\t\xfc\n", "check-results",
             str(ROOT / "docs/results/mini.md"), "--expected", "bands.tsv"), "bands.tsv: not a "
             "text file in UTF-8 (byte 9 does not belong there): save it as UTF-8"),
    BadInput(11, "table of times with a word for a number", lambda folder: [
             "plan", "c.yaml", *file("times.tsv", TIMES, "--times", "times.tsv")(folder),
             *config(folder)[2:]],
             "times.tsv line 2: units: 'many' given, expected a number of at least 0 (units: above "
             "0)"),
    BadInput(11, "data list with a row that is cut", lambda folder: [
             *file("list.tsv", Path(BASE["test"]).read_bytes()[:400])(folder),
             *config(folder, test="list.tsv")],
             "c.yaml line 3: test: list.tsv line 4: 7 values, expected 8: name, source, photo, x, "
             "y, size, hr_sha256, lr_sha256"),
]  # fmt: skip
