"""The job `data`: test and calibration images."""

from __future__ import annotations

import logging

from passionsr.benchmark.config import Config
from passionsr.benchmark.paths import CALIBRATION, sheet
from passionsr.data.crops import read_crops, write_crops, write_pairs
from passionsr.data.datasets import write_sheet
from passionsr.models.family import get_family

log = logging.getLogger(__name__)


def make_data(config: Config) -> None:
    """Test and calibration images: from the lists in git, or sheets of the image files found."""
    scale = get_family(config.family).scale
    limit = config.limits.get("test")
    if config.test:
        made = write_pairs(config.test, config.results / "data" / "test", scale, limit)
        log.info("%s: %d pairs", config.test, len(made))
    for dataset in config.datasets:
        pairs = dataset.pairs()
        write_sheet(pairs, sheet(config, dataset.name), scale)
        log.info("%s: %d pairs in %s", dataset.name, len(pairs), dataset.folder)
    folder = config.results / "data" / CALIBRATION
    if config.photos:
        crops = read_crops(config.calibration)[: config.limits.get("calibration")]
        made = write_crops(crops, config.photos.photos(), folder, scale)
        write_sheet(made, sheet(config, CALIBRATION), scale)
    else:
        made = write_pairs(config.calibration, folder, scale, config.limits.get("calibration"))
    log.info("%s: %d pairs", config.calibration, len(made))
