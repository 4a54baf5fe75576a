"""Memory of the workflow's jobs: what each may take, and how many fit into a machine at once."""

from __future__ import annotations

from collections.abc import Mapping

from passionsr.benchmark.config import Config
from passionsr.utils.files import UserError
from passionsr.utils.machine_memory import MachineMemory


def job_memory(config: Config) -> dict[str, int]:
    """Kind of job -> memory that one may take, MB; Snakemake's `mem_mb` at the first attempt.

    Jobs that run the model have the configuration's `memory_mb`. On config/mini.yaml, peaks were
    measured as 2600 MB of a calibration, 1300 of `sensitivity`, 1200 of an inference, 1010 of
    `reference`, 1490 of `score`, 940 of `table3`, 720 of `metric_weights`, 300 of `figures`.
    """
    model = dict.fromkeys(("reference", "calibrate", "sensitivity", "infer"), config.memory_mb)
    small = dict.fromkeys(("data", "fetch_source", "tables", "figures", "proof"), 1000)
    score = 3000 if config.device == "cpu" else 6000  # CUDA's libraries take some 3 GB
    return {**model, **small, "table3": 1500, "metric_weights": 2000, "score": score}


def too_small(needs: Mapping[str, int], memory: MachineMemory) -> str | None:
    """Why a machine cannot run one of the jobs even alone; None where it can run each.

    needs: job or kind of job -> MB.
    """
    largest = max(sorted(needs), key=lambda name: needs[name], default=None)  # one name always
    if largest is None or needs[largest] <= memory.for_jobs_mb:
        return None
    return (
        f"too little memory: {largest} may take {needs[largest]} MB, and jobs may take {memory}; "
        "use a larger machine or limit, or, if you know better, say what jobs may take: "
        f"--resources mem_mb={needs[largest]}"
    )


def memory_budget(needs: Mapping[str, int], memory: MachineMemory) -> int:
    """MB that jobs may take together on this machine, for Snakemake's `--resources mem_mb`.

    Raises UserError if one of them does not fit. A job that is repeated asks for more than this at
    its second attempt; Snakemake then gives it all there is.
    """
    problem = too_small(needs, memory)
    if problem is not None:
        raise UserError(problem)
    return memory.for_jobs_mb
