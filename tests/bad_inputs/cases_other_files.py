"""Files of systems, editors and users in folders that are read."""

import archive_files as made
from bad_inputs.table import BadInput

FOREIGN = (
    "._a.png", ".tmp-123-abcdefgh.png", ".DS_Store", "Thumbs.db", "desktop.ini", "a.png~",
    "#a.png#", ".hidden.png", "note.txt",
)  # fmt: skip


def folder_of(folder, *images):
    """A folder with what belongs to nobody, a folder called x.png, and images."""
    folder.mkdir()
    (folder / "x.png").mkdir()
    for name in FOREIGN:
        (folder / name).write_bytes(b"no image")
    for name in images:
        (folder / name).write_bytes(made.png())


def score(sr=(), hr=()):
    def prepare(folder):
        folder_of(folder / "sr", *sr)
        folder_of(folder / "hr", *hr)
        return ["score", "sr", "hr", "out.csv", "--metrics", "psnr"]

    return prepare


def dangling(folder):
    folder_of(folder / "sr", "a.png")
    folder_of(folder / "hr", "a.png")
    (folder / "sr" / "b.png").symlink_to("annex")
    return ["score", "sr", "hr", "out.csv", "--metrics", "psnr"]


def quantize(folder):
    folder_of(folder / "cal")
    (folder / "model").mkdir()
    return [
        "quantize", "out", "--method", "minmax", "--scheme", "W8A8", "--calibration", "cal",
        "--model", "model",
    ]  # fmt: skip


def dataset(lr, hr, pattern="*"):
    def prepare(folder):
        folder_of(folder / "LR", *lr)
        folder_of(folder / "HR", *hr)

        def find():
            from passionsr.data.datasets import Dataset

            found = Dataset("mine", folder, hr=f"HR/{pattern}", lr=f"LR/{pattern}").pairs()
            print(", ".join(pair.image for pair in found))

        return find

    return prepare


def leftovers(folder):
    """What a start of the workflow removes, and what it says about files that were cut off."""
    names = ("table2.md", "note.md", ".tmp-notes.png", ".tmp-1-notes", "._table2.md")
    for name in names:
        (folder / name).write_text("no end of a line")

    def look():
        from passionsr.benchmark import recovery

        recovery.remove_leftovers(folder)
        recovery.look([folder / "table2.md"], ["snakemake"])

    return look


ROWS = [
    BadInput(
        kind=12,
        given="no outputs but other people's files",
        prepare=score(hr=["a.png"]),
        answer="sr: no PNG images",
    ),
    BadInput(
        kind=12,
        given="other people's files among outputs",
        prepare=score(sr=["a.png", "b.PNG"], hr=["a.png"]),
        answer="no HR image for 1 of 2 outputs, first: hr/b.PNG",
    ),
    BadInput(
        kind=12,
        given="a.png and a.PNG",
        prepare=score(sr=["a.png", "a.PNG"], hr=["a.png"]),
        answer="sr/a.png and sr/a.PNG have the same name; rename one of them",
    ),
    BadInput(
        kind=12,
        given="link to an image that is not there",
        prepare=dangling,
        answer="sr/b.png: is a link to annex, which is not there; get that file",
    ),
    BadInput(
        kind=12,
        given="no calibration images but other people's files",
        prepare=quantize,
        answer="cal: no PNG images for calibration (LR images, 1/4 size)",
    ),
    BadInput(
        kind=12,
        given="dataset of other people's files",
        prepare=dataset([], []),
        answer="dataset mine: no images in {folder}: set `folder:` of mine in the configuration to "
        "a folder with LR/* and HR/*",
    ),
    BadInput(
        kind=12,
        given="other people's files in a dataset",
        prepare=dataset(["a.png", "b.PNG"], ["a.png", "b.png"]),
        answer="a, b",
        status=0,
    ),
    BadInput(
        kind=12,
        given="other people's files in a dataset without a partner",
        prepare=dataset(["a.png", "b.png"], ["a.png"], "*.png"),
        answer="dataset mine: 1 of 2 images have no HR, first: {folder}/LR/b.png (rule same: LR "
        "<key>, HR <key>)",
    ),
    BadInput(
        kind=12,
        given="notes beside a table that was cut off",
        prepare=leftovers,
        answer="1 file was cut off (power loss, full disk); remove, then give your command again: "
        "rm -f {folder}/table2.md",
    ),
]
