"""The finished model folder: weights, how they were trained, training curves."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from passionsr.utils.files import atomic_path, write_json, write_text
from train_mini.recipe import STAGES
from train_mini.run import Run

log = logging.getLogger("train_mini")


def publish_curves(work: Path, out: Path) -> None:
    """Copy curves.csv beside the model and draw it, one panel per stage."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import pandas as pd

    data = pd.read_csv(work / "curves.csv")
    write_text(out / "curves.csv", data.to_csv(index=False, lineterminator="\n"))
    stages = list(data.stage.unique())
    figure, axes = plt.subplots(1, len(stages), figsize=(3.2 * len(stages), 2.6), squeeze=False)
    for axis, stage in zip(axes[0], stages, strict=True):
        part = data[data.stage == stage]
        axis.plot(part.step, part.loss)
        axis.set_title(stage, fontsize=9)
        axis.set_xlabel("step")
        if part.loss.max() > 10 * part.loss.min():
            axis.set_yscale("log")
    axes[0][0].set_ylabel("loss (mean of 50 steps)")
    figure.tight_layout()
    with atomic_path(out / "curves.png") as tmp:
        figure.savefig(tmp, dpi=100)
    plt.close(figure)


def publish(run: Run, pool_crops: dict[int, int], out: Path) -> None:
    """Save the finished model, how it was trained, and its curves."""
    from passionsr.models.folder import save_model

    run.model.eval()
    save_model(run.model, out)
    write_json(
        out / "training.json",
        {
            "seed": run.seed,
            "stages": {k: vars(v) for k, v in STAGES.items()},
            "pool_crops": pool_crops,
            "scaling_factor": run.model.scaling_factor,
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "torch": torch.__version__,
        },
    )
    publish_curves(run.work, out)
    log.info("saved %s", out)
