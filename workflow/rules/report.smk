# One scoring process per bit width: building the metrics costs more than scoring a run with them.
# `update` leaves earlier scores in place: each has a digest of what it was computed from, and the
# job computes only those that are missing or of another digest (benchmark/jobs/score.py).
METRIC_CODE = [f"{name} {metric_code(name)}" for name in CFG.metrics]
SCORE_GPUS = 0
if ON_GPU:
    METRIC_CODE.append(f"on {CFG.device}")
    SCORE_GPUS = GPUS
SCORE_GROUPS = {"W32A32": [FP32, BICUBIC]}
for run in CFG.runs:
    SCORE_GROUPS.setdefault(run.scheme, []).append(run.run_id)

for scheme, members in SCORE_GROUPS.items():

    rule:
        name:
            f"score_{scheme}"
        input:
            metrics=f"{RESULTS}/metrics.json",
            data=[str(path) for path in TEST],
            images=[path for member in members for path in images(member)],
            reference=images(FP32),
        output:
            update([path for member in members for path in scores(member)]),
        log:
            f"{RESULTS}/logs/score-{scheme}.log",
        benchmark:
            f"{RESULTS}/benchmarks/score-{scheme}.tsv"
        retries: 1
        threads: CFG.threads
        resources:
            mem_mb=memory_of("score"),
            gpu=SCORE_GPUS,
        params:
            code=job_code("benchmark.jobs.score"),
            metrics=METRIC_CODE,
            resize=CFG.resize_mismatch,
            runs=" ".join(members),
        shell:
            f"{JOB} score --config {CONFIG_WORD} --run {{params.runs}} > {{log}} 2>&1"


rule score_external:
    """Outputs made elsewhere, over their whole dataset."""
    input:
        metrics=f"{RESULTS}/metrics.json",
        data=[str(path) for path in TEST],
        images=lambda wildcards: sorted(
            str(p)
            for e in CFG.external_outputs
            if e.name == wildcards.external
            for p in images_in(e.folder)
        ),
    output:
        update([f"{RESULTS}/scores/{{external}}/{name}.csv" for name in CFG.metrics]),
    log:
        f"{RESULTS}/logs/score-{{external}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/score-{{external}}.tsv"
    wildcard_constraints:
        external="|".join(map(re.escape, EXTERNAL)) or "(?!)",
    retries: 1
    threads: CFG.threads
    resources:
        mem_mb=memory_of("score"),
        gpu=SCORE_GPUS,
    params:
        code=job_code("benchmark.jobs.score"),
        metrics=METRIC_CODE,
        resize=CFG.resize_mismatch,
    shell:
        f"{JOB} score --config {CONFIG_WORD} --run {{wildcards.external}} > {{log}} 2>&1"


rule tables:
    input:
        SCORES,
        [f"{RESULTS}/runs/{run}/run.json" for run in RUNS],
    output:
        TABLES,
    log:
        f"{RESULTS}/logs/tables.log",
    benchmark:
        f"{RESULTS}/benchmarks/tables.tsv"
    retries: 1
    resources:
        mem_mb=memory_of("tables"),
    params:
        code=job_code("report.tables"),
        config=CFG.digest,
        titles=[
            CFG.entries[name].title
            for name in dict.fromkeys(run.method for run in CFG.runs)
        ],
        metrics=[str(METRICS[name].presentation()) for name in CFG.metrics],
    shell:
        f"{JOB} tables --config {CONFIG_WORD} > {{log}} 2>&1"


rule figures:
    input:
        data=[str(path) for path in TEST],
        images=[path for run in [FP32, *RUNS] for path in images(run)],
        fits=[f"{RESULTS}/runs/{run}/fit.csv" for run in RUNS],
        ranges=[f"{RESULTS}/runs/{run}/ranges.csv" for run in RUNS],
        scores=[path for run in RUNS for path in scores(run)],
        sensitivity=SENSITIVITY,
    output:
        FIGURES,
    log:
        f"{RESULTS}/logs/figures.log",
    benchmark:
        f"{RESULTS}/benchmarks/figures.tsv"
    retries: 1
    resources:
        mem_mb=memory_of("figures"),
    params:
        code=job_code("report.figures"),
        config=CFG.digest,
        metrics=[METRICS[m].title for m in CFG.metrics if METRICS[m].kind == "FP"],
    shell:
        f"{JOB} figures --config {CONFIG_WORD} > {{log}} 2>&1"
