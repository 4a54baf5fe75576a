"""The recipe of the mini model: `python -m train_mini` (see models/mini/README.md).

In stages, so that quantizing the UNet hurts as it does in the real model (eps errors are
amplified 14.6 times into x0, and the decoder was never trained to hide them):

1. `autoencoder`: the VAE alone on HR crops, L1 + LPIPS + KL; then the decoder is frozen and
   scaling_factor is set so that latents have unit variance.
2. `latent`: the UNet alone, on latents: first towards x0 = z (identity, eps = 0.934 z), then
   towards the HR latent, MSE in x0 space. Cheap, no decoder in the loop.
3. `sr`, `sr_decay`: UNet and encoder together, L1 + LPIPS on the image behind the frozen decoder; first
   at the peak learning rate, then a cosine to 1 % of it.
4. `sr_balance`, `sr_fidelity`: less LPIPS (0.12, then 0.03) and an L1 on 8 x 8 pixel means, which trade
   perception back for fidelity and hold the colours.
5. `sr_large`: the same on 256 px crops, the size of the test images. Normalisation statistics and attention depend
   on the size: trained on 64 px alone, the model darkens larger images by several levels.
6. `colour_autoencoder`: the VAE again, on crops of varied colours: the decoder of the first pass could not
   express saturated reds and violets, and what the decoder cannot express no later stage can repair. It helped
   little: two pairs of latent channels were nearly copies of each other, and none carried red - green.
7. `chroma_*`: so the last two latent channels are first taught the chroma (`anchor`), which frees the decoder from
   guessing it; then the path of stages 2 to 5 once more, shorter, on larger crops.

Every batch depends only on (seed, stage, step), so a killed run resumes from its last checkpoint
exactly where it was. Curves go to <work>/curves.csv.
"""

from __future__ import annotations

import argparse
import csv
import logging
import math
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from passionsr.data.degrade import degrade, rng_for
from passionsr.data.images import upscale
from passionsr.metrics.weights import ensure_weights, use_private_hub
from passionsr.models.one_step import OneStepSR
from passionsr.models.osediff.family import OSEDIFF
from passionsr.models.tiny import SmallShape, small_model
from passionsr.utils.files import UserError, atomic_path, write_json, write_text

log = logging.getLogger("train_mini")

PHOTO_LIST = Path("config/mini_train_photos.txt")
POOL_CROP = {
    64: 112,
    128: 176,
    256: 272,
}  # crop of a stage -> side of the pool's crops, with room to shift
PER_PHOTO = {64: 200, 128: 64, 256: 12}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps, batch size and peak learning rate (cosine to 1 % after a short warm-up).

    horizon: steps the schedule is made for, where a stage ends before its schedule does.
    crop: side of the HR crops in pixels. colours: vary them (see vary_colours).
    """

    steps: int
    batch: int
    lr: float
    horizon: int | None = None
    crop: int = 64
    colours: bool = False


STAGES = {
    "autoencoder": Stage(steps=4000, batch=16, lr=1.5e-3),
    "latent": Stage(steps=1200, batch=16, lr=1e-3),
    "sr": Stage(steps=400, batch=16, lr=3e-4, horizon=2400),
    "sr_decay": Stage(steps=1200, batch=16, lr=2.8e-4),
    "sr_balance": Stage(steps=480, batch=16, lr=2e-4),
    "sr_fidelity": Stage(steps=160, batch=16, lr=2e-4),
    "sr_large": Stage(steps=130, batch=2, lr=2e-4, crop=256),
    "colour_autoencoder": Stage(steps=2000, batch=4, lr=8e-4, crop=128, colours=True),
    "chroma_autoencoder": Stage(steps=1100, batch=16, lr=8e-4, colours=True),
    "chroma_polish": Stage(steps=400, batch=4, lr=3e-4, crop=128, colours=True),
    "chroma_latent": Stage(steps=700, batch=4, lr=8e-4, crop=128, colours=True),
    "chroma_sr": Stage(steps=1000, batch=6, lr=3e-4, crop=128, colours=True),
    "chroma_large": Stage(steps=200, batch=2, lr=1.5e-4, crop=256, colours=True),
}
AUTOENCODERS = ("autoencoder", "colour_autoencoder", "chroma_autoencoder", "chroma_polish")
UNET_ALONE = ("latent", "chroma_latent")
IDENTITY_STEPS = 500
LOG_EVERY = 50


def build_model(seed: int) -> OneStepSR:
    """The untrained mini model: three levels, latent factor 4."""
    shape = SmallShape(
        vae_channels=(32, 48, 64),
        unet_channels=(64, 96, 128),
        heads=(2, 3, 4),
        context=(8, 64),
        vae_groups=8,
        unet_groups=16,
    )
    return small_model(shape, seed)


def fetch_photos(folder: Path) -> Path:
    """Download the Debian packages named in the photo list and unpack them (nothing is installed)."""
    packages = sorted({row[0] for row in read_photo_list()})
    root = folder / "unpacked"
    for package in packages:
        if (folder / f"{package}.done").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        (deb,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg", "-x", deb.name, root.name], cwd=folder, check=True)
        (folder / f"{package}.done").touch()
    return root


def read_photo_list(path: Path = PHOTO_LIST) -> list[tuple[str, str, int]]:
    """Rows (package, path inside it, downscale factor)."""
    rows = [line.split("\t") for line in path.read_text().splitlines() if line[:1] not in ("#", "")]
    return [(package, name, int(factor)) for package, name, factor in rows]


def load_photo(path: Path, factor: int) -> np.ndarray:
    """Decode and downscale by `factor` (removes the JPEG artefacts of the source)."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        size = (image.width // factor, image.height // factor)
        return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def build_pool(photos: Path, target: Path, side: int, per_photo: int, seed: int) -> np.ndarray:
    """(n, side, side, 3) uint8: from each photo, the more textured half of random candidates."""
    if target.exists():
        return np.load(target)
    crops = []
    for _, name, factor in read_photo_list():
        photo = load_photo(photos / name, factor)
        rng = rng_for(seed, "pool", name)
        height, width = photo.shape[:2]
        ys = rng.integers(0, height - side, 2 * per_photo)
        xs = rng.integers(0, width - side, 2 * per_photo)
        candidates = [photo[y : y + side, x : x + side] for y, x in zip(ys, xs, strict=True)]
        texture = [np.abs(np.diff(c.astype(np.float32), axis=0)).mean() for c in candidates]
        keep = np.argsort(texture)[-per_photo:]
        crops += [candidates[i] for i in sorted(keep)]
        log.info("%s: %d crops of %dx%d", Path(name).name, len(keep), width, height)
    pool = np.stack(crops)
    with atomic_path(target) as tmp:
        np.save(tmp, pool)
    return pool


def vary_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 with its channels permuted (every second image) and its saturation times 0.6 to 1.8.

    The photographs are mostly sky, leaves and stone: without this the decoder cannot even express a saturated red.
    """
    if rng.integers(2):
        image = image[:, :, rng.permutation(3)]
    luma = image.mean(2, dtype=np.float32, keepdims=True)
    varied = luma + np.float32(rng.uniform(0.6, 1.8)) * (image - luma)
    return np.rint(varied).clip(0, 255).astype(np.uint8)


def make_batch(pool: np.ndarray, stage: str, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """(upscaled LR, HR), each (N, 3, crop, crop) float32 in [0, 1]; depends only on its arguments."""
    crop = STAGES[stage].crop
    rng, scale = rng_for(seed, stage, step), OSEDIFF.scale
    hrs, ups = [], []
    for index in rng.integers(0, len(pool), STAGES[stage].batch):
        hr = np.rot90(pool[index], int(rng.integers(4)))
        if rng.integers(2):
            hr = hr[:, ::-1]
        if STAGES[stage].colours:
            hr = vary_colours(hr, rng)
        y, x = rng.integers(0, (pool.shape[1] - crop) // scale + 1, 2) * scale
        window = np.s_[y : y + crop, x : x + crop]
        hrs.append(hr[window])
        if stage not in AUTOENCODERS:
            ups.append(upscale(degrade(np.ascontiguousarray(hr), rng, scale), scale)[window])

    def stack(images: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(images or hrs)).permute(0, 3, 1, 2).float().div(255)

    return stack(ups), stack(hrs)


def batches(
    pool: np.ndarray, stage: str, start: int, seed: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Batches of one stage from step `start` on, made one ahead in a thread."""
    steps = STAGES[stage].steps
    with ThreadPoolExecutor(1) as pool_thread:
        future = pool_thread.submit(make_batch, pool, stage, start, seed)
        for step in range(start, steps):
            up, hr = future.result()
            if step + 1 < steps:
                future = pool_thread.submit(make_batch, pool, stage, step + 1, seed)
            yield step, up, hr


class PerceptualLoss(nn.Module):
    """LPIPS (AlexNet) on images in [0, 1], mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        ensure_weights()
        use_private_hub()
        import pyiqa

        self.lpips = pyiqa.create_metric("lpips", as_loss=True, device="cpu").requires_grad_(False)

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of (N, 3, H, W) images."""
        return self.lpips(image, target)


def chroma_means(image: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 2, H/4, W/4): red - green and blue - green, mean of 4 x 4 pixels."""
    red, green, blue = F.avg_pool2d(image, 4).unbind(1)
    return torch.stack([red - green, blue - green], 1)


def image_loss(
    image: Tensor,
    hr: Tensor,
    lpips: nn.Module,
    perception: float,
    colour: float,
    chroma: float = 0.0,
) -> Tensor:
    """L1 + perception * LPIPS + colour * L1 of 8 x 8 pixel means + chroma * L1 of chroma_means."""
    loss = F.l1_loss(image, hr) + perception * lpips(image, hr)
    if chroma:
        loss = loss + chroma * F.l1_loss(chroma_means(image), chroma_means(hr))
    if colour:
        loss = loss + colour * F.l1_loss(F.avg_pool2d(image, 8), F.avg_pool2d(hr, 8))
    return loss


def autoencoder_loss(
    model: OneStepSR,
    up: Tensor,
    hr: Tensor,
    lpips: nn.Module,
    step: int,
    perception: float = 0.5,
    colour: float = 0.0,
    chroma: float = 0.0,
    anchor: float = 0.0,
) -> Tensor:
    """image_loss + 1e-6 KL (summed per image, as LDM does) + anchor * L1(latents 2 and 3, 5 x chroma)."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.vae.encode(hr * 2 - 1).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step))
        latent = posterior.mean + posterior.std * noise
        image = model.vae.decode(latent).sample.float() * 0.5 + 0.5
    kl = posterior.kl().float().mean()
    loss = image_loss(image, hr, lpips, perception, colour, chroma) + 1e-6 * kl
    if anchor:
        # 5: the chroma of photographs has a standard deviation of about 0.2
        loss = loss + anchor * F.l1_loss(posterior.mean[:, 2:].float(), 5 * chroma_means(hr))
    return loss


def latent_loss(model: OneStepSR, up: Tensor, hr: Tensor, lpips: nn.Module, step: int) -> Tensor:
    """x0-space MSE: towards z itself at first, then towards the HR latent."""
    with torch.no_grad():
        z = model.encode(up)
        target = z if step < IDENTITY_STEPS else model.encode(hr)
    return F.mse_loss(model.denoise(z), target)


def super_resolved(model: OneStepSR, up: Tensor) -> Tensor:
    """The whole model, UNet and encoder in float32, the frozen decoder in bfloat16."""
    x0 = model.denoise(model.encode(up))
    with torch.autocast("cpu", torch.bfloat16):
        image = model.decode(x0)
    return image.float()


def sr_loss(
    model: OneStepSR,
    up: Tensor,
    hr: Tensor,
    lpips: nn.Module,
    step: int,
    perception: float = 0.5,
    colour: float = 0.0,
    chroma: float = 0.0,
) -> Tensor:
    """image_loss behind the frozen decoder."""
    return image_loss(super_resolved(model, up), hr, lpips, perception, colour, chroma)


def trainable(model: OneStepSR, stage: str) -> list[nn.Parameter]:
    """The parameters a stage trains; all others are frozen."""
    parts: list[nn.Module] = [model.unet, model.vae.encoder, model.vae.quant_conv]
    if stage in AUTOENCODERS:
        parts = [model.vae]
    elif stage in UNET_ALONE:
        parts = [model.unet]
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    return [p for part in parts for p in part.parameters()]


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up over 2 % of the steps, then cosine to 1 % of the peak."""
    steps = stage.horizon or stage.steps
    warm = max(1, steps // 50)
    if step < warm:
        return stage.lr * (step + 1) / warm
    phase = (step - warm) / max(1, steps - warm)
    return stage.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * phase)))


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


LOSSES: dict[str, Callable[..., Tensor]] = {
    "autoencoder": autoencoder_loss,
    "latent": latent_loss,
    "sr": sr_loss,
    "sr_decay": sr_loss,
    "sr_balance": partial(sr_loss, perception=0.12, colour=1.0),
    "sr_fidelity": partial(sr_loss, perception=0.03, colour=1.0),
    "sr_large": partial(sr_loss, perception=0.12, colour=2.0),
    "colour_autoencoder": partial(autoencoder_loss, perception=0.25, colour=1.0),
    "chroma_autoencoder": partial(autoencoder_loss, perception=0.25, chroma=1.0, anchor=0.2),
    "chroma_polish": partial(autoencoder_loss, perception=0.25, colour=1.0, chroma=1.0),
    "chroma_latent": latent_loss,
    "chroma_sr": partial(sr_loss, perception=0.25, colour=1.0, chroma=0.5),
    "chroma_large": partial(sr_loss, perception=0.2, colour=2.0, chroma=0.5),
}


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


def main(argv: list[str] | None = None) -> int:
    """Command line: fetch photos, train what is left, save the model."""
    parser = argparse.ArgumentParser(prog="train_mini", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--work", type=Path, default=Path("train_mini"), help="checkpoints and curves"
    )
    parser.add_argument("--photos", type=Path, help="unpacked packages (default: apt-get download)")
    parser.add_argument("--out", type=Path, default=Path("models/mini"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=100)
    parser.add_argument("--stop-after", choices=list(STAGES))
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if not PHOTO_LIST.exists():
        raise UserError(f"{PHOTO_LIST}: not found; run this from the repository's root")
    args.work.mkdir(parents=True, exist_ok=True)
    photos = args.photos or fetch_photos(args.work / "photos")
    pools = {
        crop: build_pool(
            photos, args.work / f"pool_{crop}.npy", POOL_CROP[crop], PER_PHOTO[crop], args.seed
        )
        for crop in POOL_CROP
    }
    run = Run(args.work, args.seed, args.checkpoint_every)
    run.train(pools, PerceptualLoss(), args.stop_after)
    if run.stage == "done":
        publish(run, {crop: len(pool) for crop, pool in pools.items()}, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
