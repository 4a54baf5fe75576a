"""One DVC stage: Snakemake up to one product, on folders that Snakemake can trust.

`dvc_stage.py STAGE --config FILE`, called by dvc.yaml. DVC keeps a stage's old files (`persist`), so that a larger
grid computes only what is new. But DVC also replaces files (checkout, pull, exp apply) without telling Snakemake,
whose records in .snakemake/metadata then describe other bytes. So, before Snakemake, every file that this
workspace's Snakemake did not itself write last is deleted (it is in DVC's cache), and after it, every file that the
grid no longer asks for. docs/versioning.md tells what went wrong without.

$SNAKEMAKE_PROFILE chooses where jobs run; without one, all cores of this machine.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
from pathlib import Path

from passionsr.benchmark.config import Config, load_config
from passionsr.utils.files import UserError

METADATA = Path(".snakemake/metadata")
# What each stage owns in results/<name>/: the outs of dvc.yaml.
OWNED = {
    "data": ("data",),
    "reference": ("reference",),
    "calibrate": ("runs",),
    "infer": ("images",),
    "score": ("metrics.json", "scores"),
    "report": ("tables", "figures"),
}


def rules(stage: str, config: Config) -> list[str]:
    """The rules a stage may run; whatever else it reads is a plain file to it."""
    schemes = ["W32A32", *dict.fromkeys(run.scheme for run in config.runs)]
    return {
        "data": ["data"],
        "reference": ["reference"],
        "calibrate": ["calibrate", "sensitivity"],
        "infer": ["infer"],
        "score": ["metric_weights", "score_external", *(f"score_{scheme}" for scheme in schemes)],
        "report": ["tables", "table3", "figures"],
    }[stage]


def files_of(stage: str, results: Path) -> list[Path]:
    """Every file in a stage's folders."""
    owned = [results / name for name in OWNED[stage]]
    files = [f for path in owned for f in (path.rglob("*") if path.is_dir() else [path])]
    return [f for f in files if f.is_file() or f.is_symlink()]


def product(path: Path, results: Path) -> Path:
    """The output that stands for a file: itself, or x.tsv for everything in a folder x that it lists."""
    folders = list(path.relative_to(results).parents)[:-1]
    lists = [results / folder.with_name(f"{folder.name}.tsv") for folder in folders]
    return next((file for file in lists if file.is_file()), path)


def written_by_snakemake(path: Path) -> bool:
    """Whether Snakemake's record says that it made this very file: the recorded end is the file's time.

    The record's place is Snakemake's own (persistence/file.py): base64 of the path, long names cut into folders. A
    record that cannot be read only means that the file is made again.
    """
    name = base64.urlsafe_b64encode(str(path).encode()).decode()
    cut = (os.pathconf(METADATA, "PC_NAME_MAX") if METADATA.is_dir() else 255) - 1
    parts = [name[i : i + cut] for i in range(0, len(name), cut)]
    place = METADATA.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1])
    try:
        ended = json.loads(place.read_text())["endtime"]
        return abs(path.stat().st_mtime - ended) < 1e-3
    except (OSError, ValueError, KeyError, TypeError):
        return False


def remove(files: list[Path], why: str) -> None:
    """Delete and say so, briefly."""
    for path in files:
        path.unlink()
    if files:
        print(f"dvc_stage: removed {len(files)} file(s) {why}, such as {files[0]}", flush=True)


def snakemake(*arguments: str, products: Path | None = None) -> None:
    """Run Snakemake as this interpreter's module; UserError if it fails (it has said why itself)."""
    command = [sys.executable, "-m", "snakemake", *arguments]
    if "SNAKEMAKE_PROFILE" not in os.environ:
        command += ["--cores", "all"]
    environment = {**os.environ, **({"PASSIONSR_PRODUCTS": str(products)} if products else {})}
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        raise UserError(f"snakemake ended with status {status}; its messages are above")


def run_stage(stage: str, config_file: Path) -> None:
    """Guard, run, prune."""
    config = load_config(config_file)
    results = config.results
    foreign = [f for f in files_of(stage, results) if not written_by_snakemake(product(f, results))]
    remove(foreign, "that this workspace's Snakemake did not write")
    products = Path(".snakemake") / f"products-{stage}.json"
    products.parent.mkdir(exist_ok=True)
    target = f"{stage}_all"
    snakemake(
        target, "--allowed-rules", *rules(stage, config), target,
        "--config", f"file={config_file}", products=products,
    )  # fmt: skip
    wanted = set(json.loads(products.read_text())[stage])
    stale = [f for f in files_of(stage, results) if str(product(f, results)) not in wanted]
    remove(stale, "that the grid no longer asks for")
    for name in OWNED[stage]:  # DVC wants every out, also an empty one
        if "." not in name:
            (results / name).mkdir(parents=True, exist_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=OWNED)
    parser.add_argument("--config", type=Path, required=True)
    args = parser.parse_args()
    try:
        run_stage(args.stage, args.config)
    except UserError as err:
        raise SystemExit(f"error: {err}") from None


if __name__ == "__main__":
    main()
