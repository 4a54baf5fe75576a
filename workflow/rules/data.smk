rule data:
    """Test and calibration images, from lists in git."""
    input:
        str(CFG.test),
        str(CFG.calibration),
    output:
        sorted({str(p) for pair in TEST + CALIBRATION for p in (pair.hr, pair.lr)}),
    log:
        f"{RESULTS}/logs/data.log",
    benchmark:
        f"{RESULTS}/benchmarks/data.tsv"
    retries: 1
    resources:
        mem_mb=at_attempt(1000),
    params:
        code=DATA_CODE,
    shell:
        f"{STAGE} data --config {CONFIG_FILE} > {{log}} 2>&1"


rule metric_weights:
    """Metric weights into the private hub folder; which metrics this machine can compute."""
    output:
        f"{RESULTS}/metrics.json",
    log:
        f"{RESULTS}/logs/metric_weights.log",
    benchmark:
        f"{RESULTS}/benchmarks/metric_weights.tsv"
    retries: 2
    resources:
        mem_mb=at_attempt(2000),
    params:
        code=SCORE_CODE,
        metrics=list(CFG.metrics),
    shell:
        f"{STAGE} probe --config {CONFIG_FILE} > {{log}} 2>&1"


rule reference:
    """Outputs of the float model and of bicubic upscaling."""
    input:
        data=[str(pair.lr) for pair in TEST],
        model=MODEL_FILES,
    output:
        images(FP32) + images(BICUBIC),
    log:
        f"{RESULTS}/logs/reference.log",
    benchmark:
        f"{RESULTS}/benchmarks/reference.tsv"
    retries: 1
    threads: CFG.threads
    resources:
        mem_mb=at_attempt(CFG.memory_mb + 1000),
    params:
        code=MODEL_CODE,
        threads=CFG.threads,
        posterior=CFG.posterior,
    shell:
        f"{STAGE} reference --config {CONFIG_FILE} > {{log}} 2>&1"
