# Configuration and paths; the library reads and checks the file before any job is planned.
import json
import os
import re
import sys
from pathlib import Path

# Plan and jobs are those of the code beside this file, whatever else is installed or on PYTHONPATH.
ROOT = Path(workflow.current_basedir).parent.parent.resolve()
sys.path.insert(0, str(ROOT))

from passionsr.benchmark import paths, recovery
from passionsr.benchmark.config import BICUBIC, FP32, load_config
from passionsr.benchmark.config_check import check_config
from passionsr.benchmark.config_choice import chosen_file
from passionsr.benchmark.inputs import missing_inputs, missing_report
from passionsr.benchmark.job_code import (
    family_code,
    job_code,
    method_code,
    metric_code,
)
from passionsr.benchmark.job_memory import job_memory, memory_budget, too_small
from passionsr.data.datasets import DATA as FETCHED_IN
from passionsr.data.fetch import FETCHED
from passionsr.data.image_folders import images_in
from passionsr.metrics.registry import METRICS
from passionsr.models.family import get_family
from passionsr.report.figure_list import figure_files
from passionsr.report.table_list import table_files
from passionsr.utils.files import UserError
from passionsr.utils.machine_memory import machine_memory
from passionsr.utils.names import in_shell
from passionsr.utils.own_code import check_own_code, python_path

try:
    check_own_code(ROOT)
    CONFIG_FILE = chosen_file(
        workflow.config_settings.config,
        workflow.config_settings.config_args or [],
        workflow.config_settings.configfiles,
    )
    # The jobs of a local run and of a cluster start Snakemake again; one check is enough.
    CFG = (check_config if workflow.is_main_process else load_config)(CONFIG_FILE)
    FAMILY = get_family(CFG.family)
    TEST, CALIBRATION = paths.data_files(CFG)
    MISSING = missing_inputs(CFG)
    MODEL_FILES = [str(path) for path in paths.model_files(CFG)]
    MACHINE = machine_memory()
except UserError as err:
    sys.exit(f"error: {err}")

if MISSING and workflow.is_main_process:
    print(missing_report(CONFIG_FILE, MISSING), file=sys.stderr)

FAMILY_CODE = family_code(CFG.family)
RESULTS = str(CFG.results)
RUNS = [run.run_id for run in CFG.runs]
# This interpreter and this checkout by relative names: a job's command is what decides whether it runs again, and
# a copied or moved repository is not another one.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
CONFIG_WORD = in_shell(str(CONFIG_FILE))
SCRIPT = in_shell(os.path.relpath(ROOT / "workflow" / "scripts" / "job.py"))
JOB = f"OMP_NUM_THREADS={CFG.threads} python {SCRIPT}"
# Of jobs that are modules, and of what jobs start.
os.environ["PYTHONPATH"] = python_path()


def images(run):
    return [str(path) for path in paths.image_files(CFG, run)]


def scores(run):
    return [str(path) for path in paths.scores_files(CFG, run)]


def values(*items):
    """Values of the configuration as a rule's parameter: equal for equal values, whatever the order of keys."""
    return json.dumps(items, sort_keys=True, default=repr)


# What products depend on besides files and code. A key that reaches a job stands here, or in the run's digest.
DATA_KEYS = values(CFG.test, CFG.datasets, CFG.calibration, CFG.photos, CFG.limits)
MODEL_KEYS = values(CFG.model, CFG.threads, CFG.device)
INFERENCE_KEYS = values(CFG.posterior, CFG.inference, CFG.threads, CFG.device)


MEMORY = job_memory(CFG)
# Jobs of a cluster run elsewhere, and who gives --resources mem_mb has decided.
if (
    workflow.is_main_process
    and workflow.output_settings.dryrun
    and workflow.nodes is None
):
    if "mem_mb" not in workflow.global_resources and (
        problem := too_small(MEMORY, MACHINE)
    ):
        print(problem, file=sys.stderr)


def memory_of(kind):
    """Memory of a kind of job, MB; it grows with the attempt, for schedulers that enforce it."""
    return lambda wildcards, attempt: MEMORY[kind] * attempt


def limit_memory():
    """Of a local run, whatever --cores says: jobs together take no more than this machine has."""
    if (
        not workflow.local_exec
        or workflow.touch
        or "mem_mb" in workflow.global_resources
    ):
        return
    needs = {
        job.rule.name: needed
        for job in workflow.dag.needrun_jobs()
        if isinstance(needed := job.resources.get("mem_mb"), int)
    }
    try:
        budget = memory_budget(needs, MACHINE)
    except UserError as err:
        sys.exit(f"error: {err}")
    print(f"memory: jobs may take {MACHINE}", file=sys.stderr)
    # Snakemake has no option of a Snakefile for this: what --resources mem_mb would have set, here
    # for the scheduler that is about to begin.
    workflow.register_resource("mem_mb", budget)
    workflow.scheduler.global_resources["mem_mb"] = budget


# GPUs of each job that uses the device; SLURM is asked for as many. The jobs of one machine share the GPU that `device` names:
# one at a time, unless `--resources gpu=N` says that N fit into its memory.
ON_GPU = CFG.device != "cpu"
GPUS = int(os.environ.get("PASSIONSR_SLURM_GPUS", ON_GPU))
HERE = workflow.resource_settings.nodes is None  # no cluster
if ON_GPU and HERE and "gpu" not in workflow.global_resources:
    workflow.global_resources["gpu"] = 1


TABLES = [str(path) for path in table_files(CFG)]
EXTERNAL = [e.name for e in CFG.external_outputs]
SCORES = [path for run in [FP32, BICUBIC, *EXTERNAL, *RUNS] for path in scores(run)]
FIGURES = [str(path) for path in figure_files(CFG)]
SENSITIVITY = [str(paths.sensitivity_file(CFG))] if CFG.sensitivity else []


wildcard_constraints:
    run="|".join(map(re.escape, RUNS)),
