rule data:
    """Test and calibration images, from lists in git."""
    input:
        str(CFG.test),
        str(CFG.calibration),
    output:
        sorted({str(p) for pair in TEST + CALIBRATION for p in (pair.hr, pair.lr)}),
    params:
        code=DATA_CODE,
    log:
        f"{RESULTS}/logs/data.log",
    benchmark:
        f"{RESULTS}/benchmarks/data.tsv"
    resources:
        mem_mb=at_attempt(1000),
    retries: 1
    shell:
        f"{STAGE} data --config {CONFIG_FILE} > {{log}} 2>&1"


rule metric_weights:
    """Metric weights into the private hub folder; which metrics this machine can compute."""
    output:
        f"{RESULTS}/metrics.json",
    params:
        code=SCORE_CODE,
        metrics=list(CFG.metrics),
    log:
        f"{RESULTS}/logs/metric_weights.log",
    benchmark:
        f"{RESULTS}/benchmarks/metric_weights.tsv"
    resources:
        mem_mb=at_attempt(2000),
    retries: 2
    shell:
        f"{STAGE} probe --config {CONFIG_FILE} > {{log}} 2>&1"


rule reference:
    """Outputs of the float model and of bicubic upscaling."""
    input:
        data=[str(pair.lr) for pair in TEST],
        model=MODEL_FILES,
    output:
        images(FP32) + images(BICUBIC),
    params:
        code=MODEL_CODE,
        threads=CFG.threads,
    log:
        f"{RESULTS}/logs/reference.log",
    benchmark:
        f"{RESULTS}/benchmarks/reference.tsv"
    threads: CFG.threads
    resources:
        mem_mb=at_attempt(4000),
    retries: 1
    shell:
        f"{STAGE} reference --config {CONFIG_FILE} > {{log}} 2>&1"
