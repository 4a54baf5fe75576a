"""One job of the workflow in one process: `job.py JOB --config FILE [--run ID ...]`."""

import argparse
import errno
import importlib
import logging
import os
import signal
import sys
from pathlib import Path

# The code beside this file, whatever is installed, on PYTHONPATH or in the working directory.
sys.path.insert(0, str(Path(os.path.abspath(__file__)).parents[2]))

from passionsr.benchmark.config import Config, load_config
from passionsr.benchmark.timing import log_peak, log_ready
from passionsr.models.family import get_family
from passionsr.utils.files import UserError
from passionsr.utils.memory import keep_freed_memory
from passionsr.utils.own_code import check_own_code

# Job -> the function that does it: of the configuration, of one run too, or of several.
JOBS = {
    "data": "passionsr.benchmark.jobs.data:make_data",
    "probe": "passionsr.benchmark.jobs.score:probe_metrics",
    "reference": "passionsr.benchmark.jobs.infer:reference",
    "calibrate": "passionsr.benchmark.jobs.calibrate:calibrate",
    "sensitivity": "passionsr.benchmark.jobs.calibrate:sensitivity",
    "infer": "passionsr.benchmark.jobs.infer:infer",
    "score": "passionsr.benchmark.jobs.score:score",
    "tables": "passionsr.report.tables:write_tables",
    "table3": "passionsr.report.model_size:write_table3",
    "figures": "passionsr.report.figures:write_figures",
    "proof": "passionsr.report.proof:write_proof",
}
OF_ONE_RUN, OF_RUNS = ("calibrate", "infer"), ("score",)
WITH_MODEL = ("reference", "sensitivity", "calibrate", "infer", "table3")
WITH_TORCH = (*WITH_MODEL[:-1], "score")
NOT_OURS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def imports(job: str, config: Config) -> None:
    """Import what a job needs before it can work, so that start-up can be told from work."""
    if job in WITH_MODEL:
        get_family(config.family).import_networks()
    elif job == "score":
        from passionsr.metrics.weights import use_private_hub

        use_private_hub()
        import pyiqa  # noqa: F401
    elif job == "figures":
        import passionsr.report.figures  # noqa: F401


def work(job: str, config: Config, run_ids: list[str]) -> None:
    """Call the library."""
    if job in WITH_TORCH:
        import torch

        torch.set_num_threads(config.threads)
        if not config.low_memory:
            keep_freed_memory()
    module, _, function = JOBS[job].partition(":")
    do = getattr(importlib.import_module(module), function)
    if job in OF_ONE_RUN:
        (run_id,) = run_ids
        do(config, config.run(run_id))
    elif job in OF_RUNS:
        do(config, run_ids)
    else:
        do(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--run", nargs="*", default=[])
    args = parser.parse_args()
    # Without this a SIGTERM ends the process where it stands, and temporary files stay.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        check_own_code(Path(os.path.abspath(__file__)).parents[2])
        config = load_config(args.config)
        imports(args.job, config)
        log_ready()
        work(args.job, config, args.run)
        log_peak()
    except UserError as err:
        raise SystemExit(f"error: {err}") from None
    except OSError as err:
        if err.errno not in NOT_OURS:
            raise
        raise SystemExit(
            f"error: {err}: give the results folder room and write permission, then run again"
        ) from None


if __name__ == "__main__":
    main()
