rule data:
    """Test and calibration images from lists in git; of datasets, sheets of the pairs found."""
    input:
        [str(path) for path in paths.data_sources(CFG)],
    output:
        sorted({str(path) for path in TEST + CALIBRATION}),
    log:
        f"{RESULTS}/logs/data.log",
    benchmark:
        f"{RESULTS}/benchmarks/data.tsv"
    retries: 1
    resources:
        mem_mb=memory_of("data"),
    params:
        code=job_code("benchmark.jobs.data"),
        configuration=DATA_KEYS,
        scale=FAMILY.scale,
    shell:
        f"{JOB} data --config {CONFIG_WORD} > {{log}} 2>&1"


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
        mem_mb=memory_of("metric_weights"),
    params:
        code=job_code("benchmark.jobs.score"),
        metrics=list(CFG.metrics),
    shell:
        f"{JOB} probe --config {CONFIG_WORD} > {{log}} 2>&1"


rule reference:
    """Outputs of the float model and of bicubic upscaling."""
    input:
        data=[str(path) for path in TEST],
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
        mem_mb=memory_of("reference"),
        gpu=GPUS,
    params:
        code=job_code("benchmark.jobs.infer"),
        model=CFG.model,
        family=FAMILY_CODE,
        configuration=INFERENCE_KEYS,
    shell:
        f"{JOB} reference --config {CONFIG_WORD} > {{log}} 2>&1"


rule fetch_source:
    """Download one source of datasets into data/; its hashes are pinned or recorded."""
    output:
        f"{FETCHED_IN}/{{source}}/{FETCHED}",
    log:
        f"{RESULTS}/logs/fetch-{{source}}.log",
    wildcard_constraints:
        source="[A-Za-z0-9_-]+",
    resources:
        mem_mb=memory_of("fetch_source"),
    shell:
        f"python -m passionsr.cli fetch {{wildcards.source}} > {{log}} 2>&1"


rule fetch:
    """Every dataset of the configuration that can be downloaded and is not there."""
    input:
        [str(d.marker) for d in paths.datasets_of(CFG) if d.marker and d.missing()],
