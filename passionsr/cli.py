"""`passionsr`: the pieces of the benchmark from a shell.

A command calls the library and prints what that returns; it checks and computes nothing itself.
The library is imported inside the commands: torch takes seconds to import, and `--help`,
`--version` and shell completion need none of it.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
import typer.core
import typer.main
from typer import Argument, Option

from passionsr import __version__
from passionsr.cli_options import MODEL, InferenceArguments, QuantizeArguments
from passionsr.utils.command_line import (
    SeveralValues,
    end_quietly,
    flush_output,
    number,
    takes_options,
)
from passionsr.utils.files import UserError
from passionsr.utils.outputs import outside_error
from passionsr.utils.own_code import check_folder

USAGE_ERROR = 2
LARGEST_COUNT = 10**9  # more than any plan holds
RESULTS, CONFIG = Path("results/mini"), Path("config/mini.yaml")
EXPECTED, TIMES = Path("config/expected.tsv"), Path("config/job_times.tsv")
REFERENCE_HEAD = """# Command line

Made by `python tools/make_cli_reference.py` from `passionsr/cli.py`; the same texts as `--help`.
"""

app = typer.Typer(
    name="passionsr",
    help="Post-training quantization of one-step diffusion super-resolution.",
    epilog="Exit status: 0 done; 1 `check-results` found a number outside its band, or a bug "
    "(with a traceback); 2 the command line or its input cannot be used (one line, `error: ...`); "
    "130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain text, so that help costs no import of rich
    pretty_exceptions_enable=False,
)


def guarded(action: Callable[[], int | None]) -> int:
    """Run `action`; an error of the user's becomes one line on stderr and exit status 2."""
    try:
        return action() or 0
    except UserError as err:
        message = str(err)
    except typer.TyperException as err:
        message = err.format_message()
        context = getattr(err, "ctx", None)
        if context is not None:
            message += f" (see `{context.command_path} --help`)"
    except OSError as err:
        found = outside_error(err)
        if found is None:
            raise
        message = found
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return USAGE_ERROR


def _print_version(asked: bool) -> None:
    if asked:
        print(f"passionsr {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        Option("--version", callback=_print_version, is_eager=True, help="print the version"),
    ] = False,
) -> None:
    """The options that stand before a command; the help text is that of `app`."""
    check_folder(Path.cwd())


@app.command()
@takes_options
def upscale(
    input: Annotated[Path, Argument(help="8-bit RGB image", show_default=False)],
    output: Annotated[Path, Argument(help="PNG to write", show_default=False)],
    options: InferenceArguments,
    model: Annotated[Path, Option(help="folder of a float or quantized model")] = MODEL,
    posterior: Annotated[
        Literal["mean", "sample"],
        Option(help="of the VAE encoder's distribution; OSEDiff samples"),
    ] = "mean",
    prompt: Annotated[
        str | None,
        Option(
            help="tags of the image, for a model imported with --entry osediff "
            "(its tagger is not part of this project)"
        ),
    ] = None,
) -> None:
    """Super-resolve one image with a float or quantized model."""
    from passionsr.benchmark.standalone import upscale_image

    upscale_image(input, output, model, dataclasses.asdict(options), posterior, prompt)
    print(output)


@app.command()
def import_osediff(
    output: Annotated[Path, Argument(help="model folder to make, such as models/paper")],
    checkpoint: Annotated[Path, Option(help="osediff.pkl")],
    sha256: Annotated[str | None, Option(help="expected hash of the checkpoint")] = None,
    base: Annotated[
        str | None,
        Option(
            help="diffusers folder, or hub id; default: the pinned repository and its mirrors",
        ),
    ] = None,
    revision: Annotated[
        str | None, Option(help="commit of a hub id that is not a pinned one")
    ] = None,
    context: Annotated[
        Path | None,
        Option(
            help="embedding of the empty prompt (.pt or .safetensors); "
            "default: from the text encoder"
        ),
    ] = None,
    entry: Annotated[
        Literal["passionsr-fp", "osediff"],
        Option(help="osediff keeps the text encoder for prompts"),
    ] = "passionsr-fp",
) -> None:
    """Make a model folder from Stable Diffusion 2.1-base and OSEDiff's checkpoint."""
    from passionsr.models.osediff.importer import import_osediff as make_folder

    card = make_folder(
        output,
        checkpoint,
        base,
        revision=revision,
        sha256=sha256,
        context=context,
        entry=entry,
    )
    print(f"{output}: LoRA merged into {card['lora_layers']}, context from {card['context']}")


@app.command()
@takes_options
def quantize(
    output: Annotated[Path, Argument(help="artifact folder to write")],
    options: QuantizeArguments,
) -> None:
    """Quantize a float model on a folder of LR images."""
    from passionsr.benchmark.standalone import find_method, quantize_on_folder

    report = quantize_on_folder(
        options.model,
        options.calibration,
        output,
        method=find_method(options.method, options.methods),
        scheme=options.scheme,
        scope=options.scope,
        seed=options.seed,
    )
    for row in report:
        print(f"{row.name:60s} {row.kind:10s} W{row.weight_bits or '-'}A{row.act_bits or '-'}")
    print(output)


@app.command()
def score(
    sr: Annotated[Path, Argument(help="folder of outputs, PNG")],
    hr: Annotated[Path, Argument(help="folder of HR images of the same names and sizes")],
    output: Annotated[Path, Argument(help="CSV to write, one row per number")],
    metrics: Annotated[
        str, Option(help="names, separated by commas or spaces")
    ] = "psnr,ssim,lpips,dists,niqe",
) -> None:
    """Score a folder of outputs against a folder of HR images of the same names."""
    from passionsr.benchmark.standalone import score_folder
    from passionsr.metrics.registry import metric_names

    count, means = score_folder(sr, hr, output, metric_names(metrics))
    print(f"images: {count}")
    for metric, mean in means.items():
        print(f"{metric}: {mean}")


@app.command()
def fetch(
    source: Annotated[str, Argument(help="a name under `sources:` of config/datasets.yaml")],
) -> None:
    """Download a source of datasets into data/."""
    from passionsr.data.dataset_registry import fetch_dataset_source

    print(fetch_dataset_source(source))


@app.command()
def check(config: Annotated[Path, Argument(help="configuration, YAML")]) -> None:
    """Check a configuration."""
    from passionsr.benchmark.config_check import report

    print(report(config))


@app.command(cls=SeveralValues)
def bench(
    results: Annotated[Path, Argument(help="results folder")] = RESULTS,
    step: Annotated[bool, Option("--step", help="also time a training step against FP32")] = False,
    tiles: Annotated[
        bool,
        Option(
            "--tiles",
            help="instead: peak memory of inference in tiles, by size, and what tiles change",
        ),
    ] = False,
    sizes: Annotated[
        list[int],
        number("px; sides of the outputs that --tiles measures", 1, 16384, metavar="<int>..."),
    ] = [512, 1024, 2048],  # noqa: B006
    model: Annotated[Path, Option(help="folder of the model for --step and --tiles")] = MODEL,
    threads: Annotated[int, number("CPU threads for --step and --tiles", 1, 1024)] = 1,
) -> None:
    """Show where the last run's time went."""
    if tiles:
        from passionsr.benchmark.tiled_memory import WHOLE_UP_TO, difference_report, tile_report

        print(tile_report(model, sizes, threads))
        print(f"\n{difference_report(model, WHOLE_UP_TO, threads)}")
        return
    from passionsr.benchmark.timing import report

    print(report(results))
    if step:
        from passionsr.benchmark.training_step import step_ratios
        from passionsr.models.folder import load_model

        print(f"\nOne training step of the UNet, {threads} thread(s):\n")
        print(step_ratios(load_model(model), threads=threads))


@app.command()
def explain(
    table: Annotated[Path, Argument(help="results/<name>/tables/<table>.csv", show_default=False)],
    row: Annotated[str, Option(help="such as passionsr-W6A6, fp32 or bicubic")],
    col: Annotated[str, Option(help="a metric, such as psnr")],
    dataset: Annotated[str | None, Option(help="whose row, where there are several")] = None,
    config: Annotated[Path | None, Option(help="default: config/<name>.yaml")] = None,
) -> None:
    """Show where a table cell comes from, and check its mean."""
    from passionsr.report.explain import explain_table

    print(explain_table(table, row, col, config, dataset))


@app.command()
def compare(
    row: Annotated[str, Argument(help="such as passionsr-W6A6, fp32 or bicubic")],
    other: Annotated[str, Argument(help="the row that is subtracted")],
    config: Annotated[Path, Option(help="configuration of finished results")] = CONFIG,
    scope: Annotated[Literal["U", "UV"], Option(help="what is quantized")] = "UV",
    dataset: Annotated[str | None, Option(help="which of several datasets")] = None,
) -> None:
    """Compare two rows of finished results in every metric: paired, with intervals."""
    from passionsr.benchmark.config import load_config
    from passionsr.report.compare import compare as compare_rows

    print(compare_rows(load_config(config), row, other, scope, dataset))


@app.command()
def plan(
    config: Annotated[Path, Argument(help="configuration, YAML")],
    gpus: Annotated[
        int, number("GPUs; without any, processes that run at the same time", 1, LARGEST_COUNT)
    ] = 1,
    times: Annotated[Path, Option(help="table of measured times")] = TIMES,
    test_images: Annotated[
        int | None,
        number(
            "their number, where the data is not there and no dataset says it", 1, LARGEST_COUNT
        ),
    ] = None,
    record: Annotated[
        str | None,
        Option(
            metavar="SOURCE",
            help="instead: write the finished run's times to --times; "
            "SOURCE names machine and date",
        ),
    ] = None,
) -> None:
    """Estimate the cost of a configuration: jobs, hours, disk and critical path."""
    from passionsr.benchmark import plan as planning
    from passionsr.benchmark.config import load_config

    loaded = load_config(config)
    if record is not None:
        print(f"{times}: {planning.record(loaded, times, record)} rows of {loaded.model}")
    else:
        print(planning.plan(loaded, gpus, times, test_images))


Results = Annotated[Path, Argument(help="results folder, or its page in docs/")]
Expected = Annotated[Path, Option(help="table of expected bands")]


@app.command()
def check_results(results: Results, expected: Expected = EXPECTED) -> int:
    """Compare a finished run's tables with the expected bands."""
    from passionsr.report.bands import measured, violations

    lines = violations(results, expected)
    for line in lines:
        print(line)
    count = len(measured(results)[1])
    print(f"{results}: {count} numbers, {len(lines)} violations of {expected}")
    return 1 if lines else 0


@app.command()
def expect(results: Results, expected: Expected = EXPECTED) -> None:
    """Make the expected bands from a finished run."""
    from passionsr.report.bands import write_bands

    print(f"{expected}: {write_bands(results, expected)} bands")


@app.command()
def readme(
    readme: Annotated[Path, Option(help="page to update")] = Path("README.md"),
    results: Annotated[Path, Option(help="results of config/mini.yaml")] = RESULTS,
    grid: Annotated[Path, Option(help="results of config/mini-full.yaml")] = Path(
        "results/mini-full"
    ),
) -> None:
    """Copy the generated tables and picture into README.md and docs/."""
    from passionsr.report.pages import update

    update(readme, results, grid)


def _command() -> typer.core.TyperGroup:
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    for one in command.commands.values():
        one.short_help = one.help  # otherwise cut off in the list of commands
    return command


def cli_reference() -> str:
    """All commands, arguments and options as one Markdown page: docs/reference/cli.md."""
    from typer.cli import get_docs_for_click

    command = _command()
    context = typer.Context(command, **command.context_settings)
    text = get_docs_for_click(obj=command, ctx=context, name="passionsr")
    return text.replace("# `passionsr`\n", REFERENCE_HEAD, 1).rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status; `argv` without the program's name."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = sys.argv[1:] if argv is None else list(argv)

    def run() -> int | None:
        status = _command().main(args=args, prog_name="passionsr", standalone_mode=False)
        flush_output()
        return status

    return end_quietly(lambda: guarded(run))


if __name__ == "__main__":
    raise SystemExit(main())
