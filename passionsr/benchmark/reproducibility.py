"""What has the same bytes in every run on one machine: the one list of what may differ."""

from __future__ import annotations

import json
from pathlib import Path

from passionsr.benchmark.paths import PRODUCTS
from passionsr.benchmark.records import MEASURED_FIELDS
from passionsr.utils.files import TEMPORARY

# Seconds and megabytes are measured anew in every run, here and in MEASURED_FIELDS of run.json.
MEASURED_FILES = ("tables/cost.md", "tables/table4.csv", "tables/table4.md", "tables/table4.tex")


def products(results: Path) -> dict[str, bytes]:
    """Relative path -> bytes of all that must be reproduced; run.json without what is measured.

    These are the folders PRODUCTS and the files beside them, without MEASURED_FILES. The folders
    logs and benchmarks describe a run of the workflow and not its result.
    """
    found = {}
    files = [p for part in PRODUCTS for p in (results / part).rglob("*") if p.is_file()]
    files += [p for p in results.glob("*") if p.is_file()]
    for path in sorted(files):
        name = path.relative_to(results).as_posix()
        if name in MEASURED_FILES or path.name.startswith(TEMPORARY):
            continue
        if path.name == "run.json":
            about = {
                k: v for k, v in json.loads(path.read_text()).items() if k not in MEASURED_FIELDS
            }
            found[name] = json.dumps(about, sort_keys=True).encode()
        else:
            found[name] = path.read_bytes()
    return found


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names of products that are missing on one side, or whose bytes differ."""
    return sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))
