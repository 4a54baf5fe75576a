"""Makes config/paper_calibration.tsv: 500 crops of DIV2K train by a seeded rule.

The photographs' sizes are not needed: a position is stored as a share of what the crop leaves free.
"""

import csv
import sys
from dataclasses import astuple
from pathlib import Path

# This checkout, whatever passionsr is installed.
sys.path.insert(0, str(Path(__file__).absolute().parents[1]))

from passionsr.data.crops import CROP_COLUMNS, draw_crops

COUNT, SIZE, SEED = 500, 512, 0
HEADER = (
    "# 500 crops of DIV2K train, 512 px (LR 128 px), by tools/make_calibration_list.py; "
    "fx, fy: position as a share of what\n"
    "# the crop leaves free: x = floor(fx (width - size + 1)).\n"
)


def main() -> None:
    """Write the list."""
    crops = draw_crops([f"{i:04d}.png" for i in range(1, 801)], COUNT, SIZE, SEED)
    with Path("config/paper_calibration.tsv").open("w", newline="") as stream:
        stream.write(HEADER)
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(CROP_COLUMNS)
        writer.writerows(astuple(c) for c in crops)


if __name__ == "__main__":
    main()
