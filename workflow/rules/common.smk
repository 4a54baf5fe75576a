# Configuration and paths; the library reads and checks the file before any job is planned.
import hashlib
import os
import sys
from pathlib import Path

ROOT = Path(workflow.current_basedir).parent.parent
sys.path.insert(0, str(ROOT))

from passionsr import recovery
from passionsr import stages as lib
from passionsr.config import BICUBIC, FP32, load_config
from passionsr.files import UserError

CONFIG_FILE = config.get("file", "config/mini.yaml")
try:
    CFG = load_config(CONFIG_FILE)
    TEST = lib.test_pairs(CFG)
    CALIBRATION = lib.calibration_pairs(CFG)
    if CFG.model != "tiny" and not (Path(CFG.model) / "manifest.json").exists():
        raise UserError(
            f"{CONFIG_FILE}: model {CFG.model} is not there (no manifest.json in it)"
        )
    if workflow.is_main_process:
        recovery.look(CFG.results, sys.argv)
except UserError as err:
    sys.exit(f"error: {err}")

RESULTS = str(CFG.results)
RUNS = [run.run_id for run in CFG.runs]
MODEL_FILES = (
    []
    if CFG.model == "tiny"
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


def code(*patterns):
    """Digest of sources: a rule's parameter, so that a changed module re-runs what it made."""
    digest = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


DATA_CODE = code("passionsr/data.py", "passionsr/degrade.py", "passionsr/images.py")
MODEL_CODE = code(
    "passionsr/quant/*.py", "passionsr/layers.py", "passionsr/transforms.py", "passionsr/surgery.py",
    "passionsr/model.py", "passionsr/loading.py", "passionsr/inference.py", "passionsr/images.py",
    "passionsr/export.py", "passionsr/tiny.py",
    "passionsr/blueprint.py",
)  # fmt: skip
METHOD_CODE = code(
    "passionsr/calibration.py", "passionsr/fit.py", "passionsr/method.py", "passionsr/diagnostics.py",
    "passionsr/reconstruction.py", "passionsr/resume.py",
    "passionsr/passion.py", "baselines/*.py",
)  # fmt: skip
SCORE_CODE = code("passionsr/metric*.py")
REPORT_CODE = code("passionsr/tables.py", "passionsr/metric_table.py")
FIGURE_CODE = code("passionsr/figures.py")


def images(run):
    return [f"{RESULTS}/runs/{run}/images/{pair.name}.png" for pair in TEST]


def at_attempt(megabytes):
    """Memory that grows with the attempt, for schedulers that enforce it."""
    return lambda wildcards, attempt: megabytes * attempt


TABLES = [
    f"{RESULTS}/tables/{name}.{suffix}"
    for name in ("table2", "ablation", "unet_only")
    for suffix in ("csv", "md", "tex")
] + [f"{RESULTS}/tables/cost.md"]
SCHEMES = dict.fromkeys(run.scheme for run in CFG.runs if run.scope == "UV")
FIGURES = [
    f"{RESULTS}/figures/{name}.png"
    for name in [
        *(f"crops_{s}" for s in SCHEMES),
        "loss_curves",
        "ranges_let",
        "bits_sweep",
    ]
]
SENSITIVITY = [f"{RESULTS}/sensitivity.csv"] if CFG.sensitivity else []
if SENSITIVITY:
    FIGURES.append(f"{RESULTS}/figures/sensitivity.png")


wildcard_constraints:
    run="|".join(RUNS),
