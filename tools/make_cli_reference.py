"""Writes docs/reference/cli.md from passionsr/cli.py: `python tools/make_cli_reference.py`."""

from pathlib import Path

from passionsr.cli import cli_reference

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"

if __name__ == "__main__":
    PAGE.write_text(cli_reference(), encoding="utf-8")
