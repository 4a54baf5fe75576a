"""`passionsr`: the pieces of the benchmark from a shell. Errors are one line, exit status 2."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from passionsr.utils.files import UserError


def guarded(action: Callable[[], int | None]) -> int:
    """Run `action`; UserError becomes one line on stderr and status 2."""
    try:
        return action() or 0
    except UserError as err:
        print(f"error: {' '.join(str(err).split())}", file=sys.stderr)
        return 2


def _upscale(args: argparse.Namespace) -> None:
    from passionsr.data.images import read_uint8, write_uint8

    lr = read_uint8(args.input)  # before the slow imports: a bad path should answer at once
    from passionsr.inference.super_resolve import InferenceOptions, super_resolve
    from passionsr.models.folder import load_model
    from passionsr.quantization.artifact import SCHEME, load_quantized

    names = ("resize", "process_size", "latent_tile", "latent_overlap", "encoder_tile", "decoder_tile",
             "tile_norm", "colour_fix")  # fmt: skip
    options = InferenceOptions(**{name: getattr(args, name) for name in names})

    model = (load_quantized if (args.model / SCHEME).exists() else load_model)(args.model)
    model.posterior = args.posterior
    if args.prompt is not None:
        from passionsr.models.osediff.sd21 import embed_prompt

        model.context = embed_prompt(args.model, args.prompt)
    write_uint8(args.output, super_resolve(model, lr, options))
    print(args.output)


def _import_osediff(args: argparse.Namespace) -> None:
    from passionsr.models.osediff.importer import import_osediff

    card = import_osediff(
        args.output,
        args.checkpoint,
        args.base,
        revision=args.revision,
        sha256=args.sha256,
        context=args.context,
        entry=args.entry,
    )
    print(f"{args.output}: LoRA merged into {card['lora_layers']}, context from {card['context']}")


def _quantize(args: argparse.Namespace) -> None:
    from passionsr.benchmark.config import load_methods, parse_scheme
    from passionsr.data.images import read_uint8, upscale
    from passionsr.models.family import family_of_folder

    scheme = parse_scheme(args.scheme)
    methods = load_methods(args.methods)
    if args.method not in methods:
        raise UserError(f"method {args.method!r} is unknown; known: {', '.join(methods)}")
    scale = family_of_folder(args.model).scale
    files = sorted(args.calibration.glob("*.png"))
    if not files:
        raise UserError(
            f"{args.calibration}: no PNG images for calibration (LR images, 1/{scale} size)"
        )
    arrays = [read_uint8(f) for f in files]
    from passionsr.calibration.batches import make_batches
    from passionsr.data.images import to_tensor
    from passionsr.methods.base import load_method, quantize_model
    from passionsr.models.folder import load_model
    from passionsr.quantization.artifact import save_quantized

    entry = methods[args.method]
    method = load_method(entry.target, entry.options)
    teacher = load_model(args.model)
    batches = make_batches(teacher, [to_tensor(upscale(a, scale)) for a in arrays], 4, args.seed)
    model, _, report = quantize_model(method, teacher, scheme, args.scope, batches, args.seed)
    info = {"method": args.method, "scheme": str(scheme), "scope": args.scope, "seed": args.seed}
    save_quantized(model, args.output, info)
    for row in report:
        print(f"{row.name:60s} {row.kind:10s} W{row.weight_bits or '-'}A{row.act_bits or '-'}")
    print(args.output)


def _score(args: argparse.Namespace) -> None:
    from passionsr.data.datasets import ImagePair
    from passionsr.data.images import read_uint8
    from passionsr.metrics.registry import check_metrics

    names = check_metrics(args.metrics.split(","))
    outputs = sorted(args.sr.glob("*.png"))
    if not outputs:
        raise UserError(f"{args.sr}: no PNG images")
    pairs = [ImagePair(p.stem, p, args.hr / p.name) for p in outputs]
    missing = [str(p.hr) for p in pairs if not p.hr.is_file()]
    if missing:
        raise UserError(
            f"no HR image for {len(missing)} of {len(pairs)} outputs, first: {missing[0]}"
        )
    loaded = [(p.name, read_uint8(p.lr), read_uint8(p.hr)) for p in pairs]
    for name, sr, hr in loaded:
        if sr.shape != hr.shape:
            raise UserError(
                f"{name}: SR is {sr.shape[1]}x{sr.shape[0]} but HR is {hr.shape[1]}x{hr.shape[0]}; "
                "they must be of one size"
            )
    from passionsr.metrics.suite import MetricSuite
    from passionsr.utils.files import write_csv

    suite = MetricSuite(names)
    rows = []
    for index, (name, sr, hr) in enumerate(loaded, 1):
        scores = suite.score(sr, hr)
        rows += [
            {"image": name, "metric": m, "value": "" if v is None else repr(v)}
            for m, v in scores.items()
        ]
        logging.info("%d/%d %s", index, len(loaded), name)
    write_csv(args.output, rows, ("image", "metric", "value"))
    for metric in names:
        values = [float(r["value"]) for r in rows if r["metric"] == metric and r["value"]]
        print(f"{metric}: {sum(values) / len(values):.4f}" if values else f"{metric}: n/a")


def _check(args: argparse.Namespace) -> None:
    from passionsr.benchmark.config import load_config

    config = load_config(args.config)
    print(f"{args.config}: {len(config.runs)} runs, results in {config.results}")


def _bench(args: argparse.Namespace) -> None:
    if args.tiles:
        from passionsr.benchmark.tiled_memory import WHOLE_UP_TO, difference_report, tile_report

        print(tile_report(args.model, args.sizes, args.threads))
        print(f"\n{difference_report(args.model, WHOLE_UP_TO, args.threads)}")
        return
    from passionsr.benchmark.timing import report

    print(report(args.results))
    if args.step:
        from passionsr.benchmark.training_step import step_ratios
        from passionsr.models.folder import load_model

        print(f"\nOne training step of the UNet, {args.threads} thread(s):\n")
        print(step_ratios(load_model(args.model), threads=args.threads))


def _fetch(args: argparse.Namespace) -> None:
    from passionsr.data.dataset_registry import load_sources
    from passionsr.data.datasets import DATA, LOCKS
    from passionsr.data.fetch import fetch_source

    sources = load_sources()
    if args.source not in sources:
        raise UserError(f"source {args.source!r} is unknown; known: {', '.join(sources)}")
    print(fetch_source(sources[args.source], DATA, LOCKS))


def _explain(args: argparse.Namespace) -> None:
    from passionsr.benchmark.config import load_config
    from passionsr.report.explain import explain

    # results/<name>/tables/<table>.csv: a configuration has the name of its results.
    name = args.table.resolve().parent.parent.name
    config = load_config(args.config or Path("config") / f"{name}.yaml")
    print(explain(config, args.table, args.row, args.col))


def _plan(args: argparse.Namespace) -> None:
    from passionsr.benchmark.config import load_config
    from passionsr.benchmark.plan import plan, record

    config = load_config(args.config)
    if args.record:
        print(f"{args.times}: {record(config, args.times, args.record)} rows of {config.model}")
    else:
        print(plan(config, args.gpus, args.times, args.test_images))


def _readme(args: argparse.Namespace) -> None:
    from passionsr.report.pages import update

    update(args.readme, args.results, args.grid)


def _check_results(args: argparse.Namespace) -> int:
    from passionsr.report.bands import measured, violations

    lines = violations(args.results, args.expected)
    for line in lines:
        print(line)
    count = len(measured(args.results)[1])
    print(f"{args.results}: {count} numbers, {len(lines)} violations of {args.expected}")
    return 1 if lines else 0


def _expect(args: argparse.Namespace) -> None:
    from passionsr.report.bands import write_bands

    print(f"{args.expected}: {write_bands(args.results, args.expected)} bands")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="passionsr", description="PTQ of one-step diffusion SR")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, action: Callable, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(action=action)
        return sub

    sub = add("upscale", _upscale, "super-resolve one PNG with a float or quantized model")
    sub.add_argument("input", type=Path)
    sub.add_argument("output", type=Path)
    sub.add_argument(
        "--model", type=Path, default=Path("models/mini"), help="model or artifact folder"
    )

    sub.add_argument(
        "--colour-fix",
        choices=["none", "adain", "wavelet"],
        default="none",
        help="take colours over from the input, as OSEDiff does; the benchmark scores without it",
    )

    sub.add_argument(
        "--posterior",
        choices=["mean", "sample"],
        default="mean",
        help="of the VAE encoder; OSEDiff samples",
    )
    sub.add_argument(
        "--prompt",
        help="tags of the image, for a model imported with --entry osediff (its tagger is not part of this project)",
    )
    sub.add_argument(
        "--resize",
        choices=["pad", "official"],
        default="pad",
        help="sizes the model cannot take: pad and cut off again, or the released scripts' rules",
    )
    sub.add_argument(
        "--process-size", type=int, default=512, help="px; --resize official makes no smaller image"
    )
    sub.add_argument("--latent-tile", type=int, help="side of the UNet's tiles, in latents")
    sub.add_argument("--latent-overlap", type=int, default=32)
    sub.add_argument("--encoder-tile", type=int, help="side of the VAE encoder's tiles, px")
    sub.add_argument("--decoder-tile", type=int, help="side of the VAE decoder's tiles, in latents")
    sub.add_argument(
        "--tile-norm",
        choices=["pooled", "official"],
        default="pooled",
        help="group norms of a tiled VAE: over the whole image, or the released average",
    )

    sub = add(
        "import-osediff",
        _import_osediff,
        "make a model folder from Stable Diffusion 2.1-base and OSEDiff's checkpoint",
    )
    sub.add_argument("output", type=Path, help="model folder to make, such as models/paper")
    sub.add_argument("--checkpoint", type=Path, required=True, help="osediff.pkl")
    sub.add_argument("--sha256", help="expected hash of the checkpoint")
    sub.add_argument(
        "--base", help="diffusers folder, or hub id; default: the pinned repository and its mirrors"
    )
    sub.add_argument("--revision", help="commit of a hub id that is not a pinned one")
    sub.add_argument(
        "--context",
        type=Path,
        help="embedding of the empty prompt (.pt or .safetensors); default: from the text encoder",
    )
    sub.add_argument(
        "--entry",
        choices=["passionsr-fp", "osediff"],
        default="passionsr-fp",
        help="osediff keeps the text encoder for prompts",
    )

    sub = add("quantize", _quantize, "quantize a float model on a folder of LR images")
    sub.add_argument("output", type=Path, help="artifact folder to write")
    sub.add_argument("--model", type=Path, default=Path("models/mini"))
    sub.add_argument("--method", required=True)
    sub.add_argument("--scheme", required=True, help="such as W6A6")
    sub.add_argument("--scope", choices=["U", "UV"], default="UV")
    sub.add_argument(
        "--calibration", type=Path, required=True, help="folder of LR PNGs of one size"
    )
    sub.add_argument("--methods", type=Path, default=Path("config/methods.yaml"))
    sub.add_argument("--seed", type=int, default=0)

    sub = add(
        "score", _score, "score a folder of outputs against a folder of HR images of the same names"
    )
    sub.add_argument("sr", type=Path)
    sub.add_argument("hr", type=Path)
    sub.add_argument("output", type=Path, help="CSV to write, one row per number")
    sub.add_argument("--metrics", default="psnr,ssim,lpips,dists,niqe")

    sub = add("fetch", _fetch, "download a source of datasets (config/datasets.yaml) into data/")
    sub.add_argument("source")

    sub = add("check", _check, "check a configuration")
    sub.add_argument("config", type=Path)

    sub = add("bench", _bench, "where the last run's time went")
    sub.add_argument("results", type=Path, nargs="?", default=Path("results/mini"))
    sub.add_argument("--step", action="store_true", help="also time a training step against FP32")
    sub.add_argument(
        "--tiles",
        action="store_true",
        help="instead: peak memory of inference in tiles, by size, and what tiles change",
    )
    sub.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048], help="px")
    sub.add_argument("--model", type=Path, default=Path("models/mini"))
    sub.add_argument("--threads", type=int, default=1)

    sub = add("explain", _explain, "where a table cell comes from; checks its mean")
    sub.add_argument(
        "table", type=Path, help="results/<name>/tables/table2.csv, ablation, unet_only"
    )
    sub.add_argument("--row", required=True, help="such as passionsr-W6A6, fp32 or bicubic")
    sub.add_argument("--col", required=True, help="a metric, such as psnr")
    sub.add_argument("--config", type=Path, help="default: config/<name>.yaml")

    sub = add("plan", _plan, "jobs, hours, disk and critical path of a configuration")
    sub.add_argument("config", type=Path)
    sub.add_argument("--gpus", type=int, default=1, help="GPUs; without any, processes at a time")
    sub.add_argument("--times", type=Path, default=Path("config/job_times.tsv"))
    sub.add_argument(
        "--test-images", type=int, help="where the data is not there and no dataset says it"
    )
    sub.add_argument(
        "--record",
        metavar="SOURCE",
        help="instead: write the finished run's times to --times; SOURCE names machine and date",
    )

    for name, action, text in (
        (
            "check-results",
            _check_results,
            "compare a finished run's tables with the expected bands",
        ),
        ("expect", _expect, "make the expected bands from a finished run"),
    ):
        sub = add(name, action, text)
        sub.add_argument("results", type=Path, help="results folder, or its page in docs/")
        sub.add_argument("--expected", type=Path, default=Path("config/expected.tsv"))

    sub = add("readme", _readme, "copy the generated tables and picture into README.md and docs/")
    sub.add_argument("--readme", type=Path, default=Path("README.md"))
    sub.add_argument("--results", type=Path, default=Path("results/mini"))
    sub.add_argument("--grid", type=Path, default=Path("results/mini-full"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return guarded(lambda: args.action(args))


if __name__ == "__main__":
    raise SystemExit(main())
