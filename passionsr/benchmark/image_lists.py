"""Per dataset, a list of a run's output images with their hashes.

It stands for all of them in the workflow.
"""

from __future__ import annotations

from passionsr.benchmark.config import Config
from passionsr.benchmark.paths import image_folder, pairs_to_test
from passionsr.utils.files import UserError, check_sha256, read_text, sha256_file, write_text


def write_image_lists(config: Config, run_id: str) -> None:
    """Per dataset, name and sha256 of each output.

    Written last, so that it stands for all of them.
    """
    folder = image_folder(config, run_id)
    pairs = pairs_to_test(config)
    for dataset in config.datasets:
        files = {p.image: folder / f"{p.name}.png" for p in pairs if p.dataset == dataset.name}
        rows = [f"{image}\t{sha256_file(path)}\n" for image, path in files.items()]
        write_text(folder / f"{dataset.name}.tsv", "".join(rows))


def check_image_lists(config: Config, run_id: str) -> None:
    """UserError if an output on disk is not the one that `write_image_lists` saw."""
    folder = image_folder(config, run_id)
    for dataset in config.datasets:
        path = folder / f"{dataset.name}.tsv"
        text = read_text(path, "not found; the images are made first")
        for line in filter(None, text.split("\n")):
            image, tab, digest = line.rpartition("\t")
            if not tab:
                raise UserError(
                    f"{path}: {line!r} given, expected tab-separated image and sha256; remove the "
                    "file, then give your command again"
                )
            check_sha256(folder / dataset.name / f"{image}.png", digest)
