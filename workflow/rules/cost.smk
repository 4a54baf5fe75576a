TABLE3 = [
    f"{RESULTS}/tables/{name}"
    for name in ("table3.csv", "table3.md", "table3.tex", "table3_runs.csv")
]


rule table3:
    """Parameters, operations and bytes: counted from the architecture, measured on the runs."""
    input:
        [f"{RESULTS}/runs/{run}/run.json" for run in RUNS],
        [f"{RESULTS}/runs/{run}/artifact/model.safetensors" for run in RUNS],
        MODEL_FILES,
    output:
        TABLE3,
    log:
        f"{RESULTS}/logs/table3.log",
    benchmark:
        f"{RESULTS}/benchmarks/table3.tsv"
    retries: 1
    resources:
        mem_mb=memory_of("table3"),
    params:
        code=job_code("report.model_size", "methods.passionsr"),
        family=FAMILY_CODE,
        cases=[f"{run.scheme}-{run.scope}" for run in CFG.runs],
        model=CFG.model,
    shell:
        f"{JOB} table3 --config {CONFIG_WORD} > {{log}} 2>&1"
