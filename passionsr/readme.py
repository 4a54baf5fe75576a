"""Copies generated numbers and pictures into README.md and the model card, between their markers."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from passionsr.bench import report
from passionsr.config import load_config
from passionsr.files import UserError, atomic_path, write_text
from passionsr.metric_table import METRICS
from passionsr.plan import plan

PICTURE = Path("docs/crops_W6A6.jpg")
PARITY = Path("results/realsr-local/tables/parity.md")
CARD = Path("models/mini/README.md")


def fill(text: str, name: str, block: str) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`; UserError if they are missing."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    if not re.search(pattern, text, re.S):
        raise UserError(f"README has no markers <!-- {name} --> ... <!-- /{name} -->")
    return re.sub(
        pattern, lambda m: f"{m[1]}\n{block.strip()}\n\n{m[2]}", text, count=1, flags=re.S
    )


def _read(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path}: not found; run `make all` first")
    return path.read_text(encoding="utf-8")


def quality(table2: pd.DataFrame) -> str:
    """Bicubic against the float model, with their ratio where lower is better."""
    rows = table2[(table2.bits == "W32A32") & (table2.source == "measured here")].set_index(
        "method"
    )
    names = [n for n in METRICS if n in rows and rows[n].notna().all()]
    lines = []
    for name in names:
        bicubic, model = rows.loc["Bicubic", name], rows.loc["FP32", name]
        change = (
            f"x {model / bicubic:.2f}" if METRICS[name].lower_better else f"{model - bicubic:+.4g}"
        )
        digits = METRICS[name].digits
        lines.append([METRICS[name].title, f"{bicubic:.{digits}f}", f"{model:.{digits}f}", change])
    return tabulate(
        lines, ["", "bicubic", "model (FP32)", "model / bicubic"], "pipe", disable_numparse=True
    )


def difficulty(tables: dict[str, pd.DataFrame]) -> str:
    """PSNR to FP32 of MinMax per bit width: UNet alone, UNet + VAE."""
    lines = {}
    for label, frame in tables.items():
        rows = frame[(frame.method == "MinMax") & (frame.source == "measured here")]
        lines[label] = {r.bits: f"{r.psnr_fp:.1f} dB" for r in rows.itertuples()}
    return tabulate(pd.DataFrame(lines).T, headers="keys", tablefmt="pipe", disable_numparse=True)


def scaling() -> str:
    """The plan of the paper's grid, or of the whole mini grid where there is no configuration for it."""
    paper = Path("config/paper.yaml")
    config = paper if paper.exists() else Path("config/mini-full.yaml")
    return f"`passionsr plan {config} --gpus 8`\n\n{plan(load_config(config), 8)}"


def update(readme: Path, results: Path) -> None:
    """Refresh README.md, the model card and the README's picture from a finished run."""
    tables = results / "tables"
    text = _read(readme)
    for name in ("table2", "table4", "unet_only", "table3"):
        text = fill(text, name, _read(tables / f"{name}.md"))
    text = fill(text, "bench", report(results))
    text = fill(text, "plan", scaling())
    if PARITY.is_file():  # only where config/realsr-local.yaml has run
        text = fill(text, "parity", _read(PARITY))
    _read(tables / "table2.csv")
    table2, unet = pd.read_csv(tables / "table2.csv"), pd.read_csv(tables / "unet_only.csv")
    card = fill(_read(CARD), "quality", quality(table2))
    card = fill(card, "difficulty", difficulty({"UNet only": unet, "UNet + VAE": table2}))
    from PIL import Image

    with Image.open(results / "figures" / "crops_W6A6.png") as image, atomic_path(PICTURE) as tmp:
        image.convert("RGB").save(tmp, quality=88)
    write_text(readme, text)
    write_text(CARD, card)
