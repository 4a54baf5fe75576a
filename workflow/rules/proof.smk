rule proof:
    """Seconds and memory of every stage of every run (config/paper-random.yaml)."""
    input:
        [f"{RESULTS}/runs/{run}/run.json" for run in RUNS],
        [path for run in RUNS for path in images(run)],
        TABLE3,
    output:
        f"{RESULTS}/tables/proof.csv",
        f"{RESULTS}/tables/proof.md",
    log:
        f"{RESULTS}/logs/proof.log",
    benchmark:
        f"{RESULTS}/benchmarks/proof.tsv"
    retries: 1
    resources:
        mem_mb=memory_of("proof"),
    params:
        code=job_code("report.proof"),
    shell:
        f"{JOB} proof --config {CONFIG_WORD} > {{log}} 2>&1"
