"""The job `data`: test and calibration images."""

from __future__ import annotations

import logging

from passionsr.benchmark.config import Config
from passionsr.benchmark.paths import CALIBRATION, sheet
from passionsr.data.crops import read_crops, write_crops, write_pairs
from passionsr.data.datasets import write_sheet

log = logging.getLogger(__name__)


def make_data(config: Config) -> None:
    """Test and calibration images: from the lists in git, or sheets of the image files found."""
    if config.test:
        made = write_pairs(config.test, config.results / "data" / "test", config.limits.get("test"))
        log.info("%s: %d pairs", config.test, len(made))
    for dataset in config.datasets:
        pairs = dataset.pairs()
        write_sheet(pairs, sheet(config, dataset.name))
        log.info("%s: %d pairs in %s", dataset.name, len(pairs), dataset.folder)
    folder = config.results / "data" / CALIBRATION
    if config.photos:
        crops = read_crops(config.calibration)[: config.limits.get("calibration")]
        made = write_crops(crops, config.photos.photos(), folder)
        write_sheet(made, sheet(config, CALIBRATION))
    else:
        made = write_pairs(config.calibration, folder, config.limits.get("calibration"))
    log.info("%s: %d pairs", config.calibration, len(made))
