"""CSV files as data frames: names stay text, and a file that is none of ours is one clear line."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from passionsr.utils.files import UserError, read_text

# Columns of names. Pandas would read the image 0801 as 801, and the method NA as no value.
NAMES = (
    "run_id", "run", "method", "scheme", "scope", "dataset", "image", "metric", "bits", "source",
    "digest", "reason", "best", "noise",
)  # fmt: skip


def read_frame(
    path: Path, columns: Sequence[str], numbers: Iterable[str] = (), comments: bool = False
) -> pd.DataFrame:
    """A CSV file; only an empty cell has no value.

    Args:
        path: the file.
        columns: that must be there.
        numbers: columns that hold numbers, where they are there.
        comments: whether lines that begin with # are left out.
    Raises UserError for a file that is not there, not a table, or has other columns or values.
    """
    text = read_text(path)
    if comments:
        lines = text.splitlines(keepends=True)
        text = "".join(line for line in lines if not line.startswith("#"))
    kinds = dict.fromkeys(NAMES, str)
    try:
        frame = pd.read_csv(io.StringIO(text), dtype=kinds, keep_default_na=False, na_values=[""])
    except ValueError as err:  # pandas' own errors are of this kind
        raise UserError(f"{path}: not a CSV file ({str(err).splitlines()[0]})") from None
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise UserError(f"{path}: expected columns {', '.join(columns)}; without {missing[0]}")
    for name in numbers:
        if name in frame.columns and not pd.api.types.is_numeric_dtype(frame[name]):
            wrong = frame[name].dropna()[pd.to_numeric(frame[name], errors="coerce").isna()]
            if len(wrong):
                raise UserError(
                    f"{path}: {wrong.iloc[0]!r} given in column {name}, expected a number"
                )
            frame[name] = pd.to_numeric(frame[name])
    return frame
