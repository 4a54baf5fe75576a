"""Datasets of image files: where they come from, and how LR and HR are paired.

A dataset is a folder and two patterns; LR and HR belong together by an explicit rule for their
stems. What was found is written to a sheet (`<results>/data/<dataset>.tsv`), and everything after
that reads the sheet.
"""

from __future__ import annotations

import csv
import os
import string
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from passionsr.data.fetch import FETCHED
from passionsr.data.image_folders import composed, images_in
from passionsr.data.images import read_uint8
from passionsr.utils.checked_yaml import read_table
from passionsr.utils.files import UserError, atomic_path, sha256_file

LOCKS = Path("config/datasets.lock")
DATA = Path("data")


# Rule -> (suffix of an LR stem, suffix of an HR stem); what is left is the key of the pair
# (docs/methods.md#data).
PAIRINGS = {
    "same": ("", ""),
    "realsr": ("_LR4", "_HR"),
    "drealsr": ("_x1", "_x4"),
    "div2k": ("x4", ""),
}


def shared_folder() -> Path:
    """Published numbers and datasets: $PASSIONSR_SHARED, default ../shared."""
    return Path(os.environ.get("PASSIONSR_SHARED", "../shared"))


def expand(path: str) -> Path:
    """A path with ${VARIABLES}; PASSIONSR_SHARED has a default. UserError for an unset variable."""
    values = {**os.environ, "PASSIONSR_SHARED": str(shared_folder())}
    try:
        return Path(string.Template(path).substitute(values))
    except (KeyError, ValueError) as err:
        raise UserError(f"path {path!r}: variable {err} is not set") from None


@dataclass(frozen=True)
class ImagePair:
    """Paths of one LR / HR pair; HR is the model's scale times LR.

    name: unique, <dataset>/<image> in a dataset.
    """

    name: str
    lr: Path
    hr: Path
    dataset: str = ""

    @property
    def image(self) -> str:
        """The name inside its dataset: the stem of the LR file."""
        return self.name.removeprefix(f"{self.dataset}/")


@dataclass(frozen=True)
class Dataset:
    """A folder of image files.

    lr, hr: patterns relative to the folder; lr is empty where there are HR photographs alone.
    pairing: a rule of PAIRINGS. count: of pairs (photographs), asserted. source: what `passionsr
    fetch` downloads. obtain: where it is found otherwise.
    """

    name: str
    folder: Path
    hr: str
    lr: str = ""
    pairing: str = "same"
    count: int | None = None
    source: str | None = None
    obtain: str = ""

    @property
    def marker(self) -> Path | None:
        """The file that fetching the source makes, where the dataset is in its default folder."""
        default = self.source and self.folder == DATA / self.source
        return DATA / str(self.source) / FETCHED if default else None

    def files(self) -> list[Path]:
        """Every image file of the dataset, sorted; empty if it is not there."""
        patterns = [pattern for pattern in (self.lr, self.hr) if pattern]
        found = {path for pattern in patterns for path in images_in(self.folder, pattern)}
        return sorted(found)

    def missing(self) -> str | None:
        """One line: what is missing and what to do; None if image files are there."""
        if self.files():
            return None
        wanted = " and ".join(p for p in (self.lr, self.hr) if p)
        ways = [f"set `folder:` of {self.name} in the configuration to a folder with {wanted}"]
        if self.marker:
            ways.insert(0, f"run `passionsr fetch {self.source}`")
        elif self.obtain:
            ways.insert(0, f"get it from {self.obtain}")
        return f"dataset {self.name}: no images in {self.folder}: {', or '.join(ways)}"

    def pairs(self) -> list[ImagePair]:
        """LR and HR by the stem rule, sorted by name.

        Raises UserError unless the rule is a bijection and the count is right.
        """
        problem = self.missing()
        if problem:
            raise UserError(problem)
        lr_suffix, hr_suffix = PAIRINGS[self.pairing]
        lr = self._keys(self.lr, lr_suffix)
        hr = self._keys(self.hr, hr_suffix)
        for one, other, kind in ((lr, hr, "HR"), (hr, lr, "LR")):
            alone = sorted(set(one) - set(other))
            if alone:
                raise UserError(
                    f"dataset {self.name}: {len(alone)} of {len(one)} images have no {kind}, "
                    f"first: {one[alone[0]]} (rule {self.pairing}: LR <key>{lr_suffix}, "
                    f"HR <key>{hr_suffix})"
                )
        self._check_count(len(lr))
        return sorted(
            (ImagePair(f"{self.name}/{p.stem}", p, hr[k], self.name) for k, p in lr.items()),
            key=lambda pair: pair.name,
        )

    def photos(self) -> dict[str, Path]:
        """HR photographs by composed file name; UserError if none are there, or another count."""
        problem = self.missing()
        if problem:
            raise UserError(problem)
        found = self._keys(self.hr, "")
        self._check_count(len(found))
        return {composed(path.name): path for path in found.values()}

    def _check_count(self, found: int) -> None:
        if self.count is not None and found != self.count:
            raise UserError(
                f"dataset {self.name}: {found} images in {self.folder}, expected {self.count}"
            )

    def _keys(self, pattern: str, suffix: str) -> dict[str, Path]:
        """Key -> file; UserError for a stem without the suffix or two files of one key."""
        found: dict[str, Path] = {}
        for path in images_in(self.folder, pattern):
            if not path.stem.endswith(suffix) or path.stem == suffix:
                raise UserError(
                    f"dataset {self.name}: {path} does not end in {suffix}{path.suffix}, as its "
                    f"rule {self.pairing} says"
                )
            key = composed(path.stem.removesuffix(suffix))
            if key in found:
                raise UserError(
                    f"dataset {self.name}: {path} and {found[key]} have the same key {key}"
                )
            found[key] = path
        return found


@dataclass(frozen=True)
class SheetRow:
    """One pair of a sheet. width, height: of HR, px."""

    name: str
    lr: str
    hr: str
    width: int
    height: int
    lr_sha256: str
    hr_sha256: str


def sheet_row(pair: ImagePair, scale: int) -> SheetRow:
    """Read and measure one pair; UserError as `read_pair`."""
    _, hr = read_pair(pair, scale)
    height, width = hr.shape[:2]
    digests = sha256_file(pair.lr), sha256_file(pair.hr)
    return SheetRow(pair.name, str(pair.lr), str(pair.hr), width, height, *digests)


def write_sheet(pairs: Iterable[ImagePair], path: Path, scale: int) -> None:
    """Measure every pair (HR is `scale` times LR) and write the tab-separated sheet, atomically."""
    rows = [sheet_row(pair, scale) for pair in pairs]
    with atomic_path(path) as tmp, tmp.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow([f.name for f in fields(SheetRow)])
        writer.writerows(astuple(row) for row in rows)


def read_sheet(path: Path) -> list[ImagePair]:
    """The pairs of a sheet; UserError if it is missing or damaged."""
    return [
        ImagePair(row.name, Path(row.lr), Path(row.hr), row.name.rpartition("/")[0])
        for _, row in read_table(SheetRow, path, "not found; the job `data` writes it")
    ]


def read_pair(pair: ImagePair, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """(LR, HR) uint8; UserError if HR is not `scale` times LR."""
    lr, hr = read_uint8(pair.lr), read_uint8(pair.hr)
    if hr.shape[:2] != (lr.shape[0] * scale, lr.shape[1] * scale):
        raise UserError(
            f"{pair.name}: LR is {lr.shape[1]}x{lr.shape[0]} and HR {hr.shape[1]}x{hr.shape[0]}, "
            f"expected HR = {scale} x LR"
        )
    return lr, hr
