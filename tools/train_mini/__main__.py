"""Command line: `PYTHONPATH=tools python -m train_mini`; the package says what the recipe is."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import train_mini
from passionsr.utils.files import UserError
from train_mini.data import PHOTO_LIST, build_pool, fetch_photos
from train_mini.losses import PerceptualLoss
from train_mini.publish import publish
from train_mini.recipe import PER_PHOTO, POOL_CROP, STAGES
from train_mini.run import Run


def main(argv: list[str] | None = None) -> int:
    """Command line: fetch photos, train what is left, save the model."""
    parser = argparse.ArgumentParser(
        prog="train_mini", description=train_mini.__doc__.split("\n")[0]
    )
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
