"""The benchmark as a DAG: `snakemake --cores 8 all` (config/mini.yaml), or `--config file=config/x.yaml`."""

from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/quantize.smk"
include: "workflow/rules/report.smk"


# Seconds each: on a cluster they stay where Snakemake runs (where a download is possible, too).
localrules:
    all,
    data,
    metric_weights,
    tables,
    figures,


rule all:
    default_target: True
    # Not only the last products: a file that vanished on the way is made again, too.
    input:
        TABLES,
        FIGURES,
        rules.data.output,
        rules.metric_weights.output,
        rules.reference.output,
        expand(rules.calibrate.output, run=RUNS),
        expand(rules.infer.output, run=RUNS),
        [f"{RESULTS}/runs/{run}/scores.csv" for run in [FP32, BICUBIC, *RUNS]],


onstart:
    recovery.note_holder()
    recovery.remove_leftovers(CFG.results)


onerror:
    recovery.explain_failure(CFG.results)


onsuccess:
    recovery.remove_leftovers(CFG.results)
    print(
        f"tables:  {RESULTS}/tables/\nfigures: {RESULTS}/figures/\nruns:    {RESULTS}/runs/"
    )
