"""The benchmark as a DAG: `snakemake --cores 8 all` (config/mini.yaml), or `--config file=config/x.yaml`."""

from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/quantize.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/cost.smk"
include: "workflow/rules/proof.smk"
include: "workflow/rules/products.smk"


localrules:
    all,
    fetch,


rule all:
    default_target: True
    input:
        TABLES,
        TABLE3,
        FIGURES,


onstart:
    # A dry run resolves without weights and datasets; a real one says all that is missing, then stops.
    if MISSING and set(workflow.dag_settings.targets) != {"fetch"}:
        raise WorkflowError(lib.missing_report(CONFIG_FILE, MISSING))


onsuccess:
    print(
        f"tables:  {RESULTS}/tables/\nfigures: {RESULTS}/figures/\nruns:    {RESULTS}/runs/"
    )
