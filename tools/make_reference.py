"""Write the files generated from definitions in the code: `python tools/make_reference.py`.

tests/tools/test_make_reference.py compares them with the definitions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

# This checkout, whatever passionsr is installed.
sys.path.insert(0, str(Path(__file__).absolute().parents[1]))

from passionsr.benchmark.config_reference import config_schema, reference_page
from passionsr.utils.files import write_text

ROOT = Path(__file__).resolve().parent.parent


def configuration_page() -> str:
    """Every key of a configuration and of the registries beside it."""
    return reference_page()


def editor_schema() -> str:
    """The JSON schema that the first line of each configuration names."""
    return json.dumps(config_schema(), indent=2) + "\n"


# File -> the function that makes its text.
PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/configuration.md": configuration_page,
    "config/config.schema.json": editor_schema,
}


def main() -> None:
    """Write every page of this checkout."""
    for name, make in PAGES.items():
        write_text(ROOT / name, make())
        print(name)


if __name__ == "__main__":
    main()
