# Configuration and paths; the library reads and checks the file before any job is planned.
import json
import os
import sys
from pathlib import Path

ROOT = Path(workflow.current_basedir).parent.parent
sys.path.insert(0, str(ROOT))

from passionsr.benchmark import paths, recovery
from passionsr.benchmark.config import BICUBIC, FP32, load_config
from passionsr.benchmark.inputs import missing_inputs, missing_report
from passionsr.benchmark.job_code import (
    family_code,
    job_code,
    method_code,
    metric_code,
)
from passionsr.data.datasets import DATA as FETCHED_IN
from passionsr.data.fetch import FETCHED
from passionsr.data.image_folders import images_in
from passionsr.metrics.registry import METRICS
from passionsr.models.family import get_family
from passionsr.report.figure_list import figure_files
from passionsr.report.table_list import table_files
from passionsr.utils.files import UserError

CONFIG_FILE = config.get("file", "config/mini.yaml")
try:
    CFG = load_config(CONFIG_FILE)
    FAMILY = get_family(CFG.family)
    TEST, CALIBRATION = paths.data_files(CFG)
    MISSING = missing_inputs(CFG)
    MODEL_FILES = [str(path) for path in paths.model_files(CFG)]
except UserError as err:
    sys.exit(f"error: {err}")

if MISSING and workflow.is_main_process:
    print(missing_report(CONFIG_FILE, MISSING), file=sys.stderr)

FAMILY_CODE = family_code(CFG.family)
RESULTS = str(CFG.results)
RUNS = [run.run_id for run in CFG.runs]
# glibc maps and unmaps every large tensor by default; page faults were a quarter of a calibration step.
MALLOC = "MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000"
# This interpreter and this checkout by relative names: a job's command is what decides whether it runs again, and
# a copied or moved repository is not another one.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
SCRIPT = os.path.relpath(ROOT / "workflow" / "scripts" / "job.py")
JOB = f"OMP_NUM_THREADS={CFG.threads} {MALLOC} python {SCRIPT}"


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


def at_attempt(megabytes):
    """Memory that grows with the attempt, for schedulers that enforce it."""
    return lambda wildcards, attempt: megabytes * attempt


TABLES = [str(path) for path in table_files(CFG)]
EXTERNAL = [e.name for e in CFG.external_outputs]
SCORES = [path for run in [FP32, BICUBIC, *EXTERNAL, *RUNS] for path in scores(run)]
FIGURES = [str(path) for path in figure_files(CFG)]
SENSITIVITY = [str(paths.sensitivity_file(CFG))] if CFG.sensitivity else []


wildcard_constraints:
    run="|".join(RUNS),
