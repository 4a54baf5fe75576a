"""Which sources a job depends on, and their digest: followed through imports, never listed by hand.

A digest is of what the sources do: comments, docstrings and layout are not in it, so that rewording
a comment repeats no calibration.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]  # the folder passionsr/


@functools.cache
def file_of(module: str) -> Path | None:
    """The source of a module: of this package beside this file, of others where Python finds them.

    None for a namespace.
    """
    first, *rest = module.split(".")
    if first == PACKAGE.name:
        stem = PACKAGE.joinpath(*rest)
        found = [p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()]
        return found[0] if found else None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a source; do not change it."""
    return ast.parse(path.read_bytes())


def _imports(module: str) -> Iterator[str]:
    """Modules that one module imports, anywhere in it.

    Of `from a import b` both a and a.b, if it is a module.
    """
    path = file_of(module)
    if path is None:
        return
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(modules: Iterable[str], leave_out: Collection[str] = ()) -> dict[str, Path]:
    """Module -> file, for `modules` and everything of their top-level packages that they import.

    Directly or not.

    leave_out: modules that are not followed, nor counted.
    """
    found: dict[str, Path] = {}
    waiting = list(modules)
    packages = {name.split(".")[0] for name in waiting}
    while waiting:
        name = waiting.pop()
        if name in found or name in leave_out or name.split(".")[0] not in packages:
            continue
        path = file_of(name)
        if path is not None:
            found[name] = path
            waiting += _imports(name)
    return dict(sorted(found.items()))


@functools.cache
def _digest_of_file(path: Path) -> str:
    """Of the syntax tree without docstrings."""
    tree = parsed(path)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def code_digest(modules: Iterable[str], leave_out: Collection[str] = ()) -> str:
    """Short hash of `sources`, which Snakemake compares with that of the last run."""
    digest = hashlib.sha256()
    for name, path in sources(modules, leave_out).items():
        digest.update(f"{name} {_digest_of_file(path)}\n".encode())
    return digest.hexdigest()[:12]
