rule calibrate:
    """One quantized model: integer codes and scheme, curves, report."""
    input:
        data=[str(path) for path in CALIBRATION],
        model=MODEL_FILES,
    output:
        f"{RESULTS}/runs/{{run}}/artifact/model.safetensors",
        f"{RESULTS}/runs/{{run}}/artifact/scheme.json",
        f"{RESULTS}/runs/{{run}}/fit.csv",
        f"{RESULTS}/runs/{{run}}/stages.csv",
        f"{RESULTS}/runs/{{run}}/layers.csv",
        f"{RESULTS}/runs/{{run}}/ranges.csv",
        f"{RESULTS}/runs/{{run}}/run.json",
    log:
        f"{RESULTS}/logs/calibrate-{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/calibrate-{{run}}.tsv"
    # The longest jobs first: they decide when everything is done.
    priority: 10
    retries: 1
    threads: CFG.threads
    resources:
        mem_mb=memory_of("calibrate"),
        gpu=GPUS,
    params:
        code=job_code("benchmark.jobs.calibrate"),
        family=FAMILY_CODE,
        method=lambda wildcards: method_code(
            CFG.entries[CFG.run(wildcards.run).method].target
        ),
        run=lambda wildcards: CFG.run_digest(CFG.run(wildcards.run)),
        expected_layers=values(CFG.expected_layers),
    shell:
        f"{JOB} calibrate --config {CONFIG_WORD} --run {{wildcards.run}} > {{log}} 2>&1"


rule sensitivity:
    """Each layer quantized alone."""
    input:
        data=[str(path) for path in CALIBRATION],
        model=MODEL_FILES,
    output:
        str(paths.sensitivity_file(CFG)),
    log:
        f"{RESULTS}/logs/sensitivity.log",
    benchmark:
        f"{RESULTS}/benchmarks/sensitivity.tsv"
    retries: 1
    threads: CFG.threads
    resources:
        mem_mb=memory_of("sensitivity"),
        gpu=GPUS,
    params:
        code=job_code("benchmark.jobs.calibrate", "baselines.minmax"),
        family=FAMILY_CODE,
        scheme=CFG.sensitivity,
        configuration=values(MODEL_KEYS, CFG.batch_size),
    shell:
        f"{JOB} sensitivity --config {CONFIG_WORD} > {{log}} 2>&1"


rule infer:
    """The test set through a saved artifact."""
    input:
        data=[str(path) for path in TEST],
        artifact=f"{RESULTS}/runs/{{run}}/artifact/model.safetensors",
        scheme=f"{RESULTS}/runs/{{run}}/artifact/scheme.json",
    output:
        images("{run}"),
    log:
        f"{RESULTS}/logs/infer-{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/infer-{{run}}.tsv"
    retries: 1
    threads: CFG.threads
    resources:
        mem_mb=memory_of("infer"),
        gpu=GPUS,
    params:
        code=job_code("benchmark.jobs.infer"),
        family=FAMILY_CODE,
        configuration=INFERENCE_KEYS,
    shell:
        f"{JOB} infer --config {CONFIG_WORD} --run {{wildcards.run}} > {{log}} 2>&1"
