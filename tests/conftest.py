import fcntl
import os
import shutil
from pathlib import Path

import pytest
import torch

pytest.register_assert_rewrite("bad_inputs.table")

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("PASSIONSR_SHARED", ROOT.parent / "shared"))


def pytest_collection_modifyitems(items):
    """Tests on a whole benchmark run take minutes and go first, then the longest files.

    So that both workers of `make test` end together.
    """
    first = ("undisturbed", "versioned", "finished")
    longest = ("methods/test_methods.py", "metrics/test_metrics.py", "tools/test_train_mini.py",
               "faults/test_resume.py", "calibration/test_low_memory.py")  # fmt: skip

    def place(item):
        whole = (i for i, name in enumerate(first) if name in item.fixturenames)
        long = item.nodeid.partition("::")[0].endswith(longest)
        return next(whole, len(first) + (not long))

    items.sort(key=place)


def pytest_terminal_summary(terminalreporter, config):
    """With `-m bad_inputs` (`make bad-inputs`): the table of what was given and answered."""
    if config.option.markexpr != "bad_inputs":
        return
    from tabulate import tabulate

    rows = [
        value
        for kind in ("passed", "failed")
        for report in terminalreporter.getreports(kind)
        for name, value in report.user_properties
        if name == "bad_input"
    ]
    columns = ["kind", "given", "answer", "status", "files made"]
    width = [None, 32, 70, None, 24]
    terminalreporter.write_line(tabulate(sorted(rows), columns, "simple", maxcolwidths=width))


@pytest.fixture(autouse=True, scope="session")
def _repository_root():
    """Lists and models are named relative to the repository."""
    before = Path.cwd()
    os.chdir(ROOT)
    torch.set_num_threads(1)
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with published numbers, vectors and datasets."""
    if not (SHARED / "vectors").is_dir():
        pytest.skip(f"{SHARED} is not there; set PASSIONSR_SHARED")
    return SHARED


@pytest.fixture(scope="session")
def tiny():
    """The random tiny model; tests must not change it."""
    from passionsr.models.tiny import tiny_model

    return tiny_model()


@pytest.fixture(scope="session")
def tiny_batches(tiny):
    """Four images of 32 px in two batches, with ground truth and the float teacher's outputs."""
    from passionsr.calibration.batches import make_batches

    generator = torch.Generator().manual_seed(3)
    images = [torch.rand(1, 3, 32, 32, generator=generator) for _ in range(4)]
    targets = [torch.rand(1, 3, 32, 32, generator=generator) for _ in range(4)]
    return make_batches(tiny, images, batch_size=2, seed=0, targets=targets)


def _built_once(tmp_path_factory, benchmark):
    """A repository copy in which a benchmark has run from nothing.

    The workers of one test run share it, unchanged.
    """
    from copies import copy_repository, results_of, snakemake

    top = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        top = top.parent
    results = results_of(Path(), benchmark)
    folder, log = top / f"built_{results.name}", top / f"built_{results.name}.log"
    with (top / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            copy_repository(folder)
            status, output = snakemake(folder, *benchmark, cores=2)
            log.write_text(f"{status}\n{output}")
    status, output = log.read_text().split("\n", 1)
    assert status == "0", output[-4000:]
    assert f"{results}/tables/" in output
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A repository copy in which `snakemake all` has run the test benchmark.

    Tests put back what they change.
    """
    from copies import TEST

    built = _built_once(tmp_path_factory, TEST)
    return shutil.copytree(built, tmp_path_factory.mktemp("repo") / "repo", symlinks=True)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """(repository copy in which the small benchmark has run, its products).

    Tests work on copies of it.
    """
    from copies import SMALL, results_of

    from passionsr.benchmark.reproducibility import products

    folder = _built_once(tmp_path_factory, SMALL)
    return folder, products(results_of(folder, SMALL))
