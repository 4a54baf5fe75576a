"""The benchmark as a DAG: `snakemake --cores 8 all` (config/mini.yaml), or `--config file=config/x.yaml`."""

from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/quantize.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/products.smk"


localrules:
    all,


rule all:
    default_target: True
    input:
        TABLES,
        FIGURES,


onsuccess:
    print(
        f"tables:  {RESULTS}/tables/\nfigures: {RESULTS}/figures/\nruns:    {RESULTS}/runs/"
    )
