"""Import of diffusers without the parts that our networks never use.

`from diffusers import AutoencoderKL` imports every optional package that is installed
(transformers, accelerate, scipy, torch._dynamo ...) and a hundred other architectures. That takes
more CPU time than super-resolving a small image, in every command and every job. A process that
runs our models alone calls `import_lightly` first; what it makes is the same to the bit.

In a process of the user's own nothing is left out: pipelines of diffusers that need transformers
would not work there afterwards.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# diffusers imports each of these where it is installed, and works without it.
OPTIONAL = (
    "accelerate",
    "auto_round",
    "bitsandbytes",
    "gguf",
    "modelopt",
    "optimum",
    "peft",
    "scipy",
    "torch._dynamo",
    "torchao",
    "transformers",
    "xformers",
)
# Packages whose __init__ imports all their modules, of which we need one or two.
CROWDED = (
    "diffusers.hooks",
    "diffusers.models.autoencoders",
    "diffusers.models.transformers",
    "diffusers.models.unets",
)


def import_lightly(modules: Sequence[str]) -> None:
    """Import modules of diffusers without OPTIONAL and without what else is in CROWDED.

    Afterwards both can be imported as ever. Where diffusers has been imported before, nothing is
    saved, and nothing changes.
    """
    import torch  # before anything of it is hidden

    with (
        _absent(OPTIONAL),
        # The list of which modules each installed distribution has, for versions of OPTIONAL: with
        # hundreds of packages, making it takes a second.
        _replaced(importlib.metadata, "packages_distributions", dict),
        # A decorator that imports torch._dynamo; torch's own, which does so at the first call.
        _replaced(torch.compiler, "disable", _disabled_later),
    ):
        for package in CROWDED:
            _defer(package)
        for module in modules:
            importlib.import_module(module)


@contextmanager
def _absent(names: Sequence[str]) -> Iterator[None]:
    """In the block, importing these fails as if they were not installed; imported ones stay."""
    hidden = [name for name in names if name not in sys.modules]
    modules: dict[str, Any] = sys.modules  # None: not to be found
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """In the block, an attribute has another value."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _disabled_later(fn: Any = None, recursive: bool = True, **_: Any) -> Any:
    """`torch.compiler.disable` with the import of torch._dynamo put off."""
    from torch._compile import _disable_dynamo

    return _disable_dynamo(fn, recursive)


def _defer(package: str) -> None:
    """Register a package whose __init__ runs when it is first asked for a name of its own."""
    if package in sys.modules:
        return
    try:
        spec = importlib.util.find_spec(package)  # imports the packages around it
    except ModuleNotFoundError:  # another version of diffusers
        return
    if spec is None or spec.loader is None:
        return
    module, loader = importlib.util.module_from_spec(spec), spec.loader

    def ask(name: str) -> Any:
        if name.startswith("__"):  # of the import system or an inspection
            raise AttributeError(f"module {package} has no attribute {name}")
        vars(module).pop("__getattr__", None)
        loader.exec_module(module)
        return getattr(module, name)

    vars(module)["__getattr__"] = ask
    sys.modules[package] = module
    parent, _, leaf = package.rpartition(".")
    setattr(sys.modules[parent], leaf, module)
