"""Writes environment.yml from requirements.lock: `python tools/make_environment.py`."""

import re
from pathlib import Path

direct = re.findall(r'^    "([A-Za-z0-9-]+)[><=]', Path("pyproject.toml").read_text(), re.M)
lock = dict(
    re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", Path("requirements.lock").read_text(), re.M)
)
lines = [
    "# For conda users; pins equal requirements.lock (tests/test_config.py). "
    "Made by tools/make_environment.py.",
    "name: passionsr-bench",
    "channels:",
    "  - conda-forge",
    "dependencies:",
    "  - python=3.11",
    "  - pip",
    "  - pip:",
    *(f"      - {name.lower()}=={lock[name.lower()]}" for name in sorted(set(direct))),
    "      - -e .",
]
Path("environment.yml").write_text("\n".join(lines) + "\n")
