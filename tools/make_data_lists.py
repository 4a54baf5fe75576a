"""Makes config/mini_test.tsv, config/mini_calibration.tsv and its crops.

Run once; the results are in git.

Usage: python tools/make_data_lists.py UNPACKED_LOMIRI_WALLPAPERS
"""

import csv
import sys
from dataclasses import astuple, fields, replace
from pathlib import Path

# This checkout, whatever passionsr is installed.
sys.path.insert(0, str(Path(__file__).absolute().parents[1]))

import numpy as np
from train_mini.data import load_photo

from passionsr.data.crops import Crop, make_pair, pixels_sha256
from passionsr.data.degrade import rng_for
from passionsr.data.images import write_uint8
from passionsr.models.osediff.family import OSEDIFF

TEST = [  # chosen by eye: faces, fur, text, fabric, machinery, tissue, sky
    ("astronaut_face", "astronaut.png", 64, 0),
    ("astronaut_suit", "astronaut.png", 32, 256),
    ("chelsea_face", "chelsea.png", 96, 24),
    ("coffee_cup", "coffee.png", 160, 80),
    ("rocket_tower", "rocket.jpg", 256, 160),
    ("motorcycle_engine", "motorcycle_left.png", 200, 180),
    ("motorcycle_wheel", "motorcycle_left.png", 470, 240),
    ("ihc_tissue", "ihc.png", 128, 128),
    ("astronaut_shuttle", "astronaut.png", 256, 0),
    ("hubble_galaxies", "hubble_deep_field.jpg", 360, 300),
]
CALIBRATION = {  # photograph -> (licence in the package's copyright file, downscale factor)
    "seeding_by_Clements_Engelhardt.jpg": 2,
    "picosdeeuropa_by_Aitzol_Berasategi.jpg": 2,
    "friends_by_Aitzol_Berasategi.jpg": 2,
    "Wine_by_Jakkub_Mede.jpg": 2,
    "Picture_1A_by_freespace.jpg": 1,
}
PER_PHOTO, SIZE = 8, 128


def write_list(path: Path, header: str, crops: list[Crop]) -> None:
    """Write one data list with the hashes of its pixels."""
    finished = []
    for crop in crops:
        hr, lr = make_pair(crop, path.parent, OSEDIFF.scale)
        finished.append(replace(crop, hr_sha256=pixels_sha256(hr), lr_sha256=pixels_sha256(lr)))
    with path.open("w", newline="") as stream:
        stream.write(header)
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow([f.name for f in fields(Crop)])
        writer.writerows(astuple(c) for c in finished)


def main() -> None:
    """Choose the crops and write both lists."""
    photos = Path(sys.argv[1]) / "usr/share/backgrounds"
    write_list(
        Path("config/mini_test.tsv"),
        "# Test crops (256 px HR) of colour photographs that come with scikit-image.\n",
        [Crop(name, f"skimage:{file}", file, x, y, 256, "", "") for name, file, x, y in TEST],
    )
    crops = []
    folder = Path("config/mini_calibration")
    for file, factor in CALIBRATION.items():
        photo = load_photo(photos / file, factor)
        rng = rng_for("calibration", file)
        found: list[tuple[float, int, int]] = []
        for _ in range(200):
            y = int(rng.integers(0, photo.shape[0] - SIZE))
            x = int(rng.integers(0, photo.shape[1] - SIZE))
            cut = photo[y : y + SIZE, x : x + SIZE].astype(np.float32)
            found.append((float(np.abs(np.diff(cut, axis=0)).mean()), y, x))
        found.sort(reverse=True)
        taken: list[tuple[int, int]] = []
        # Spread over the texture range, without overlap: half of the most textured, then in steps.
        for _, y, x in found[: PER_PHOTO * 4] + found[PER_PHOTO * 4 :: 8]:
            if len(taken) == PER_PHOTO:
                break
            if len(taken) < PER_PHOTO and all(
                max(abs(y - a), abs(x - b)) >= SIZE for a, b in taken
            ):
                taken.append((y, x))
        stem = file.split("_by_")[0].lower()
        for index, (y, x) in enumerate(taken):
            name = f"{stem}_{index}"
            write_uint8(folder / f"{name}.png", photo[y : y + SIZE, x : x + SIZE])
            crops.append(Crop(name, f"mini_calibration/{name}.png", file, 0, 0, SIZE, "", ""))
    # One crop of every photograph in turn, so that a limited list keeps all of them.
    crops.sort(key=lambda crop: int(crop.name.rsplit("_", 1)[1]))
    write_list(
        Path("config/mini_calibration.tsv"),
        "# Calibration crops (128 px HR); licences in config/mini_calibration/LICENSE.md.\n",
        crops,
    )


if __name__ == "__main__":
    main()
