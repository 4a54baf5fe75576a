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
    input:
        TABLES,
        FIGURES,


onstart:
    recovery.note_holder()
    recovery.remove_leftovers(CFG.results)


onsuccess:
    recovery.remove_leftovers(CFG.results)
    print(
        f"tables:  {RESULTS}/tables/\nfigures: {RESULTS}/figures/\nruns:    {RESULTS}/runs/"
    )
