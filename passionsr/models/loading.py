"""Files that name a format and hold something else: the libraries' errors as one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from passionsr.utils.files import UserError


@contextlib.contextmanager
def reading_model(problem: str) -> Iterator[None]:
    """Turn what reading a model's files raises inside into a UserError that says `problem`.

    diffusers, safetensors and torch raise errors of many kinds for a missing key, a missing tensor
    or one of another shape; each means that the folder does not hold such a model.
    """
    from safetensors import SafetensorError

    kinds = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)
    try:
        yield
    except UserError:
        raise
    except (SafetensorError, *kinds) as err:
        lines = [line.strip() for line in str(err).splitlines() if line.strip()]
        reason = " ".join(lines[:2])[:200] or type(err).__name__
        raise UserError(f"{problem} ({reason}): fetch or make it again") from None
