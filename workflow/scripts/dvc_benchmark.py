"""The one DVC stage: Snakemake on folders that it can trust.

`dvc_benchmark.py --config FILE`, called by dvc.yaml.

DVC owns bytes, Snakemake owns what runs again. DVC keeps the old products (`persist`), so that
Snakemake computes only what is new. But DVC also replaces files (checkout, pull, exp apply) without
telling Snakemake, whose records in .snakemake/metadata then describe other bytes. So before
Snakemake every file that this workspace's Snakemake did not itself write last is deleted (it is in
DVC's cache), and after it every file that the configuration does not ask for. docs/guides/dvc.md
tells what goes wrong without.

$SNAKEMAKE_PROFILE chooses where jobs run; without one, all cores of this machine.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
from pathlib import Path

from passionsr.benchmark.config import load_config
from passionsr.benchmark.paths import PRODUCTS
from passionsr.utils.files import UserError

METADATA = Path(".snakemake/metadata")
# In results/<name>/: the outs of dvc.yaml.
OUTS = (*PRODUCTS, "metrics.json")


def files_of(results: Path) -> list[Path]:
    """Every file of the outs."""
    outs = [results / name for name in OUTS]
    files = [f for path in outs for f in (path.rglob("*") if path.is_dir() else [path])]
    return [f for f in files if f.is_file() or f.is_symlink()]


def product(path: Path, results: Path) -> Path:
    """The output that stands for a file.

    Itself, or x.tsv for everything in a folder x that it lists.
    """
    folders = list(path.relative_to(results).parents)[:-1]
    lists = [results / folder.with_name(f"{folder.name}.tsv") for folder in folders]
    return next((file for file in lists if file.is_file()), path)


def written_by_snakemake(path: Path) -> bool:
    """Whether Snakemake's record says that it made this very file.

    The recorded end is the file's time.

    The record's place is Snakemake's own (persistence/file.py): base64 of the path, long names cut
    into folders. A record that cannot be read only means that the file is made again. Snakemake has
    no public question for this; a test shows that without an answer old files pass for new ones.
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
        print(f"dvc_benchmark: removed {len(files)} file(s) {why}, such as {files[0]}", flush=True)


def snakemake(*arguments: str, **options: object) -> str | None:
    """Run Snakemake as this interpreter's module; what it printed, if asked for.

    Raises UserError if it fails (it has said why itself).
    """
    command = [sys.executable, "-m", "snakemake", *arguments]
    result = subprocess.run(command, check=False, text=True, **options)
    if result.returncode:
        raise UserError(f"snakemake ended with status {result.returncode}; its messages are above")
    return result.stdout


def run_benchmark(config_file: Path) -> None:
    """Guard, run, prune."""
    results = load_config(config_file).results
    foreign = [f for f in files_of(results) if not written_by_snakemake(product(f, results))]
    remove(foreign, "that this workspace's Snakemake did not write")
    settings = ["--config", f"file={config_file}"]
    cores = [] if "SNAKEMAKE_PROFILE" in os.environ else ["--cores", "all"]
    snakemake("all", *cores, *settings)
    untracked = snakemake("all", "--list-untracked", *settings, stdout=subprocess.PIPE) or ""
    unwanted = set(untracked.splitlines())
    stale = [f for f in files_of(results) if str(product(f, results)) in unwanted]
    remove(stale, "that the configuration no longer asks for")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    args = parser.parse_args()
    try:
        run_benchmark(args.config)
    except UserError as err:
        raise SystemExit(f"error: {err}") from None


if __name__ == "__main__":
    main()
