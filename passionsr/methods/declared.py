"""What a method's class declares, read from its source without importing it.

A method needs torch, whose import takes seconds; a configuration is checked in less than one. The
fields of the class are the options, so their names, types and limits stand in its source: they are
found there, and names in the annotations are followed to where they are defined. What cannot be
read this way is left to the job, which imports the class.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from passionsr.utils.checked_yaml import closest_first, mistake
from passionsr.utils.code_digest import file_of, parsed
from passionsr.utils.files import UserError

# Annotations may take names from these; importing them costs nothing.
LIGHT = ("annotated_types", "collections", "enum", "pathlib", "pydantic", "typing")
METHODS = ("prepare", "calibrate")  # of the protocol `Method`


@dataclass(frozen=True)
class Declared:
    """A class as its source declares it.

    options: field -> type, None where it cannot be read. functions: names of its methods.
    is_dataclass: whether it, or a base, is one. whole: False where a base class cannot be read,
    which may declare more. defaults: option -> value, of the fields that have a plain one.
    """

    options: Mapping[str, Any]
    functions: frozenset[str]
    is_dataclass: bool
    whole: bool
    defaults: Mapping[str, Any]


def option_mistakes(
    options: Mapping[str, Any], hints: Mapping[str, Any], whole: bool = True
) -> list[str]:
    """What is wrong with the options of a method, in words.

    hints: option -> type, None for any value. whole: whether there are no other options.
    """
    found = []
    for name, value in options.items():
        if name in hints:
            problem = None if hints[name] is None else mistake(hints[name], value)
            found += [f"option {name}: {problem}"] if problem else []
        elif whole:
            known = ", ".join(closest_first(name, sorted(hints))) or "none, it has no options"
            found.append(f"unknown option {name}; known: {known}")
    return found


def check_declared(target: str, options: Mapping[str, Any]) -> None:
    """UserError unless "module:Class" is a method that can have these options."""
    declared = declared_class(target)
    if declared is None:
        return
    absent = [f"function {name}" for name in METHODS if name not in declared.functions]
    absent += [] if declared.is_dataclass else ["@dataclass"]
    if declared.whole and absent:
        raise UserError(
            f"{target} is no quantization method: it has no {' and no '.join(absent)} "
            "(docs/extend/method.md)"
        )
    problems = option_mistakes(options, declared.options, declared.whole)
    if problems:
        raise UserError(f"{target}: {'; '.join(problems)}")


def options_with_defaults(target: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of "module:Class" and the defaults of the others.

    The class is imported only where its source does not say them all.
    """
    declared = declared_class(target)
    if declared is not None and declared.whole:
        whole = {**declared.defaults, **options}
        if declared.options.keys() <= whole.keys():
            return whole
    from passionsr.methods.base import load_method

    return vars(load_method(target, dict(options)))


@functools.cache
def declared_class(target: str) -> Declared | None:
    """The class "module:Class"; None where there is no source to read it from.

    Raises UserError where there is no such module or class.
    """
    module, _, name = target.partition(":")
    path = file_of(module)
    if path is None:
        if _is_there(module):
            return None  # compiled, or a namespace
        raise UserError(f"{target}: there is no module {module}: give module:Class")
    try:
        tree = parsed(path)
    except (SyntaxError, ValueError) as err:
        raise UserError(f"{target}: {path} is not Python ({err})") from None
    found = _definition(module, name)
    if found is not None and isinstance(found.node, ast.ClassDef):
        return _read_class(found.module, found.node)
    if found is not None or _may_define(tree, name):
        return None  # made by a call, or in a block
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    known = ", ".join(closest_first(name, names)) or "none"
    raise UserError(f"{target}: {module} has no class {name}; its classes: {known}")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _may_define(tree: ast.Module, name: str) -> bool:
    """Whether a module defines a name in a way that `_definition` does not follow."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            if any(alias.name == "*" or name in (alias.asname, alias.name) for alias in node.names):
                return True
        elif isinstance(node, ast.Name | ast.ClassDef | ast.FunctionDef):
            bound = node.id if isinstance(node, ast.Name) else node.name
            if bound == name:
                return True
    return False


def _read_class(module: str, node: ast.ClassDef) -> Declared:
    options: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    functions: set[str] = set()
    is_dataclass = any("dataclass" in ast.unparse(part) for part in node.decorator_list)
    whole = True
    for base in node.bases:
        found = _definition(module, base.id) if isinstance(base, ast.Name) else None
        if found is None or not isinstance(found.node, ast.ClassDef):
            whole = False
            continue
        above = _read_class(found.module, found.node)
        options |= above.options
        defaults |= above.defaults
        functions |= above.functions
        is_dataclass = is_dataclass or above.is_dataclass
        whole = whole and above.whole
    for part in node.body:
        if isinstance(part, ast.FunctionDef):
            functions.add(part.name)
        elif isinstance(part, ast.AnnAssign) and "ClassVar" not in ast.unparse(part.annotation):
            name = ast.unparse(part.target)
            options[name] = _value(module, part.annotation)
            defaults.pop(name, None)
            defaults.update((name, value) for value in _default(module, part.value))
    return Declared(options, frozenset(functions), is_dataclass, whole, defaults)


def _default(module: str, value: ast.expr | None) -> list[Any]:
    """The default of a field, `a: int = 1` or `a: int = option(1, ...)`; [] for any other."""
    if isinstance(value, ast.Call):
        value = value.args[0] if value.args else None
    try:
        return [] if value is None else [_evaluated(module, value)]
    except Exception:  # whatever an expression can raise: then the class is imported
        return []


# -- names --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """Where a name is defined: the class or expression, None in a module that is imported."""

    module: str
    name: str
    node: ast.AST | None


def _definition(module: str, name: str) -> _Found | None:
    """Where a module's name is defined, through imports."""
    seen: set[tuple[str, str]] = set()
    while (module, name) not in seen:
        seen.add((module, name))
        if module.partition(".")[0] in LIGHT:
            return _Found(module, name, None)
        path = file_of(module)
        imported = None
        for node in parsed(path).body if path is not None else ():
            if isinstance(node, ast.ClassDef) and node.name == name:
                return _Found(module, name, node)
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                for alias in node.names:
                    if name == (alias.asname or alias.name):
                        imported = node.module, alias.name
            value = _assigned(node, name)
            if value is not None:
                return _Found(module, name, value)
        if imported is None:
            return None
        module, name = imported
    return None


def _assigned(node: ast.AST, name: str) -> ast.expr | None:
    """The expression that a statement assigns to a name, of `a = 1` or `a, b = 1, 2`."""
    if isinstance(node, ast.AnnAssign):
        return node.value if ast.unparse(node.target) == name else None
    if not isinstance(node, ast.Assign):
        return None
    for target in node.targets:
        if ast.unparse(target) == name:
            return node.value
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            for part, value in zip(target.elts, node.value.elts, strict=False):
                if ast.unparse(part) == name:
                    return value
    return None


class _Names(dict[str, Any]):
    """The names that an expression of a module can use, found when they are asked for."""

    def __init__(self, module: str):
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> Any:
        found = _definition(self.module, name)
        if found is None:
            return getattr(builtins, name)
        if found.node is None:
            return getattr(importlib.import_module(found.module), found.name)
        if not isinstance(found.node, ast.expr):
            raise NameError(f"{name} is a class, which only an import makes")
        return _evaluated(found.module, found.node)


def _evaluated(module: str, node: ast.expr) -> Any:
    """An expression of a module, with that module's names."""
    return eval(compile(ast.Expression(node), module, "eval"), {}, _Names(module))


def _value(module: str, annotation: ast.expr) -> Any:
    """The type that an annotation means; None where only an import can tell."""
    try:
        value = _evaluated(module, annotation)
    except Exception:  # whatever an expression can raise: then the job finds it
        return None
    return None if isinstance(value, str) else value
