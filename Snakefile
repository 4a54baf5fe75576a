"""The benchmark as a DAG: `snakemake --cores 8 all` (config/mini.yaml), or `--configfile config/x.yaml`."""

from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/quantize.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/cost.smk"
include: "workflow/rules/proof.smk"


# Seconds each: on a cluster they stay where Snakemake runs (where a download is possible, too).
localrules:
    all,
    fetch,
    data,
    metric_weights,
    tables,
    table3,
    figures,


rule all:
    default_target: True
    # Not only the last products: a file that vanished on the way is made again, too.
    input:
        TABLES,
        TABLE3,
        FIGURES,
        rules.data.output,
        rules.metric_weights.output,
        rules.reference.output,
        expand(rules.calibrate.output, run=RUNS),
        expand(rules.infer.output, run=RUNS),
        SCORES,


# What a killed start left: only products are looked at, because other files in the results folder are somebody's.
if workflow.is_main_process:
    try:
        products = [*rules.all.input, *rules.proof.output, *paths.listed_images(CFG)]
        recovery.look([Path(path) for path in products], sys.argv)
    except UserError as err:
        sys.exit(f"error: {err}")


onstart:
    # A dry run resolves without weights and datasets; a real one says all that is missing, then stops.
    if MISSING and set(workflow.dag_settings.targets) != {"fetch"}:
        raise WorkflowError(missing_report(CONFIG_FILE, MISSING))
    limit_memory()
    # Snakemake 9.27 limits itself to 100 submissions a second, and for that looks at all ready jobs again every second, once
    # more per second for each finished job: half a core after 50 jobs, taken from the calibrations.
    workflow.scheduler.job_rate_limiter = None
    recovery.note_holder()
    recovery.remove_leftovers(CFG.results)


onerror:
    recovery.show_logs(
        [Path(name) for job in workflow.scheduler.failed for name in job.log]
    )
    recovery.explain_failure(CFG.results)


onsuccess:
    recovery.remove_leftovers(CFG.results)
    print(
        f"tables:  {RESULTS}/tables/\nfigures: {RESULTS}/figures/\nruns:    {RESULTS}/runs/"
    )
