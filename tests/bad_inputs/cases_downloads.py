"""Bad inputs of `passionsr fetch`: what arrives in place of an archive."""

import re

import archive_files as made
from bad_inputs.table import BadInput

REGISTRY = """
sources:
  S:
    archives: [{{file: {file}, urls: ["file://{folder}/served"]}}]
datasets:
  D: {{source: S, lr: LR/*.png, hr: HR/*.png, count: 2}}
"""
OR_LOCAL = "name a local folder of its images as `folder:` of the dataset in the configuration"
REMOVED = f"it was removed again. Fetch again, or {OR_LOCAL}"
OWN = f"put the right file at data/.archives/a.zip. Fetch again, or {OR_LOCAL}"
ARCHIVE = "data/.archives/a.zip"
FETCHED = (
    "config/datasets.lock/S.json",
    ARCHIVE,
    *(f"data/S/{name}" for name in made.pairs("a", "b")),
    "data/S/fetched.json",
)


def serve(folder, data, file="a.zip"):
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config" / "datasets.yaml").write_text(REGISTRY.format(folder=folder, file=file))
    (folder / "served").write_bytes(data)


def fetch(data, file="a.zip"):
    """`passionsr fetch S` where the server sends `data`."""

    def prepare(folder):
        serve(folder, data, file)
        return ["fetch", "S"]

    return prepare


def own_file(data):
    """The same, the user having put `data` into data/.archives."""

    def prepare(folder):
        serve(folder, made.GOOD)
        (folder / ARCHIVE).parent.mkdir(parents=True)
        (folder / ARCHIVE).write_bytes(data)
        return ["fetch", "S"]

    return prepare


def after(data):
    """The right archive, after a first attempt at which `data` came."""

    def prepare(folder):
        from passionsr.cli import main

        serve(folder, data)
        assert main(["fetch", "S"]) == 2
        serve(folder, made.GOOD)
        return ["fetch", "S"]

    return prepare


def recorded(folder):
    serve(folder, made.GOOD)
    lock = folder / "config" / "datasets.lock" / "S.json"
    lock.parent.mkdir()
    lock.write_text('{"a.zip": 5}')
    return ["fetch", "S"]


def arrived(given, kind):
    """A row about something that is told at once, so that the next address may be tried."""
    answer = (
        f"a.zip could not be downloaded (file://{{folder}}/served: the file is {kind}, no "
        f"archive). Fetch it by other means and put it at {ARCHIVE}, or {OR_LOCAL}"
    )
    return given, answer


def unpacked(given, reason, end=REMOVED):
    """A row about something that is told when it is unpacked."""
    return given, f"{ARCHIVE}: {reason}; {end}"


def not_the_dataset(given, reason):
    """A row about something that is told when it has been unpacked."""
    return given, f"what was unpacked is not source S: {reason}; {REMOVED}"


BY_OTHER_MEANS = "which Python does not read: unpack it by other means"
WRONG = [
    (made.QUOTA_PAGE, *arrived("quota page as a.zip", "an HTML page ('Quota exceeded')")),
    (b'{"error": "busy"}', *arrived("JSON error as a.zip", 'a text (\'{"error": "busy"}\')')),
    (b"", *arrived("empty file as a.zip", "empty")),
    (b"Rar!\x1a\x07\x00" + bytes(9), *arrived("RAR archive as a.zip", "a RAR archive")),
    (b"7z\xbc\xaf\x27\x1c" + bytes(9), *arrived("7z archive as a.zip", "a 7z archive")),
    (
        made.altered(made.DEFLATED, method=9),
        *unpacked(
            "zip compressed by Deflate64",
            f"cannot be unpacked (member 'LR/a.png' is compressed by Deflate64, {BY_OTHER_MEANS})",
        ),
    ),
    (
        made.altered(made.GOOD, flags=1),
        *unpacked(
            "encrypted zip",
            "cannot be unpacked (member 'LR/a.png' is encrypted: unpack it with its password by "
            "other means)",
        ),
    ),
    (
        made.GOOD[:900],
        *unpacked(
            "zip cut off",
            "cannot be unpacked (it is the beginning of a ZIP archive: cut off, or the first file "
            "of several)",
        ),
    ),
    (
        made.last_of_several(made.GOOD),
        *unpacked(
            "last file of a zip in several",
            "cannot be unpacked (it is one file of an archive in several, which must be joined "
            "first)",
        ),
    ),
    (
        made.corrupted(made.GOOD),
        *unpacked(
            "zip with one wrong byte",
            "cannot be unpacked (Bad CRC-32 for file 'HR/b.png'; it is damaged or cut off)",
        ),
    ),
    (made.zipped({}), *unpacked("empty zip", "cannot be unpacked (it holds no files)")),
    (
        made.zipped({"../a.png": b""}),
        *unpacked(
            "zip that leads out of its folder",
            "member '../a.png' leads out of its folder; nothing was unpacked",
        ),
    ),
    (
        made.zipped({"LR/a.png": b"", "LR/A.png": b""}),
        *unpacked(
            "zip with names equal but for case",
            "members 'LR/a.png' and 'LR/A.png' are one file on systems that do not tell their "
            "names apart; nothing was unpacked",
        ),
    ),
    (
        made.zipped({"readme.txt": b"1"}),
        *not_the_dataset(
            "zip of something else", "dataset D: there is no LR/*.png and no HR/*.png"
        ),
    ),
    (
        made.zipped(made.pairs("a")),
        *not_the_dataset("zip with an image less", "dataset D: 1 images in it, expected 2"),
    ),
    (
        made.zipped({**made.pairs("a", "b"), "HR/b.png": made.QUOTA_PAGE}),
        *not_the_dataset(
            "zip with a page as image",
            "HR/b.png: cannot be read as an image (cannot identify image file 'b.png')",
        ),
    ),
]
ROWS = [
    BadInput(
        kind=3,
        given="zip bomb",
        prepare=fetch(made.altered(made.GOOD, size=0xFFFFFFF0)),
        answer=re.compile(
            r"^data/\.archives/a\.zip: \S+ kB would become 4\.29 GB and more, which no archive of "
            r"images does; nothing was unpacked; it was removed again\."
        ),
    ),
    *(BadInput(3, given, fetch(data), answer) for data, given, answer in WRONG),
    BadInput(
        kind=3,
        given="second file of an archive in several",
        prepare=fetch(bytes(range(128, 256)), "a.zip.002"),
        answer="data/.archives/a.zip.002: cannot be unpacked (it is one file of an archive in "
        f"several, which must be joined first); {REMOVED}",
    ),
    BadInput(
        kind=3,
        given="the user's own quota page",
        prepare=own_file(made.QUOTA_PAGE),
        answer=f"{ARCHIVE}: cannot be unpacked (it is an HTML page ('Quota exceeded')); {OWN}",
    ),
    BadInput(
        kind=3,
        given="lock file of another shape",
        prepare=recorded,
        answer="config/datasets.lock/S.json: not the hashes that passionsr fetch records; restore "
        "it from git",
    ),
    BadInput(
        kind=3,
        given="right archive after a quota page",
        prepare=after(made.QUOTA_PAGE),
        answer="data/S",
        status=0,
        made=FETCHED,
    ),
    BadInput(
        kind=3,
        given="right archive after another",
        prepare=after(made.zipped(made.pairs("a"))),
        answer="data/S",
        status=0,
        made=FETCHED,
    ),
    BadInput(
        kind=3,
        given="tar called a.zip",
        prepare=fetch(made.tarred(made.pairs("a", "b"))),
        answer="data/S",
        status=0,
        made=FETCHED,
    ),
]
