"""Image files that Pillow cannot write: any PNG and TIFF layout, byte by byte."""

import struct
import zlib

import numpy as np

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # PNG colour type -> samples of a pixel
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
         (0, 1, 1, 2))  # fmt: skip


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels, *more, size=None, colour=2, interlaced=False):
    """(H, W, channels) uint8 or uint16 -> PNG; more: chunks before the data; size: a lie."""
    height, width = pixels.shape[:2]
    assert pixels.shape[2] == CHANNELS[colour]
    stored = pixels.astype(pixels.dtype.newbyteorder(">"))
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [stored[y::dy, x::dx] for x, y, dx, dy in passes]
    raw = b"".join(b"\0" + line.tobytes() for part in parts if part.size for line in part)
    width, height = size or (width, height)
    depth = 8 * pixels.dtype.itemsize
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def tiff(pixels, extra=()):
    """(H, W, samples) uint8 or uint16 -> RGB TIFF, uncompressed; extra: ExtraSamples."""
    height, width, samples = pixels.shape
    bits = [8 * pixels.dtype.itemsize] * samples
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    tags = {
        256: ("H", [width]), 257: ("H", [height]), 258: ("H", bits), 259: ("H", [1]),
        262: ("H", [2]), 273: ("I", [0]), 277: ("H", [samples]), 278: ("H", [height]),
        279: ("I", [len(data)]), 338: ("H", list(extra)),
    }  # fmt: skip
    tags = {tag: entry for tag, entry in tags.items() if entry[1]}
    behind = 8 + 2 + 12 * len(tags) + 4  # of the header and the directory
    sizes = {t: struct.calcsize(f"{len(v)}{kind}") for t, (kind, v) in tags.items()}
    tags[273] = ("I", [behind + sum(size for size in sizes.values() if size > 4)])
    entries, heap = b"", b""
    for tag, (kind, values) in tags.items():
        packed = struct.pack(f"<{len(values)}{kind}", *values)
        if len(packed) > 4:
            packed, heap = struct.pack("<I", behind + len(heap)), heap + packed
        entries += struct.pack("<HHI", tag, {"H": 3, "I": 4}[kind], len(values))
        entries += packed.ljust(4, b"\0")
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8) + directory + heap + data


def noise(height=6, width=9, channels=3, dtype=np.uint8):
    """Pixels of which no two are alike, so that every change shows."""
    top = np.iinfo(dtype).max + 1
    return np.random.default_rng(7).integers(0, top, (height, width, channels), dtype=dtype)
