"""The one DVC stage: Snakemake on folders that it can trust.

`dvc_benchmark.py --config FILE --results FOLDER`, called by dvc.yaml.

DVC owns bytes, Snakemake owns what runs again. DVC keeps the old products (`persist`), so that
Snakemake computes only what is new. But DVC also replaces files (checkout, pull, exp apply) without
telling Snakemake, whose records in .snakemake/metadata then describe other bytes. So before
Snakemake every product that this workspace's Snakemake did not itself write last is deleted (it is
in DVC's cache), and after it every product that the configuration does not ask for. A file that is
no product, such as a note beside a table, stays. docs/guides/dvc.md tells what goes wrong without.

$SNAKEMAKE_PROFILE chooses where jobs run; without one, all cores of this machine.
"""

import argparse
import base64
import fnmatch
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

# The code beside this file, whatever is installed, on PYTHONPATH or in the working directory.
sys.path.insert(0, str(Path(os.path.abspath(__file__)).parents[2]))

from passionsr.benchmark.config import load_config
from passionsr.benchmark.paths import PRODUCTS
from passionsr.utils.files import UserError
from passionsr.utils.foreign_files import is_foreign
from passionsr.utils.own_code import check_own_code

METADATA = Path(".snakemake/metadata")
CACHE = Path(".dvc/cache/files/md5")
# In results/<name>/: the outs of dvc.yaml.
OUTS = (*PRODUCTS, "metrics.json")
# What a run leaves, which may be that of another configuration that DVC has put here.
OF_A_RUN = (
    "runs/*/artifact/*",
    "runs/*/*.csv",
    "runs/*/run.json",
    "images/*/*.png",
    "images/*/*.tsv",
    "scores/*/*.csv",
)


def files_of(results: Path) -> list[Path]:
    """Every file of the outs, without those that systems and editors leave."""
    outs = [results / name for name in OUTS]
    files = [f for path in outs for f in (path.rglob("*") if path.is_dir() else [path])]
    files = [f for f in files if f.is_file() or f.is_symlink()]
    return [f for f in files if not any(map(is_foreign, f.relative_to(results).parts))]


def product(path: Path, results: Path) -> Path:
    """The output that stands for a file.

    Itself, or x.tsv for everything in a folder x that it lists.
    """
    folders = list(path.relative_to(results).parents)[:-1]
    lists = [results / folder.with_name(f"{folder.name}.tsv") for folder in folders]
    return next((file for file in lists if file.is_file()), path)


def record(path: Path) -> Path:
    """Where Snakemake (persistence/file.py) keeps its record of a file.

    Base64 of the path, long names cut into folders. Snakemake has no public question for this; a
    test shows that without an answer old files pass for new ones.
    """
    name = base64.urlsafe_b64encode(str(path).encode()).decode()
    cut = (os.pathconf(METADATA, "PC_NAME_MAX") if METADATA.is_dir() else 255) - 1
    parts = [name[i : i + cut] for i in range(0, len(name), cut)]
    return METADATA.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1])


def written_by_snakemake(path: Path) -> bool:
    """Whether Snakemake's record says that it made this very file.

    The recorded end is the file's time. A record that cannot be read only means that the file is
    made again.
    """
    try:
        ended = json.loads(record(path).read_text())["endtime"]
        return abs(path.stat().st_mtime - ended) < 1e-3
    except (OSError, ValueError, KeyError, TypeError):
        return False


def stands_for(listing: Path, path: Path) -> bool:
    """Whether a product is the file itself, or a list that names it."""
    return listing == path or path.stem in listing.read_text(encoding="utf-8", errors="replace")


def is_old_product(path: Path, results: Path) -> bool:
    """Whether a file that nothing asks for is a product of another configuration.

    Snakemake has a record of it, or it is of a run and DVC's cache has its bytes.
    """
    listing = product(path, results)
    if record(listing).is_file():
        return stands_for(listing, path)
    name = path.relative_to(results).as_posix()
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    of_a_run = any(fnmatch.fnmatch(name, pattern) for pattern in OF_A_RUN)
    return of_a_run and (CACHE / md5[:2] / md5[2:]).is_file()


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


def check_results(config_file: Path, declared: Path) -> Path:
    """Where a configuration's results go; UserError if dvc.yaml declares another folder.

    DVC would then record what lies there as made from this configuration.
    """
    results = load_config(config_file).results
    if declared != results:
        raise UserError(
            f"dvc.yaml: results: {declared} given, but {config_file} writes to {results}: change "
            "`config` and `results` of its `vars` together"
        )
    return results


def run_benchmark(config_file: Path, declared: Path) -> None:
    """Guard, run, prune."""
    results = check_results(config_file, declared)
    settings = ["--config", f"file={config_file}"]
    cores = [] if "SNAKEMAKE_PROFILE" in os.environ else ["--cores", "all"]

    def unwanted() -> set[str]:
        found = snakemake("all", "--list-untracked", *settings, stdout=subprocess.PIPE) or ""
        return set(found.splitlines())

    others, foreign = unwanted(), []
    for path in files_of(results):
        made = product(path, results)
        if str(made) not in others and stands_for(made, path) and not written_by_snakemake(made):
            foreign.append(path)
    remove(foreign, "that this workspace's Snakemake did not write")
    snakemake("all", *cores, *settings)
    others = unwanted()
    stale = [
        path
        for path in files_of(results)
        if str(product(path, results)) in others and is_old_product(path, results)
    ]
    remove(stale, "that the configuration no longer asks for")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    args = parser.parse_args()
    try:
        check_own_code(Path(os.path.abspath(__file__)).parents[2])
        run_benchmark(args.config, args.results)
    except UserError as err:
        raise SystemExit(f"error: {err}") from None


if __name__ == "__main__":
    main()
