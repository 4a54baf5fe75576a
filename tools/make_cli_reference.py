"""Writes docs/reference/cli.md from passionsr/cli.py: `python tools/make_cli_reference.py`."""

import sys
from pathlib import Path

# This checkout, whatever passionsr is installed.
sys.path.insert(0, str(Path(__file__).absolute().parents[1]))

from passionsr.cli import cli_reference

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"

if __name__ == "__main__":
    PAGE.write_text(cli_reference(), encoding="utf-8")
