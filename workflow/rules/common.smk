# Configuration and paths; the library reads and checks the file before any job is planned.
import hashlib
import inspect
import os
import sys
from pathlib import Path

ROOT = Path(workflow.current_basedir).parent.parent
sys.path.insert(0, str(ROOT))

from passionsr import recovery
from passionsr import stages as lib
from passionsr.config import BICUBIC, FP32, load_config
from passionsr.datasets import DATA as FETCHED_IN
from passionsr.fetch import FETCHED
from passionsr.files import UserError

CONFIG_FILE = config.get("file", "config/mini.yaml")
try:
    CFG = load_config(CONFIG_FILE)
    TEST, CALIBRATION = lib.data_files(CFG)
    MISSING = lib.missing_inputs(CFG)
    if workflow.is_main_process:
        recovery.look(CFG.results, sys.argv)
except UserError as err:
    sys.exit(f"error: {err}")

if MISSING and workflow.is_main_process:
    print(lib.missing_report(CONFIG_FILE, MISSING), file=sys.stderr)

RESULTS = str(CFG.results)
RUNS = [run.run_id for run in CFG.runs]
MODEL_FILES = (
    []
    if CFG.model in lib.BUILT_IN
    else sorted(
        str(p)
        for p in Path(CFG.model).rglob("*")
        if p.suffix in {".json", ".safetensors"}
    )
)
# glibc maps and unmaps every large tensor by default; page faults were a quarter of a calibration step.
MALLOC = "MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000"
# This interpreter and this checkout by relative names: a job's command is what decides whether it runs again, and
# a copied or moved repository is not another one.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
SCRIPT = os.path.relpath(ROOT / "workflow" / "scripts" / "stage.py")
STAGE = f"OMP_NUM_THREADS={CFG.threads} {MALLOC} python {SCRIPT}"


def code(*patterns, functions=()):
    """Digest of sources: a rule's parameter, so that changed code re-runs what it made.

    functions: those of passionsr/stages.py that a rule runs; the whole module would re-run everything.
    """
    digest = hashlib.sha256()
    for function in functions:
        digest.update(inspect.getsource(function).encode())
    for pattern in ("passionsr/files.py", *patterns):
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


DATA_CODE = code(
    "passionsr/data.py", "passionsr/datasets.py", "passionsr/degrade.py", "passionsr/images.py",
    functions=[lib.make_data],
)  # fmt: skip
MODEL_CODE = code(
    "passionsr/quant/*.py", "passionsr/layers.py", "passionsr/transforms.py", "passionsr/surgery.py",
    "passionsr/model.py", "passionsr/loading.py", "passionsr/inference.py", "passionsr/tiling.py", "passionsr/colour.py",
    "passionsr/images.py",
    "passionsr/export.py", "passionsr/tiny.py",
    "passionsr/blueprint.py", "passionsr/sd21.py",
    functions=[lib.load_float_model, lib.write_images, lib.reference, lib.infer],
)  # fmt: skip
METHOD_CODE = code(
    "passionsr/calibration.py", "passionsr/fit.py", "passionsr/method.py", "passionsr/diagnostics.py",
    "passionsr/reconstruction.py", "passionsr/resume.py",
    "passionsr/passion.py", "baselines/*.py",
    functions=[lib.calibrate, lib.Loaded, lib.sensitivity, lib.write_csv],
)  # fmt: skip
SCORE_CODE = code(
    "passionsr/metric*.py",
    functions=[lib.probe_metrics, lib.score, lib.scored_outputs, lib.write_csv],
)
REPORT_CODE = code(
    "passionsr/tables.py", "passionsr/metric_table.py", "passionsr/parity.py"
)
FIGURE_CODE = code("passionsr/figures.py")


def images(run):
    return [str(path) for path in lib.image_files(CFG, run)]


def at_attempt(megabytes):
    """Memory that grows with the attempt, for schedulers that enforce it."""
    return lambda wildcards, attempt: megabytes * attempt


TABLES = [
    f"{RESULTS}/tables/{name}.{suffix}"
    for name in CFG.tables
    for suffix in ("csv", "md", "tex")
] + [f"{RESULTS}/tables/cost.md", f"{RESULTS}/tables/summary.json"]
GIVEN = [given.name for given in CFG.given]
if GIVEN:
    TABLES += [f"{RESULTS}/tables/parity.{suffix}" for suffix in ("csv", "md")]
SCHEMES = dict.fromkeys(run.scheme for run in CFG.runs if run.scope == "UV")
FIGURES = [
    f"{RESULTS}/figures/{name}.png"
    for name in [
        *(f"crops_{s}" for s in SCHEMES),
        "loss_curves",
        "ranges_let",
        "bits_sweep",
    ]
] + [f"{RESULTS}/figures/loss_curves.csv"]
SENSITIVITY = [str(lib.sensitivity_file(CFG))] if CFG.sensitivity else []
if SENSITIVITY:
    FIGURES.append(f"{RESULTS}/figures/sensitivity.png")


wildcard_constraints:
    run="|".join(RUNS),
