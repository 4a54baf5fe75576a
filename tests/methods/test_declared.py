"""Options of methods read from sources: the same as the imported classes say, without torch."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from passionsr.benchmark.config import load_methods
from passionsr.methods.base import load_method
from passionsr.methods.declared import check_declared, declared_class, options_with_defaults
from passionsr.utils.files import UserError

TARGETS = sorted({entry.target for entry in load_methods("config/methods.yaml").values()})


@pytest.mark.parametrize("target", TARGETS)
def test_the_source_says_what_the_class_says(target):
    module, _, name = target.partition(":")
    cls = getattr(importlib.import_module(module), name)
    hints = get_type_hints(cls, include_extras=True)
    declared = declared_class(target)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    assert repr(declared.options) == repr(fields)  # limits are equal only as text
    assert None not in declared.options.values()
    assert declared.whole
    assert declared.functions >= {"prepare", "calibrate"}


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from passionsr.methods.declared import declared_class; "
        f"[declared_class(t) for t in {TARGETS}]; "
        "print({'torch', 'diffusers', 'numba'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


P, Q = "passionsr.methods.passionsr:PassionSR", "passionsr.baselines.qdiffusion:QDiffusion"
E, M = "passionsr.baselines.efficientdm:EfficientDM", "passionsr.baselines.minmax:MinMax"
MISTAKES = [
    (P, {"let_lr": "1e-3"}, 'option let_lr: "1e-3" given, expected a number of at least 0'),
    (P, {"let_lr": -1e-3}, "option let_lr: -0.001 given, expected a number of at least 0"),
    (P, {"epochs": -1}, "option epochs: -1 given, expected an integer of at least 0"),
    (P, {"epochs": 1.5}, "option epochs: 1.5 given, expected an integer of at least 0"),
    (P, {"epochs": True}, "option epochs: true given, expected an integer of at least 0"),
    (P, {"let": 1}, "option let: 1 given, expected true or false"),
    (P, {"let": "off"}, 'option let: "off" given, expected true or false'),
    (P, {"lbq_form": "int_zp_stal"},
     'option lbq_form: "int_zp_stal" given, expected one of int_zp_stale, int_zp, real_offset'),
    (P, {"let_latent_size": 0},
     "option let_latent_size: 0 given, expected an integer of at least 1 or null"),
    (Q, {"sm_bits": 17}, "option sm_bits: 17 given, expected an integer from 2 to 16 or null"),
    (Q, {"batch": 0}, "option batch: 0 given, expected an integer of at least 1"),
    (Q, {"vae_crop": [16]},
     "option vae_crop: [16] given, expected an integer of at least 1 or null"),
    (E, {"stepps": 3},
     "unknown option stepps; known: steps, act_lr, act_zp, exceptions, init_images, lora_lr, "
     "qalora_base, quant_attn_matmul, relative_lr"),
    (M, {"steps": 3}, "unknown option steps; known: none, it has no options"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "options", "message"), MISTAKES)
def test_a_bad_option_is_found_before_and_by_the_import(target, options, message):
    """Two readers of one declaration: the check before any job, and the job."""
    from passionsr.methods.base import load_method

    for check in (check_declared, load_method):
        with pytest.raises(UserError) as caught:
            check(target, options)
        assert str(caught.value) == f"{target}: {message}"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("passionsr.baselines.minmaks:MinMax",
         "there is no module passionsr.baselines.minmaks: give module:Class"),
        ("no_such_package.x:X", "there is no module no_such_package.x: give module:Class"),
        ("passionsr.baselines.minmax:Minmax",
         "passionsr.baselines.minmax has no class Minmax; its classes: MinMax"),
        ("passionsr.quantization.spec:Scheme",
         "passionsr.quantization.spec:Scheme is no quantization method: it has no function prepare "
         "and no function calibrate (docs/extend/method.md)"),
    ],
)  # fmt: skip
def test_a_class_that_is_no_method(target, message):
    with pytest.raises(UserError) as caught:
        check_declared(target, {})
    assert str(caught.value).removeprefix(f"{target}: ") == message


OTHER = '''
import typing as t
from typing import Annotated, Literal
from annotated_types import Le
from {package}.limits import MOST, Kind, Base

SMALL = Annotated[int, Le(MOST)]

class Plain(Base):
    """No dataclass of its own, but of its base."""
    def prepare(self): ...

class Open(Unknown):
    x: int = 1
    def prepare(self): ...
    def calibrate(self): ...

import dataclasses
@dataclasses.dataclass
class Method(Base):
    count: "SMALL" = 1
    size: SMALL | None = None
    kind: Kind = "a"
    shape: SomethingElse = None
    name: t.ClassVar[str] = "m"
    def prepare(self): ...

Made = dataclasses.make_dataclass("Made", ["x"])
'''
LIMITS = """
from dataclasses import dataclass
from typing import Literal
MOST, LEAST = 2 + 2, 0
Kind = Literal["a", "b"]

@dataclass
class Base:
    base: bool = False
    def calibrate(self): ...
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The name of an importable package with methods of another project."""
    name = f"package_{tmp_path.name}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "limits.py").write_text(LIMITS)
    (tmp_path / name / "methods.py").write_text(OTHER.format(package=name))
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_methods_of_another_package(package):
    """Names are followed through imports and bases; what cannot be read is not judged."""
    target = f"{package}.methods:Method"
    check_declared(target, {"size": 4, "kind": "b", "base": True, "shape": [1], "count": "any"})
    for options, message in (
        ({"size": 5}, "option size: 5 given, expected an integer of at most 4 or null"),
        ({"kind": "c"}, 'option kind: "c" given, expected one of a, b'),
        ({"base": 0}, "option base: 0 given, expected true or false"),
        ({"name": "n"}, "unknown option name; known: base, count, kind, shape, size"),
    ):
        with pytest.raises(UserError, match=message):
            check_declared(target, options)
    for name in ("Open", "Made"):  # they may have more than the source says
        check_declared(f"{package}.methods:{name}", {"other": 1})
    check_declared(f"{package}.methods:Plain", {"base": True})
    assert f"{package}.methods" not in sys.modules


def test_a_module_with_a_mistake(package):
    path = Path(sys.path[0]) / package / "broken.py"
    path.write_text("class Method:\n    x = = 1\n")
    with pytest.raises(UserError, match=r"broken\.py is not Python \(invalid syntax"):
        check_declared(f"{package}.broken:Method", {})


@pytest.mark.parametrize("target", TARGETS)
def test_defaults_are_those_of_the_class(target):
    """As they are read from the source, without importing it."""
    fields = dataclasses.fields(load_method(target))
    assert declared_class(target).defaults == {f.name: f.default for f in fields}
    assert options_with_defaults(target, {}) == vars(load_method(target))
