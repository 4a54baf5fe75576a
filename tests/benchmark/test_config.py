"""Configurations, the registries beside them, and files that must agree with each other."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from yaml_lines import LINE, without_lines

from passionsr.benchmark import config as module
from passionsr.benchmark.config import Run, load_budget, load_config, load_methods
from passionsr.benchmark.config_keys import JOBS, ConfigFile
from passionsr.benchmark.config_reference import config_schema, key_jobs
from passionsr.metrics.registry import METRICS
from passionsr.utils.files import UserError

CONFIGS = sorted(
    p for p in Path("config").glob("*.yaml") if p.stem not in {"methods", "budgets", "datasets"}
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configurations_are_valid(path):
    config = load_config(path)
    assert config.runs
    assert config.results == Path("results") / path.stem
    assert path.read_text().startswith("# yaml-language-server: $schema=config.schema.json\n")
    jsonschema.validate(yaml.safe_load(path.read_text()), config_schema())


def test_mini_covers_the_story():
    """Every method and ablation at W6A6, PassionSR against MinMax at every bit width."""
    config = load_config("config/mini.yaml")
    used = {
        scheme: {r.method for r in config.runs if r.scheme == scheme and r.scope == "UV"}
        for scheme in ("W8A8", "W6A6", "W4A4")
    }
    known = {
        name for name, e in load_methods("config/methods.yaml").items() if e.ablation != "released"
    }
    assert used["W6A6"] == known - {"lsq_plus"}
    assert all(methods >= {"minmax", "passionsr"} for methods in used.values())


# -- a small configuration with its own registry, and changes of it --------------------------------

METHODS = """
plain: {class: "lib.plain:Plain"}
trained: {class: "lib.trained:Trained", title: Trained, options: {steps: 2, rate: 1.0e-5}}
trained_off: {class: "lib.trained:Trained", options: {part: false}, ablation: parts}
"""
BUDGETS = """
default: {}
short: {"lib.trained:Trained": {epochs: 1}}
"""
BLOCK = {"methods": ["trained"], "schemes": ["W6A6"], "scopes": ["UV"], "seeds": [0]}
SMALLEST = {
    "name": "smallest",
    "model": "tiny",
    "test": "config/mini_test.tsv",
    "calibration": "config/mini_calibration.tsv",
    "runs": [BLOCK],
    "batch_size": 1,
    "metrics": ["psnr"],
}


@pytest.fixture
def load(tmp_path):
    """load(key=value, ...): SMALLEST with changes; a key whose value is ... is left out."""
    (tmp_path / "methods.yaml").write_text(METHODS)
    (tmp_path / "budgets.yaml").write_text(BUDGETS)

    def write_and_load(changes=None, **more):
        raw = {**SMALLEST, "methods": str(tmp_path / "methods.yaml"), **(changes or {}), **more}
        path = tmp_path / "c.yaml"
        kept = {key: value for key, value in raw.items() if value is not ...}
        path.write_text(yaml.safe_dump(kept, sort_keys=False))
        return load_config(path)

    return write_and_load


def test_defaults(load):
    """What a configuration of the required keys alone means; the same as before pydantic."""
    config = load()
    assert {name: getattr(config, name) for name in (
        "datasets", "photos", "limits", "budget", "threads", "sensitivity", "posterior",
        "low_memory", "device", "memory_mb", "expected_layers", "external_outputs", "inference",
        "resize_mismatch",
    )} == {
        "datasets": (), "photos": None, "limits": {}, "budget": {}, "threads": 1,
        "sensitivity": None, "posterior": "mean", "low_memory": False, "device": "cpu",
        "memory_mb": 3000, "expected_layers": {}, "external_outputs": (), "inference": {},
        "resize_mismatch": False,
    }  # fmt: skip
    assert (config.name, config.model, config.batch_size) == ("smallest", "tiny", 1)
    assert (config.test, config.calibration) == (
        Path("config/mini_test.tsv"),
        Path("config/mini_calibration.tsv"),
    )
    assert config.metrics == ("psnr",)
    assert config.runs == (Run("trained", "W6A6", "UV", 0),)


def test_values_arrive(load):
    """Every optional key with a value that is not its default; a default that is given is none."""
    given = {
        "budget": {"lib.trained:Trained": {"epochs": 7}},
        "limit": {"calibration": 3},
        "sensitivity": "W4A4",
        "threads": 2,
        "device": "cuda:1",
        "posterior": "sample",
        "inference": {"latent_tile": 64, "latent_overlap": 32, "colour_fix": "adain"},
        "resize_mismatch": True,
        "low_memory": True,
        "memory_mb": 14000,
        "expected_layers": {"unet": 282},
    }
    config = load(given)
    for name in given.keys() - {"limit", "inference"}:
        assert getattr(config, name) == given[name]
    assert config.limits == {"calibration": 3}
    assert config.inference == {"latent_tile": 64, "colour_fix": "adain"}
    (photos,) = {load(calibration={"list": "l.tsv", "photos": {"dataset": "DIV2K_train"}}).photos}
    assert (photos.name, photos.count) == ("DIV2K_train", 800)


def test_runs_and_scores_keep_their_columns():
    """run.json and scores/*.csv hold the fields in this order."""
    run = dataclasses.asdict(Run("lsq", "W4A4", "U", 3))
    assert list(run.items()) == [("method", "lsq"), ("scheme", "W4A4"), ("scope", "U"), ("seed", 3)]


def test_runs_are_products_without_repetition(load):
    block = {"methods": ["plain"], "schemes": ["W8A8", "W4A4"], "scopes": ["U"], "seeds": [0, 1]}
    config = load(runs=[block, {**block, "seeds": [1, 2]}])
    assert [run.run_id for run in config.runs] == [
        "plain-W8A8-U-s0", "plain-W8A8-U-s1", "plain-W4A4-U-s0", "plain-W4A4-U-s1",
        "plain-W8A8-U-s2", "plain-W4A4-U-s2",
    ]  # fmt: skip
    assert config.run("plain-W4A4-U-s2") == config.runs[-1]
    with pytest.raises(UserError, match="run 'plain-W4A4-U-s9' is not in this configuration"):
        config.run("plain-W4A4-U-s9")


# -- mistakes ------------------------------------------------------------------------------------


NAME = "expected a name of at most 64 letters, digits, _ and -, not beginning with -"
TEXT = "text in one line"


def block(**changes):
    changed = {**BLOCK, **changes}
    return [{key: value for key, value in changed.items() if value is not ...}]


def known_keys(first):
    """Every key of a configuration, what is spelled like the given one first."""
    return ", ".join([first, *(key for key in ConfigFile.model_fields if key != first)])


INTEGER = "expected an integer of at least 1"
RUN_KEYS = "a mapping with the keys methods, schemes, scopes, seeds"
# What the schema for editors refuses, too.
MISTAKES = [
    ({"thread": 1}, f"thread: unknown key; known: {known_keys('threads')}"),
    ({"lean": True}, "lean: this key is now called low_memory"),
    ({"given": []}, "given: this key is now called external_outputs"),
    ({"model": ...}, f"model: missing, expected {TEXT}"),
    ({"batch_size": ...}, f"batch_size: missing, {INTEGER}"),
    ({"batch_size": 0}, f"batch_size: 0 given, {INTEGER}"),
    ({"batch_size": "4"}, f'batch_size: "4" given, {INTEGER}'),
    ({"batch_size": 1.5}, f"batch_size: 1.5 given, {INTEGER}"),
    ({"batch_size": True}, f"batch_size: true given, {INTEGER}"),
    ({"batch_size": None}, f"batch_size: null given, {INTEGER}"),
    ({"batch_size": 0, "threads": 0},
     f"batch_size: 0 given, {INTEGER}; threads: 0 given, expected an integer from 1 "
     "to 1024"),
    ({"name": "../x"}, f'name: "../x" given, {NAME}'),
    ({"name": 12}, f"name: 12 given, {NAME}"),
    ({"model": ["tiny"]}, f'model: ["tiny"] given, expected {TEXT}'),
    ({"runs": []}, f"runs: [] given, expected a list of at least 1 entry, each {RUN_KEYS}"),
    ({"runs": {}}, f"runs: {{}} given, expected a list of at least 1 entry, each {RUN_KEYS}"),
    ({"runs": ["minmax"]}, f'runs[0]: "minmax" given, expected {RUN_KEYS}'),
    ({"runs": block(seeds=...)},
     "runs[0].seeds: missing, expected a list of at least 1 entry, each an integer from 0 to "
     "9223372036854775807"),
    ({"runs": block(seed=0)},
     "runs[0].seed: unknown key; known: seeds, methods, schemes, scopes"),
    ({"runs": [*block(), *block(seeds=[0, -1])]},
     "runs[1].seeds[1]: -1 given, expected an integer from 0 to 9223372036854775807"),
    ({"runs": block(scopes=["V"])}, 'runs[0].scopes[0]: "V" given, expected one of UV, U'),
    ({"runs": block(schemes=["8bit"])},
     'runs[0].schemes[0]: "8bit" given, expected W<bits>A<bits>, such as W6A6'),
    ({"metrics": []},
     f"metrics: [] given, expected a list of at least 1 entry, each one of {', '.join(METRICS)}"),
    ({"limit": {"test": 0}}, f"limit.test: 0 given, {INTEGER} or null"),
    ({"limit": {"tests": 1}}, "limit.tests: unknown key; known: test, calibration"),
    ({"limit": 3}, "limit: 3 given, expected a mapping with the keys test, calibration"),
    ({"sensitivity": "W6"},
     'sensitivity: "W6" given, expected W<bits>A<bits>, such as W6A6 or null'),
    ({"device": "gpu"}, 'device: "gpu" given, expected cpu, cuda or cuda:<number>'),
    ({"posterior": "samples"}, 'posterior: "samples" given, expected one of sample, mean'),
    ({"low_memory": "yes"}, 'low_memory: "yes" given, expected true or false'),
    ({"resize_mismatch": 1}, "resize_mismatch: 1 given, expected true or false"),
    ({"expected_layers": {"text": 2}}, "expected_layers.text: unknown key; known: unet, vae"),
    ({"inference": {"resize": "crop"}},
     'inference.resize: "crop" given, expected one of pad, official'),
    ({"inference": {"latent_tile": "64"}},
     'inference.latent_tile: "64" given, expected an integer of at least 2 or null'),
    ({"inference": {"tile_norms": "pooled"}},
     "inference.tile_norms: unknown key; known: tile_norm, resize, process_size, latent_tile, "
     "latent_overlap, encoder_tile, decoder_tile, colour_fix"),
    ({"budget": 3}, "budget: 3 given, expected a name in budgets.yaml or a mapping"),
    ({"budget": {"lib.trained:Trained": 3}},
     "budget.lib.trained:Trained: 3 given, expected a mapping"),
    ({"test": 3},
     "test: 3 given, expected the path of a data list or a list of at least 1 entry, each a "
     "mapping with the keys folder, lr, hr, pairing, count, dataset, name"),
    ({"calibration": []},
     "calibration: [] given, expected the path of a data list or a mapping with the keys list, "
     "photos"),
    ({"external_outputs": [{"name": "x", "dataset": "d"}]},
     f"external_outputs[0].folder: missing, expected {TEXT}"),
]  # fmt: skip
# What only the program can know.
OTHER_MISTAKES = [
    ({"runs": block(schemes=["W0A8"])},
     "runs[0].schemes[0]: scheme 'W0A8': bit width 0 is not supported: give 2 to 16 bits"),
    ({"runs": block(methods=["trayned"])},
     "runs[0].methods[0]: method 'trayned' is unknown; known: trained, trained_off, plain"),
    ({"methods": "none.yaml"}, "methods: none.yaml: file not found"),
    ({"methods": "config"}, "methods: config: is a folder, expected a file"),
    ({"budget": {"Trained": {}}},
     "budget.Trained: class 'Trained': give module:Class, such as passionsr.baselines.lsq:LSQ"),
    ({"inference": {"latent_tile": 32, "latent_overlap": 32}},
     "inference: latent_overlap 32: give at least 0 and less than latent_tile 32"),
]  # fmt: skip


def message_of(load, changes):
    with pytest.raises(UserError) as caught:
        load(changes)
    return str(caught.value)


@pytest.mark.parametrize(("changes", "message"), MISTAKES + OTHER_MISTAKES)
def test_a_mistake_is_one_clear_line(load, tmp_path, changes, message):
    given = message_of(load, changes)
    assert without_lines(given, tmp_path / "c.yaml") == f"{tmp_path}/c.yaml: {message}"


@pytest.mark.parametrize("changes", [changes for changes, _ in MISTAKES])
def test_editors_see_the_same_mistakes(changes):
    raw = {**SMALLEST, "methods": "methods.yaml", **changes}
    validator = jsonschema.Draft202012Validator(config_schema())
    assert not validator.is_valid({k: v for k, v in raw.items() if v is not ...})
    assert validator.is_valid({**SMALLEST, "methods": "methods.yaml"})


def test_an_unknown_metric_names_what_is_like_it_first(load):
    message = message_of(load, {"metrics": ["psnr", "disst"]})
    assert 'c.yaml line 17: metrics[1]: "disst" given, expected one of dists, ' in message
    assert set(message.rpartition("one of ")[2].split(", ")) == set(METRICS)


def test_an_unknown_budget_names_the_file(load, tmp_path):
    assert message_of(load, {"budget": "shrt"}) == (
        f"{tmp_path}/c.yaml line 18: budget: budget 'shrt' is unknown; {tmp_path}/budgets.yaml "
        "has short, default"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: {klass: 'a:B'}", "x.class: missing, expected module:Class; "
         "x.klass: unknown key; known: class, title, options, ablation"),
        ("x: {class: a.B}",
         "x.class: class 'a.B': give module:Class, such as passionsr.baselines.lsq:LSQ"),
        ("x: {class: 'a:B', ablation: part}",
         'x.ablation: "part" given, expected one of parts, released or null'),
        ("x: {class: 'a:B', ablation: true}",
         "x.ablation: true given, expected one of parts, released or null"),
        ("x: {class: 'a:B', title: 3}", f"x.title: 3 given, expected {TEXT} or null"),
        ("x: {class: 'a:B', options: [a]}", 'x.options: ["a"] given, expected a mapping'),
        ("x: a:B", 'x: "a:B" given, expected a mapping with the keys class, title, options, '
         "ablation"),
        ("a b: {class: 'a:B'}",
         f'a b: "a b" given, {NAME}'),
        ("", "top level: null given, expected a mapping"),
        ("x: {class: 'a:B'}\nx: {class: 'a:C'}", "key 'x' is given twice, first in line 1"),
        ("x: {class: 'a:B'}\nX: {class: 'a:C'}",
         "X: two rows of the tables are called x and X, which is one file name on Windows and "
         "macOS: give one another name"),
        ("fp32: {class: 'a:B'}",
         "fp32: this is the name of a row that is not quantized; give another"),
        ("x: {class: 'a:B', title: \"a\\nb\"}",
         f'x.title: "a\\nb" given, expected {TEXT} or null'),
        ("x: {class: 'a:B', title: ''}", f'x.title: "" given, expected {TEXT} or null'),
        ("nul: {class: 'a:B'}", "nul: nul is no file name on Windows: give another name"),
        ("-x: {class: 'a:B'}", f'-x: "-x" given, {NAME}'),
        ("no: {class: 'a:B'}", "key no is read as bool, expected text: put it in quotes"),
        ("a: {class: 'a:B', options: {x: 010}}", "010 is an octal number in YAML 1.1 and not in "
         "YAML 1.2: write the number in decimal digits, or text in quotes"),
    ],
)  # fmt: skip
def test_mistakes_in_the_registry_of_methods(tmp_path, text, message):
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_methods(path)
    given = str(caught.value)
    assert LINE.sub("", given) == f"{path}: {message}"
    assert given.startswith(f"{path} line ") or not text or "missing" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("short: {'a:B': [1]}", "short.a:B: [1] given, expected a mapping"),
        ("short: 3", "short: 3 given, expected a mapping"),
        ("short: {B: {}}",
         "short.B: class 'B': give module:Class, such as passionsr.baselines.lsq:LSQ"),
    ],
)  # fmt: skip
def test_mistakes_in_budgets(tmp_path, text, message):
    (tmp_path / "budgets.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_budget("short", tmp_path / "methods.yaml")
    assert str(caught.value) == f"{tmp_path}/budgets.yaml line 1: {message}"


# -- options and digests -------------------------------------------------------------------------


def test_budget_is_under_the_registrys_options(load):
    config = load(budget={"lib.trained:Trained": {"steps": 9, "epochs": 7}})
    assert config.options(config.runs[0]) == {"steps": 2, "rate": 1e-5, "epochs": 7}


def test_budget_by_name_or_in_place(load):
    assert load(budget="short").options(Run("trained_off", "W6A6", "UV", 0)) == {
        "epochs": 1,
        "part": False,
    }
    own = {"lib.trained:Trained": {"epochs": 7}}
    assert load(budget=own).budget == own
    assert load(budget="default").budget == load().budget == {}


def test_run_digest_is_that_of_former_versions(load):
    """Values of the version before pydantic: another digest would calibrate every run again."""
    config = load()
    assert [config.run_digest(Run(*run)) for run in (
        ("trained", "W6A6", "UV", 0), ("trained_off", "W4A4", "U", 3), ("plain", "W8A8", "UV", 1),
    )] == ["c35f020d3ff9705a", "072a5c9ddba296a3", "a22196644f21455b"]  # fmt: skip
    other = load(device="cuda", limit={"calibration": 3}, budget="short", threads=2, batch_size=4)
    assert other.run_digest(config.runs[0]) == "9f387172953dcb82"


# Key -> another value, for every key. What an artifact depends on, and what it does not.
IN_THE_DIGEST = {
    "family": "lib.family:OTHER",
    "model": "models/mini",
    "calibration": "config/paper_calibration.tsv",
    "limit.calibration": 3,
    "batch_size": 2,
    "threads": 2,
    "budget": "short",
    "device": "cuda",
}
NOT_IN_THE_DIGEST = {
    "name": "other",
    "test": "config/paper_test.tsv",
    "limit.test": 3,
    "metrics": ["ssim"],
    "sensitivity": "W4A4",
    "posterior": "sample",
    "inference": {"latent_tile": 64},
    "resize_mismatch": True,
    "low_memory": True,  # tests/calibration/test_low_memory.py: the same bytes
    "memory_mb": 4000,
    "expected_layers": {"unet": 3},
    "external_outputs": [],
}


def nested(key, value):
    first, _, second = key.partition(".")
    return {first: {second: value}} if second else {first: value}


def test_run_digest_covers_what_an_artifact_depends_on(load, tmp_path):
    before = load()
    run = before.runs[0]
    for key, value in IN_THE_DIGEST.items():
        assert load(nested(key, value)).run_digest(run) != before.run_digest(run), key
    for key, value in NOT_IN_THE_DIGEST.items():
        assert load(nested(key, value)).run_digest(run) == before.run_digest(run), key
    others = [("trained_off", "W6A6", "UV", 0), ("trained", "W6A8", "UV", 0),
              ("trained", "W6A6", "U", 0), ("trained", "W6A6", "UV", 1)]  # fmt: skip
    digests = {before.run_digest(Run(*other)) for other in others}
    assert len(digests - {before.run_digest(run)}) == 4
    # Of the registry, class and options; not the name, the title or the table.
    path = tmp_path / "other.yaml"
    for old, new, same in (
        ("lib.trained:Trained", "lib.other:Trained", False),
        ("steps: 2", "steps: 3", False),
        ("title: Trained", "title: Other", True),
        ("title: Trained", "ablation: released", True),
    ):
        assert old in METHODS
        path.write_text(METHODS.replace(old, new))
        after = load(methods=str(path), budget={})
        assert (after.run_digest(run) == before.run_digest(run)) == same, new


def test_every_key_is_in_the_digest_or_not():
    """A new key must be put into one of the two lists above."""
    listed = {key.partition(".")[0] for key in (*IN_THE_DIGEST, *NOT_IN_THE_DIGEST)}
    assert listed == set(ConfigFile.model_fields) - {"methods", "runs"}


def test_budget_changes_the_digest(load, monkeypatch):
    """A budget of the same name with other numbers is another configuration."""
    before = load(budget="short")
    monkeypatch.setattr(module, "load_budget", lambda *_: {"lib.trained:Trained": {"epochs": 9}})
    after = load(budget="short")
    assert after.digest != before.digest
    assert after.run_digest(after.runs[0]) != before.run_digest(before.runs[0])


# -- which jobs a key reaches --------------------------------------------------------------------

# Attribute of Config -> the key that it comes from, where the names differ.
KEY_OF = {
    "limits": "limit.test", "datasets": "test", "photos": "calibration", "entries": "methods",
    "results": "name", "run": "runs", "options": "budget", "run_digest": "runs",
}  # fmt: skip
READERS = {
    "benchmark/jobs/data.py": {"data"},
    "benchmark/jobs/infer.py": {"reference", "infer"},
    "benchmark/jobs/calibrate.py": {"calibrate"},
    "benchmark/jobs/score.py": {"score"},
    "report/*.py": {"report"},
}


def test_every_key_says_which_jobs_it_reaches():
    jobs = key_jobs()
    assert {key for key in jobs if "." not in key} == set(ConfigFile.model_fields)
    without = {key for key, reached in jobs.items() if not reached}
    assert without == {"low_memory", "memory_mb"}  # no product depends on them
    assert {job for reached in jobs.values() for job in reached} == set(JOBS)
    assert jobs["limit.calibration"] == jobs["calibration.photos.folder"] == ("data", "calibrate")


@pytest.mark.parametrize("pattern", READERS)
def test_the_jobs_that_read_a_key_are_listed(pattern):
    """`config.x` in a job's module: the key behind x names that job."""
    jobs = key_jobs()
    fields = {f.name for f in dataclasses.fields(module.Config)}
    read = set()
    for path in Path("passionsr").glob(pattern):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "config":
                read.add(KEY_OF.get(node.attr, node.attr))
    read &= fields | set(KEY_OF.values())
    assert read
    unchanging = {"low_memory", "memory_mb", "digest"}
    missing = {key for key in read - unchanging if not READERS[pattern] & set(jobs[key])}
    assert not missing


def test_reading_a_configuration_imports_no_torch():
    code = (
        "import sys; from passionsr.benchmark.config import load_config; "
        "load_config('config/paper.yaml'); "
        "print({'torch', 'pandas', 'jsonschema', 'diffusers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def locked() -> dict[str, str]:
    found = re.findall(
        r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", Path("requirements.lock").read_text(), re.M
    )
    return {name.lower(): version for name, version in found}


def test_environment_yml_equals_the_lock():
    environment = yaml.safe_load(Path("environment.yml").read_text())
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    pins = dict(line.split("==") for line in pip if "==" in line)
    direct = re.findall(r'^    "([A-Za-z0-9-]+)[><=]', Path("pyproject.toml").read_text(), re.M)
    assert {d.lower() for d in direct} <= set(pins)
    assert pins == {name: locked()[name] for name in pins}


def test_lock_is_hashed_and_names_no_address():
    text = Path("requirements.lock").read_text()
    assert "://" not in text
    assert "--index-url" not in text
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.M)[1:]
    assert len(entries) > 100
    assert all("--hash=sha256:" in entry for entry in entries)
