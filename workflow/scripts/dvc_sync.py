"""After DVC has put files in place: tell Snakemake. `dvc_sync.py [pull|checkout]`.

Snakemake trusts its own records and file times; `dvc pull`, `dvc checkout` and `dvc exp apply`
leave files with neither. Where `dvc status` says that every file is the one that dvc.lock names for
this code and configuration, they are what Snakemake would make, so its records are written anew
(`snakemake --touch`). Where it does not, nothing is touched.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "get", nargs="?", choices=["pull", "checkout"], help="first run this of DVC"
    )
    args = parser.parse_args()
    dvc, snakemake = ([sys.executable, "-m", name] for name in ("dvc", "snakemake"))
    if args.get:
        subprocess.run([*dvc, args.get], check=True)
    if subprocess.run([*dvc, "status", "--quiet"], check=False).returncode:
        subprocess.run([*dvc, "status"], check=False)
        raise SystemExit(
            "error: code, configuration or files differ from dvc.lock (above), so Snakemake "
            "is told nothing; "
            "run `dvc repro`, which makes again whatever it cannot trust"
        )
    config = yaml.safe_load(Path("dvc.yaml").read_text())["vars"][0]["config"]
    subprocess.run(
        [*snakemake, "all", "--touch", "--forceall", "--cores", "1", "--config", f"file={config}"],
        check=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
