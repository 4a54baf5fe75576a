"""Sizes that a reader can take in: `python tools/check_house.py [ROOT]`, exit status 1 if over.

A module has at most 400 lines; a function at most 60 lines and 7 parameters (`self` and `cls` do
not count, decorators neither). Looked at: every .py file in passionsr/, baselines/ and workflow/.

Excepted are the kernels in quantization/cpu_*.py: functions decorated with `njit`, and those given
to `_compiled`. numba takes arrays and constants one by one, not as a dataclass. Their lines do not
count for the function around them either.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

FOLDERS = ("passionsr", "baselines", "workflow")
MODULE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 7
KERNEL_FILES, KERNEL_DECORATOR, KERNEL_MAKER = "*/quantization/cpu_*.py", "njit", "_compiled"

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _name(node: ast.expr) -> str:
    """Last part of a decorator's or a called function's name: njit of @numba.njit(cache=True)."""
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def kernels(tree: ast.Module) -> set[Function]:
    """The functions that numba compiles."""
    given = {
        node.args[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _name(node) == KERNEL_MAKER
        if node.args and isinstance(node.args[0], ast.Name)
    }
    return {
        node
        for node in ast.walk(tree)
        if isinstance(node, Function)
        if node.name in given or KERNEL_DECORATOR in map(_name, node.decorator_list)
    }


def _length(node: Function) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def _parameters(node: Function) -> int:
    given = node.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    names = [argument.arg for argument in every if argument is not None]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def findings(path: Path, name: str) -> Iterator[str]:
    """One line per limit that a file breaks, beginning `name:line`."""
    text = path.read_text(encoding="utf-8")
    count = len(text.splitlines())
    if count > MODULE_LINES:
        yield f"{name}:1: module of {count} lines, at most {MODULE_LINES}"
    tree = ast.parse(text)
    excepted = kernels(tree) if fnmatch(f"/{name}", KERNEL_FILES) else set()
    for node in ast.walk(tree):
        if not isinstance(node, Function) or node in excepted:
            continue
        lines = _length(node) - sum(_length(k) for k in ast.walk(node) if k in excepted)
        if lines > FUNCTION_LINES:
            yield f"{name}:{node.lineno}: {node.name} has {lines} lines, at most {FUNCTION_LINES}"
        parameters = _parameters(node)
        if parameters > PARAMETERS:
            yield (
                f"{name}:{node.lineno}: {node.name} has {parameters} parameters, "
                f"at most {PARAMETERS}"
            )


def check(root: Path) -> list[str]:
    """Findings of every module; a folder that is a link (passionsr/baselines) counts once."""
    paths = [p for folder in FOLDERS for p in sorted((root / folder).rglob("*.py"))]
    real = [p for p in paths if p.resolve() == root.resolve() / p.relative_to(root)]
    return [line for p in real for line in findings(p, p.relative_to(root).as_posix())]


def main(argv: list[str]) -> int:
    """Print the findings."""
    found = check(Path(argv[0]) if argv else Path())
    print("\n".join([*found, f"{len(found)} findings"]))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
