import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """Folder of a running one-node SLURM.

    Skips, with the script's reason, where there can be none.
    """
    folder = tmp_path_factory.mktemp("slurm")
    up = subprocess.run(
        ["bash", HERE / "slurm_up.sh", folder], capture_output=True, text=True, check=False
    )
    try:
        if up.returncode == 77:
            pytest.skip(up.stderr.strip().splitlines()[-1])
        assert up.returncode == 0, up.stderr
        yield folder
    finally:
        if up.returncode != 77:
            subprocess.run(["bash", HERE / "slurm_down.sh", folder], check=False)
