"""What the command line needs and Typer does not have.

Grouped options, limits of numbers in our own words, lists after one name, and a quiet end where
nobody reads on.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import sys
from collections.abc import Callable
from typing import Any, get_type_hints

from typer import CallbackParam, Option
from typer.core import TyperCommand

from passionsr.utils.limits import check_limits

INTERRUPTED, CLOSED_PIPE = 130, 141  # 128 + the number of the signal, as shells have it


def _keyword(parameter: inspect.Parameter) -> inspect.Parameter:
    return parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)


def _parameters_of(group: type) -> list[inspect.Parameter]:
    """One keyword parameter per field of a dataclass."""
    hints = get_type_hints(group, include_extras=True)
    found = []
    for field in dataclasses.fields(group):
        parameter = inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY)
        if field.default is not dataclasses.MISSING:
            parameter = parameter.replace(default=field.default)
        found.append(parameter.replace(annotation=hints[field.name]))
    return found


def takes_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a dataclass parameter of a command stand for one option per field.

    Typer makes an option of every parameter. A command with many options takes a frozen dataclass
    instead: Typer sees the fields as parameters, and the command gets them back as one value.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, type[Any]] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if isinstance(parameter.annotation, type) and dataclasses.is_dataclass(parameter.annotation)
    }

    @functools.wraps(command)
    def flat(**values: Any) -> Any:
        for name, group in groups.items():
            chosen = {field.name: values.pop(field.name) for field in dataclasses.fields(group)}
            values[name] = group(**chosen)
        return command(**values)

    parameters = []
    for name, parameter in signature.parameters.items():
        group = groups.get(name)
        parameters += _parameters_of(group) if group else [_keyword(parameter)]
    flat.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in parameters}
    return flat


def number(help: str, least: int, most: int | None = None, **settings: Any) -> Any:
    """An option of one number or several, with its limits; settings: of typer.Option.

    UserError, in our own words, for a value beyond the limits.
    """

    def check(param: CallbackParam, value: Any) -> Any:
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if one is not None:
                check_limits(param.opts[0], one, least, most)
        return value

    return Option(help=help, callback=check, **settings)


class SeveralValues(TyperCommand):
    """A command whose list options take several values after one name: `--sizes 512 1024`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the name before every further value, the only form that Typer knows."""
        lists = {o for p in self.params if getattr(p, "multiple", False) for o in p.opts}
        repeated: list[str] = []
        name, values = "", 0
        for arg in args:
            if arg.startswith("-"):
                name, values = arg if arg in lists else "", 0
            elif name:
                repeated += [name] if values else []
                values += 1
            repeated.append(arg)
        return super().parse_args(ctx, repeated)


def end_quietly(action: Callable[[], int]) -> int:
    """Run a command line and return its exit status.

    Ctrl-C and a reader that has seen enough (`| head`) end it without a word, as they do other
    tools. Characters that the terminal's encoding lacks are printed as escapes.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return action()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return CLOSED_PIPE
    except SystemExit as err:  # Typer's answer to a closed pipe
        if not isinstance(err.__context__, BrokenPipeError):
            raise
        return CLOSED_PIPE


def flush_output() -> None:
    """Print what waits, while an error can still be answered."""
    if sys.stdout is not None:
        sys.stdout.flush()
