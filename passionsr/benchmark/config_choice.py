"""Which configuration a start of Snakemake is about: what --config and --configfile say.

A benchmark is one file, which jobs, digests and DVC read. So --configfile names that file, as
--config file=... does, and nothing on the command line changes a key of it. Whatever cannot be
followed is an error, never left out.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from passionsr.benchmark.config_keys import ConfigFile
from passionsr.utils.files import UserError
from passionsr.utils.yaml_files import read_yaml

FILE = "file"  # the one key of --config
DEFAULT = "config/mini.yaml"
EXAMPLE = f"--config {FILE}={DEFAULT}"


def _shown(path: Path) -> str:
    """A path as the jobs' commands name it: relative to the working directory where it is in it.

    A command decides whether its job runs again, so each way to name a file gives the same text.
    """
    path = path.expanduser().absolute()
    place = Path.cwd()
    for found in (path, path.parent.resolve() / path.name):
        if found.is_relative_to(place):
            return found.relative_to(place).as_posix()
    return path.as_posix()


def _check_keys(given: Mapping[str, Any], arguments: Sequence[str]) -> None:
    """UserError for a key of --config that is none, or is given twice."""
    for key, value in given.items():
        if key in ConfigFile.model_fields:
            raise UserError(
                f"--config {key}={value}: the keys of a benchmark stand in its file: change "
                f"{key} there, or in a copy with another `name:`, and give that as {EXAMPLE}"
            )
        if key != FILE:
            raise UserError(
                f"--config {key}={value}: unknown key; known: {FILE}, the path of a configuration "
                f"({EXAMPLE})"
            )
    named = [text.partition("=")[2] for text in arguments if text.partition("=")[0] == FILE]
    if len(set(named)) > 1:
        both = " ".join(f"{FILE}={name}" for name in named)
        raise UserError(f"--config {both}: two configurations are named; give one")


def _path_of(value: Any, place: str) -> Path:
    """The path that a `file` gives; UserError where it gives none."""
    if value is None or value == "":
        raise UserError(f"{place}: no path given, expected that of a configuration ({EXAMPLE})")
    if not isinstance(value, str):
        raise UserError(f"{place}: {value!r} given, expected the path of a file ({EXAMPLE})")
    return Path(value)


def _named_by(path: Path) -> tuple[str, Path]:
    """(how it was given, configuration) of a file of --configfile.

    The file is the configuration, or holds what else stands after --config: `file: config/x.yaml`.
    """
    content = read_yaml(path).value
    if isinstance(content, dict) and list(content) == [FILE]:
        return f"{FILE}: of {_shown(path)}", _path_of(content[FILE], f"{_shown(path)}: {FILE}")
    return f"--configfile {_shown(path)}", path


def chosen_file(
    given: Mapping[str, Any], arguments: Sequence[str], config_files: Sequence[Path]
) -> str:
    """The path of the configuration, relative to the working directory where it is in it.

    Args:
        given: keys and values of --config, as Snakemake reads them.
        arguments: the same as they were typed, such as ["file=config/mini.yaml"].
        config_files: what follows --configfile, absolute.

    Raises:
        UserError: an unknown key, no path, or more than one configuration.
    """
    _check_keys(given, arguments)
    if len(config_files) > 1:
        given_files = shlex.join(_shown(path) for path in config_files)
        raise UserError(
            f"--configfile {given_files}: a benchmark is one file, and files are not merged; "
            "give one"
        )
    found = [_named_by(path) for path in config_files]
    if FILE in given:
        path = _path_of(given[FILE], f"--config {FILE}=")
        found.append((f"--config {FILE}={_shown(path)}", path))
    names = list(dict.fromkeys(_shown(path) for _, path in found))
    if len(names) > 1:
        how = " and ".join(how for how, _ in found)
        raise UserError(f"{how}: two configurations are named; give one (a profile may name one)")
    return names[0] if names else DEFAULT
