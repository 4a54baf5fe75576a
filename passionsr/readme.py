"""Copies generated tables into README.md between its markers, and the picture beside it."""

from __future__ import annotations

import re
from pathlib import Path

from passionsr.bench import report
from passionsr.files import UserError, write_text

PICTURE = Path("docs/crops_W6A6.jpg")


def fill(text: str, name: str, block: str) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`; UserError if they are missing."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    if not re.search(pattern, text, re.S):
        raise UserError(f"README has no markers <!-- {name} --> ... <!-- /{name} -->")
    return re.sub(pattern, lambda m: f"{m[1]}{block.strip()}\n{m[2]}", text, count=1, flags=re.S)


def update(readme: Path, results: Path) -> None:
    """Refresh tables, timings and picture of the README from a finished run."""
    tables = results / "tables"
    text = readme.read_text(encoding="utf-8")
    for name in ("table2", "ablation", "unet_only"):
        path = tables / f"{name}.md"
        if not path.is_file():
            raise UserError(f"{path}: not found; run `make all` first")
        text = fill(text, name, path.read_text(encoding="utf-8"))
    text = fill(text, "bench", report(results))
    from PIL import Image

    PICTURE.parent.mkdir(exist_ok=True)
    with Image.open(results / "figures" / "crops_W6A6.png") as image:
        image.convert("RGB").save(PICTURE, quality=88)
    write_text(readme, text)
