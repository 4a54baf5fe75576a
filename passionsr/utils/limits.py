"""Limits of a number that a user gives, and the words for one beyond them."""

from __future__ import annotations

from passionsr.utils.files import UserError


def check_limits(name: str, value: int, least: int, most: int | None = None) -> None:
    """UserError, naming the option, unless least <= value <= most; most None: no limit."""
    if value < least or (most is not None and value > most):
        accepted = f"{least} or more" if most is None else f"{least} to {most}"
        raise UserError(f"{name} {value}: give {accepted}")
