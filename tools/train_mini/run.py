"""The training: stage after stage, resumable to the byte."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from passionsr.models.one_step import OneStepSR
from passionsr.utils.files import atomic_path, write_text
from train_mini.data import batches, make_batch
from train_mini.losses import LOSSES
from train_mini.recipe import AUTOENCODERS, STAGES, build_model, learning_rate, trainable

log = logging.getLogger("train_mini")

LOG_EVERY = 50


def set_scaling_factor(model: OneStepSR, pool: np.ndarray, seed: int) -> float:
    """Set the VAE's scaling_factor to 1 / std of HR latents over 512 crops."""
    latents = []
    with torch.no_grad():
        for step in range(32):
            _, hr = make_batch(pool, "autoencoder", 10**6 + step, seed)
            latents.append(model.vae.encode(hr * 2 - 1).latent_dist.mode())
    factor = 1.0 / float(torch.cat(latents).std())
    model.vae.register_to_config(scaling_factor=factor)
    return factor


class Run:
    """A resumable training run in one work folder."""

    def __init__(self, work: Path, seed: int, checkpoint_every: int):
        self.work, self.seed, self.every = work, seed, checkpoint_every
        self.state_path = work / "state.pt"
        self.model = build_model(seed)
        self.stage, self.step, self.optimizer_state = "autoencoder", 0, None
        if self.state_path.exists():
            state = torch.load(self.state_path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.model.vae.register_to_config(scaling_factor=state["scaling_factor"])
            self.stage, self.step = state["stage"], state["step"]
            self.optimizer_state = state["optimizer"]
            self._trim_curves()
            log.info("resuming at %s step %d", self.stage, self.step)

    def _trim_curves(self) -> None:
        """Drop rows of steps that were run after the checkpoint and will be run again."""
        path = self.work / "curves.csv"
        if not path.exists():
            return
        head, *rows = path.read_text().splitlines()
        kept = [r for r in rows if (r.split(",")[0], int(r.split(",")[1])) <= self._position(r)]
        write_text(path, "\n".join([head, *kept]) + "\n")

    def _position(self, row: str) -> tuple[str, int]:
        """The last logged step of the row's stage that the checkpoint includes."""
        stage = row.split(",")[0]
        return (stage, self.step if stage == self.stage else STAGES[stage].steps)

    def save(self, stage: str, step: int, optimizer: torch.optim.Optimizer | None) -> None:
        """Write the checkpoint atomically."""
        state = {
            "model": self.model.state_dict(),
            "scaling_factor": self.model.scaling_factor,
            "stage": stage,
            "step": step,
            "optimizer": optimizer.state_dict() if optimizer else None,
        }
        with atomic_path(self.state_path) as tmp:
            torch.save(state, tmp)

    def train(
        self, pools: dict[int, np.ndarray], lpips: nn.Module, stop_after: str | None = None
    ) -> None:
        """Run every stage that is not finished; `pools` holds one pool per crop size."""
        names = list(STAGES)
        for name in names[names.index(self.stage) :] if self.stage in names else []:
            self._train_stage(name, pools[STAGES[name].crop], lpips)
            if name in AUTOENCODERS:
                factor = set_scaling_factor(self.model, pools[64], self.seed)
                log.info("scaling_factor = %.5f", factor)
            following = names[names.index(name) + 1] if name != names[-1] else "done"
            self.stage, self.step, self.optimizer_state = following, 0, None
            self.save(following, 0, None)
            if name == stop_after:
                return

    def _train_stage(self, name: str, pool: np.ndarray, lpips: nn.Module) -> None:
        stage = STAGES[name]
        params = trainable(self.model, name)
        optimizer = torch.optim.AdamW(params, lr=stage.lr, betas=(0.9, 0.99), weight_decay=1e-4)
        if self.optimizer_state:
            optimizer.load_state_dict(self.optimizer_state)
        self.model.train()
        started, total = time.time(), 0.0
        for step, up, hr in batches(pool, name, self.step, self.seed):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(stage, step)
            loss = LOSSES[name](self.model, up, hr, lpips, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            total += float(loss.detach())
            if (step + 1) % LOG_EVERY == 0:
                self._log(name, step + 1, total / LOG_EVERY, time.time() - started)
                started, total = time.time(), 0.0
            if (step + 1) % self.every == 0:
                self.save(name, step + 1, optimizer)

    def _log(self, name: str, step: int, loss: float, seconds: float) -> None:
        path = self.work / "curves.csv"
        new = not path.exists()
        with path.open("a", newline="") as stream:
            writer = csv.writer(stream)
            if new:
                writer.writerow(["stage", "step", "loss"])
            writer.writerow([name, step, f"{loss:.6f}"])
        log.info(
            "%s %d/%d loss %.4f (%.2f s/step)", name, step, STAGES[name].steps, loss, seconds / 50
        )
