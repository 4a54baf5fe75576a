"""Archives of every kind that a download can bring."""

import io
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image

# Offsets of fields in a local and in a central header of a zip: flags, method, unpacked size.
LOCAL, CENTRAL = (6, 8, 22), (8, 10, 24)
QUOTA_PAGE = b"<!DOCTYPE html>\n<html><head><title>Quota\n exceeded</title></head></html>"


def png(side=8, seed=0):
    """The bytes of a random RGB image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def pairs(*names):
    """Files of a small dataset: LR of 8 px and HR of 32 px."""
    return {
        f"{kind}/{name}.png": png(side, seed)
        for seed, name in enumerate(names)
        for kind, side in (("LR", 8), ("HR", 32))
    }


def zipped(files, method=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def tarred(files, mode="w:gz"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def altered(data, flags=None, method=None, size=None):
    """A zip whose headers say something else of every member."""
    changed = bytearray(data)
    for signature, offsets in ((b"PK\x03\x04", LOCAL), (b"PK\x01\x02", CENTRAL)):
        at = data.find(signature)
        while at >= 0:
            fields = zip(offsets, ("<H", "<H", "<I"), (flags, method, size), strict=True)
            for offset, form, value in fields:
                if value is not None:
                    struct.pack_into(form, changed, at + offset, value)
            at = data.find(signature, at + 1)
    return bytes(changed)


def last_of_several(data):
    """A zip that says there is one file before it (a.z01)."""
    end = data.rfind(b"PK\x05\x06")
    return data[: end + 4] + struct.pack("<HH", 1, 1) + data[end + 8 :]


def corrupted(data):
    """A zip in which one byte of the last member's content is another."""
    at = data.rfind(b"IEND")
    return data[: at - 20] + bytes([data[at - 20] ^ 1]) + data[at - 19 :]


GOOD = zipped(pairs("a", "b"))
DEFLATED = zipped(pairs("a", "b"), zipfile.ZIP_DEFLATED)
