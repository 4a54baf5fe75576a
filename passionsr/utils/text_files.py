"""Text files of users: UTF-8, perhaps with a byte order mark; tables with known columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from passionsr.utils.files import UserError


def read_text(path: str | Path, absent: str = "file not found") -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    absent: what to say of a file that is not there. Raises UserError, for a folder and for another
    encoding, too.
    """
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: {absent}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a text file") from None
    except UnicodeDecodeError as err:
        raise UserError(
            f"{path}: not a text file in UTF-8 (byte {err.start}); save it in that encoding"
        ) from None


def read_rows(
    path: str | Path,
    columns: Sequence[str],
    delimiter: str = ",",
    absent: str = "file not found",
    others: bool = False,
    advice: str = "",
) -> list[dict[str, str]]:
    """Rows of a table with a header; lines that begin with # are comments.

    Args:
        path: CSV file.
        columns: of the table, in their order.
        delimiter: between values, a comma or a tab.
        absent: what to say of a file that is not there.
        others: whether the table may have more columns, in any order.
        advice: what to say where the columns are others.

    Raises UserError as `read_text`, and for other columns or a row that is cut off.
    """
    lines = io.StringIO(read_text(path, absent))
    reader = csv.DictReader((s for s in lines if not s.startswith("#")), delimiter=delimiter)
    found = list(reader.fieldnames or ())
    if found != list(columns) and not (others and set(columns) <= set(found)):
        kind = {",": "comma", "\t": "tab"}[delimiter]
        raise UserError(f"{path}: expected {kind}-separated columns {', '.join(columns)}{advice}")
    rows = []
    for number, row in enumerate(reader, 1):
        if None in row or None in row.values():
            raise UserError(
                f"{path}: row {number} has not as many values as the header; it is cut off or was "
                "edited: make the file again"
            )
        rows.append(row)
    return rows
