# One target per product: what a DVC stage asks for (dvc.yaml, workflow/scripts/dvc_stage.py).
import json

PRODUCTS = {
    "data": rules.data.output,
    "reference": rules.reference.output,
    "calibrate": expand(rules.calibrate.output, run=RUNS) + SENSITIVITY,
    "infer": expand(rules.infer.output, run=RUNS),
    "score": [f"{RESULTS}/metrics.json"]
    + [str(paths.scores_file(CFG, run)) for run in [FP32, BICUBIC, *EXTERNAL, *RUNS]],
    "report": TABLES + TABLE3 + FIGURES,
}
# dvc_stage.py deletes what a smaller grid no longer asks for, and learns here what that is.
if "PASSIONSR_PRODUCTS" in os.environ:
    Path(os.environ["PASSIONSR_PRODUCTS"]).write_text(
        json.dumps({k: [str(p) for p in v] for k, v in PRODUCTS.items()})
    )

for product, files in PRODUCTS.items():

    rule:
        name:
            f"{product}_all"
        input:
            files,
        localrule: True
