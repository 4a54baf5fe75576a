"""Figures of one benchmark: crops side by side, loss curves, ranges around LET. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.patches import Rectangle

from passionsr.benchmark.config import FP32, Config, Run
from passionsr.benchmark.paths import (
    image_folder,
    pairs_to_test,
    run_folder,
    sensitivity_file,
)
from passionsr.benchmark.records import read_record
from passionsr.data.datasets import ImagePair
from passionsr.data.images import read_uint8
from passionsr.metrics.registry import METRICS
from passionsr.report.figure_list import crops_file, crops_runs, drawn_runs, one_seed_each
from passionsr.report.scores import read_scores
from passionsr.utils.files import atomic_path, write_text

ZOOM = 64
SHOWN = 3


def save(figure: plt.Figure, path: Path) -> None:
    """Write a PNG atomically, without a creation date, so that equal figures have equal bytes."""
    with atomic_path(path) as tmp:
        figure.savefig(tmp, dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def drawn(text: str) -> str:
    """Text for matplotlib, which reads formulas between dollars and hides a label after _."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def zoom_box(hr: np.ndarray, size: int = ZOOM) -> tuple[int, int]:
    """(y, x) of the box with the strongest gradients, on a grid of half boxes."""
    grey = hr.astype(np.float32).mean(2)
    energy = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    corners = [
        (y, x)
        for y in range(0, max(1, hr.shape[0] - size), size // 2)
        for x in range(0, max(1, hr.shape[1] - size), size // 2)
    ]
    return max(corners, key=lambda c: energy[c[0] : c[0] + size, c[1] : c[1] + size].mean())


def shown_pairs(config: Config) -> list[ImagePair]:
    """A few images of every dataset, spread over it."""
    shown: list[ImagePair] = []
    pairs = pairs_to_test(config)
    for dataset in dict.fromkeys(pair.dataset for pair in pairs):
        own = [pair for pair in pairs if pair.dataset == dataset]
        shown += own[2::SHOWN][:SHOWN] or own[:SHOWN]
    return shown


def crops_figure(config: Config, pairs: Sequence[ImagePair], runs: Sequence[Run]) -> plt.Figure:
    """Per image two rows, whole and zoomed: HR | LR | FP32 | each run.

    Images have their dataset before their name where there are several; runs say their seed where
    it is not the same.
    """
    titles = [drawn(config.entries[run.method].title) for run in runs]
    if len({run.seed for run in runs}) > 1:
        titles = [f"{t}, seed {run.seed}" for t, run in zip(titles, runs, strict=True)]
    columns = ["HR", "LR", "FP32", *titles]
    several = len({pair.dataset for pair in pairs}) > 1
    figure, axes = plt.subplots(
        2 * len(pairs), len(columns), figsize=(2.0 * len(columns), 4.0 * len(pairs)), squeeze=False
    )
    for index, pair in enumerate(pairs):
        hr, lr = read_uint8(pair.hr), read_uint8(pair.lr)
        scale = hr.shape[0] // lr.shape[0]
        images = [hr, lr.repeat(scale, 0).repeat(scale, 1)]
        images += [
            read_uint8(image_folder(config, r) / f"{pair.name}.png")
            for r in (FP32, *(run.run_id for run in runs))
        ]
        y, x = zoom_box(hr)
        for column, image in enumerate(images):
            whole, zoom = axes[2 * index][column], axes[2 * index + 1][column]
            whole.imshow(image)
            whole.add_patch(Rectangle((x, y), ZOOM, ZOOM, fill=False, edgecolor="yellow", lw=1.2))
            zoom.imshow(image[y : y + ZOOM, x : x + ZOOM], interpolation="nearest")
            for axis in (whole, zoom):
                axis.set_xticks([])
                axis.set_yticks([])
            for spine in zoom.spines.values():
                spine.set_edgecolor("yellow")
            if index == 0:
                whole.set_title(columns[column], fontsize=9)
        axes[2 * index][0].set_ylabel(drawn(pair.name if several else pair.image), fontsize=8)
    figure.subplots_adjust(wspace=0.03, hspace=0.03)
    return figure


def loss_curves(config: Config, runs: Sequence[Run]) -> pd.DataFrame:
    """Calibration loss per step: run, part (sub-model), phase, step, loss; empty if nothing trains.

    Where a phase trains unit by unit, a loss is the median over its units, each relative to its
    first step.
    """
    columns = ["run", "part", "phase", "step", "loss"]
    frames = []
    for run in runs:
        frame = pd.read_csv(run_folder(config, run.run_id) / "fit.csv")
        if len(frame):
            frames.append(frame.assign(run=f"{config.entries[run.method].title} {run.scheme}"))
    if not frames:
        return pd.DataFrame(columns=columns)
    data = pd.concat(frames, ignore_index=True)
    data["part"] = data.stage.str.split(".").str[0]
    data["phase"] = data.stage.str.split(".").str[1]
    units = data.groupby(["run", "part", "phase"]).stage.transform("nunique") > 1
    first = data.groupby(["run", "stage"]).loss.transform("first").clip(lower=1e-12)
    data["loss"] = data.loss.where(~units, data.loss / first)
    return data.groupby(columns[:-1], sort=False).loss.median().reset_index()


def loss_figure(data: pd.DataFrame) -> plt.Figure:
    """`loss_curves` drawn: one panel per sub-model and phase, one line per run."""
    parts, phases = list(data.part.unique()), list(data.phase.unique())
    figure, axes = plt.subplots(
        len(parts), len(phases), figsize=(4.2 * len(phases), 2.8 * len(parts)), squeeze=False
    )
    colours = dict(
        zip(data.run.unique(), sns.color_palette("husl", data.run.nunique()), strict=True)
    )
    for row, part in enumerate(parts):
        for column, phase in enumerate(phases):
            axis = axes[row][column]
            for name, line in data[(data.part == part) & (data.phase == phase)].groupby("run"):
                smooth = line.loss.rolling(5, min_periods=1).mean()
                axis.plot(line.step, smooth, label=drawn(name), color=colours[name], lw=1.2)
            axis.set_title(f"{part}: {phase}", fontsize=9)
            if axis.lines:
                axis.set_yscale("log")
            axis.set_xlabel("step")
            axis.set_ylabel("loss")
    handles = [plt.Line2D([], [], color=c, label=drawn(n)) for n, c in colours.items()]
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
    figure.tight_layout()
    return figure


def ranges_figure(config: Config, run: Run, shown: int = 4) -> plt.Figure | None:
    """Input range per channel before and after LET, for the layers whose ranges spread widest."""
    data = pd.read_csv(run_folder(config, run.run_id) / "ranges.csv")
    if data.empty:
        return None
    data["width"] = data.upper - data.lower
    sizes = data.groupby("layer").width.agg(["max", "median", "size"])
    spread = (sizes["max"] / sizes["median"].clip(lower=1e-6))[sizes["size"] >= 16]
    layers = spread.sort_values(ascending=False).index[:shown]
    if not len(layers):
        layers = sizes.index[:shown]
    figure, axes = plt.subplots(len(layers), 2, figsize=(10, 2.3 * len(layers)), squeeze=False)
    for row, layer in enumerate(layers):
        part = data[data.layer == layer]
        for column, (low, high, title) in enumerate(
            (("lower", "upper", "x"), ("let_lower", "let_upper", "(x - o) / s"))
        ):
            axis = axes[row][column]
            axis.vlines(part.channel, part[low], part[high], lw=1.5)
            axis.axhline(0, color="0.6", lw=0.6)
            axis.set_title(f"{layer}: {title}", fontsize=8)
            axis.set_xlabel("input channel", fontsize=8)
    figure.suptitle(
        f"Activation range per channel before and after LET ({run.run_id})", fontsize=10
    )
    figure.tight_layout()
    return figure


def sweep_data(config: Config, runs: Sequence[Run]) -> pd.DataFrame:
    """Of each run, dataset and metric of fidelity to FP32 the mean over the images that have it.

    Columns dataset ("" for the embedded test set), method (title), scheme, size (of the packed
    model, MiB), metric and value; a run without any such score has no row.
    """
    fidelity = [metric.name for metric in METRICS.values() if metric.kind == "FP"]
    named = [dataset.name for dataset in config.datasets]
    rows = []
    for run in runs:
        scores = read_scores(config, run.run_id)
        size = read_record(config, run.run_id).model_bytes / 2**20
        title = config.entries[run.method].title
        for dataset in named or [""]:
            own = scores[scores.dataset == dataset] if dataset else scores
            for metric in fidelity:
                value = own[own.metric == metric].value.mean()
                rows.append((dataset, title, run.scheme, size, metric, value))
    columns = ["dataset", "method", "scheme", "size", "metric", "value"]
    return pd.DataFrame(rows, columns=columns).dropna()


def sweep_figure(data: pd.DataFrame) -> plt.Figure:
    """`sweep_data` drawn: fidelity to FP32 (mean over seeds) against the size of the packed model.

    One row of panels per dataset, one panel per metric, one line per method through its bit widths.
    """
    datasets, metrics = (list(dict.fromkeys(data[key])) for key in ("dataset", "metric"))
    figure, axes = plt.subplots(
        len(datasets), len(metrics), figsize=(11, 4 * len(datasets)), squeeze=False
    )
    methods = list(dict.fromkeys(data.method))
    colours = dict(zip(methods, sns.color_palette("husl", len(methods)), strict=True))
    for row, dataset in enumerate(datasets):
        for axis, metric in zip(axes[row], metrics, strict=True):
            chosen = data[(data.dataset == dataset) & (data.metric == metric)]
            for method, line in chosen.groupby("method", sort=False):
                line = line.groupby("scheme").mean(numeric_only=True).sort_values("size")
                label, colour = drawn(method), colours[method]
                axis.plot(line["size"], line["value"], "o-", ms=4, label=label, color=colour)
            for scheme, point in chosen.groupby("scheme")["size"].mean().items():
                axis.axvline(point, color="0.85", lw=0.8, zorder=0)
                axis.annotate(
                    scheme, (point, 1), xycoords=("data", "axes fraction"), ha="center", fontsize=7
                )
            axis.set_xlabel("packed model, MiB")
            axis.set_ylabel(METRICS[metric].title)
            if dataset:
                axis.set_title(dataset, fontsize=9, pad=14)  # above the names of the bit widths
    axes[0][-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))  # over no line
    figure.tight_layout()
    return figure


def sensitivity_figure(data: pd.DataFrame, scheme: str) -> plt.Figure:
    """PSNR to FP32 with one layer quantized, layers in the order of the model, coloured by part."""
    data = data.assign(part=data.layer.str.split(".").str[:2].str.join("."))
    figure, axis = plt.subplots(figsize=(12, 4))
    parts = list(dict.fromkeys(data.part))
    for part, colour in zip(parts, sns.color_palette("husl", len(parts)), strict=True):
        chosen = data[data.part == part]
        axis.bar(chosen.index, chosen.psnr_fp, color=colour, width=1.0, label=part)
    for index in data.psnr_fp.nsmallest(5).index:
        axis.annotate(
            data.layer[index], (index, data.psnr_fp[index]), rotation=60, fontsize=6, va="bottom"
        )
    axis.set_xlabel("layer")
    axis.set_ylabel("PSNR to FP32 (dB), lower is more sensitive")
    axis.set_title(f"One layer quantized at a time (MinMax, {scheme})", fontsize=10)
    axis.legend(fontsize=6, ncols=4)
    figure.tight_layout()
    return figure


def _empty(message: str) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(5, 1))
    axis.axis("off")
    axis.text(0.5, 0.5, message, ha="center", va="center")
    return figure


def write_figures(config: Config) -> None:
    """Every file of `passionsr.report.figure_list.figure_files`, from the runs named there."""
    sns.set_theme(style="whitegrid", font_scale=0.8)
    folder = config.results / "figures"
    every_seed = drawn_runs(config)
    runs = one_seed_each(every_seed)
    pairs = shown_pairs(config)
    for scheme, chosen in crops_runs(config).items():
        save(crops_figure(config, pairs, chosen), crops_file(config, scheme))
    curves = loss_curves(config, runs)
    write_text(folder / "loss_curves.csv", curves.to_csv(index=False, lineterminator="\n"))
    figure = _empty("no method trains") if curves.empty else loss_figure(curves)
    save(figure, folder / "loss_curves.png")
    with_let = [r for r in runs if config.options(r).get("let", True)]
    ranked = sorted(with_let, key=lambda r: (r.method != "passionsr", r.scheme != "W6A6"))
    ranges = next((f for r in ranked if (f := ranges_figure(config, r)) is not None), None)
    save(ranges or _empty("no run uses LET"), folder / "ranges_let.png")
    sweep = sweep_data(config, every_seed)
    figure = _empty("no score of fidelity to FP32") if sweep.empty else sweep_figure(sweep)
    save(figure, folder / "bits_sweep.png")
    if config.sensitivity:
        rows = pd.read_csv(sensitivity_file(config))
        save(sensitivity_figure(rows, config.sensitivity), folder / "sensitivity.png")
