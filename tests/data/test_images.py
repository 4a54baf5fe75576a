"""The one rule for reading an image file: what is taken as it is, turned upright, or refused."""

import struct
import warnings

import numpy as np
import pytest
from image_files import chunk, noise, png, tiff
from PIL import Image, ImageCms, PngImagePlugin

from passionsr.data.images import check_png_name, colour_profile, read_uint8, write_uint8
from passionsr.utils.files import UserError

RGB = noise()


def picture(pixels=RGB, mode=None):
    return Image.fromarray(pixels if pixels.shape[-1] != 1 else pixels[..., 0]).convert(mode)


# -- taken as they are --------------------------------------------------------------------------

TAKEN = {
    "png": png(RGB),
    "interlaced": png(RGB, interlaced=True),
    "gamma": png(RGB, chunk(b"gAMA", struct.pack(">I", 100000))),
    "one px": png(RGB[:1, :1]),
    "tiff": tiff(RGB),
}


@pytest.mark.parametrize("name", TAKEN)
def test_rgb_of_8_bits_is_read_as_stored(tmp_path, name):
    path = tmp_path / "a.png"  # the content decides, not the suffix
    path.write_bytes(TAKEN[name])
    expected = RGB[:1, :1] if name == "one px" else RGB
    assert np.array_equal(read_uint8(path), expected)
    assert read_uint8(path).dtype == np.uint8


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", {}),
        (".bmp", {}),
        (".ppm", {}),
        (".tif", {}),
        (".tif", {"compression": "tiff_lzw"}),
        (".webp", {"lossless": True}),
    ],
)
def test_formats_without_loss(tmp_path, suffix, options):
    path = tmp_path / f"a{suffix}"
    picture().save(path, **options)
    assert np.array_equal(read_uint8(path), RGB)


def test_a_jpeg_with_another_suffix(tmp_path):
    picture().save(tmp_path / "a.png", format="JPEG")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "JPEG"
        assert np.array_equal(read_uint8(tmp_path / "a.png"), np.asarray(image))


def test_what_was_written_is_read(tmp_path):
    write_uint8(tmp_path / "a.PNG", RGB)
    assert np.array_equal(read_uint8(tmp_path / "a.PNG"), RGB)


# -- turned upright -----------------------------------------------------------------------------

UPRIGHT = {  # EXIF orientation: where the first row and the first column of the file belong
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_exif_orientation(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    picture().save(tmp_path / f"plain{suffix}", **options)
    picture().save(tmp_path / f"turned{suffix}", exif=exif, **options)
    expected = UPRIGHT[orientation](read_uint8(tmp_path / f"plain{suffix}"))
    assert np.array_equal(read_uint8(tmp_path / f"turned{suffix}"), expected)


def test_xmp_orientation(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    picture().save(tmp_path / "a.png", pnginfo=info)
    assert np.array_equal(read_uint8(tmp_path / "a.png"), np.rot90(RGB, -1))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none(tmp_path, value):
    exif = Image.Exif()
    exif[0x0112] = value
    picture().save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_uint8(tmp_path / "a.png"), RGB)


def test_damaged_exif_data(tmp_path):
    picture().save(tmp_path / "a.png", exif=b"Exif\0\0no directory of tags")
    assert np.array_equal(read_uint8(tmp_path / "a.png"), RGB)


# -- refused ------------------------------------------------------------------------------------

CONVERT = ", expected 8-bit RGB without alpha; convert it first"
TRANSPARENT = struct.pack(">HHH", *RGB[0, 0].tolist())
WIDE = np.array([[[255, 40255, 65535]]], np.uint16)
RAW = {
    "16 bits, PNG": (png(WIDE), "a channel has 16 bits" + CONVERT),
    "16 bits, TIFF": (tiff(WIDE), "a channel has 16 bits" + CONVERT),
    "16 bits, PPM": (
        b"P6 1 1 65535\n" + WIDE.astype(">u2").tobytes(),
        "the largest value is 65535 instead of 255" + CONVERT,
    ),
    "16 bits with alpha": (
        png(noise(channels=4, dtype=np.uint16), colour=6),
        "image mode is RGBA" + CONVERT,
    ),
    "16 bits, grey": (
        png(noise(channels=1, dtype=np.uint16), colour=0),
        "image mode is I;16" + CONVERT,
    ),
    "a fourth channel": (tiff(noise(channels=4), extra=[0]), "the channels are RGBX" + CONVERT),
    "alpha, TIFF": (tiff(noise(channels=4), extra=[2]), "image mode is RGBA" + CONVERT),
    "tRNS": (png(RGB, chunk(b"tRNS", TRANSPARENT)), "one colour is transparent (tRNS)" + CONVERT),
    "palette": (
        png(noise(channels=1) % 3, chunk(b"PLTE", bytes(range(9))), colour=3),
        "image mode is P" + CONVERT,
    ),
    "palette with transparency": (
        png(noise(channels=1) % 3, chunk(b"PLTE", bytes(9)), chunk(b"tRNS", b"\0\1"), colour=3),
        "image mode is P" + CONVERT,
    ),
    "20,000 px": (
        png(RGB, size=(20000, 20000)),
        "20000x20000 px are more than 178 megapixels; cut it into parts",
    ),
    "nothing": (b"", "the file is empty, expected an image; make or fetch it again"),
}


@pytest.mark.parametrize("name", RAW)
def test_refused_files(tmp_path, name):
    data, message = RAW[name]
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_uint8(path)
    assert str(caught.value) == f"{path}: {message}"


SAVED = {
    "grey": ("a.png", "L", {}, "image mode is L" + CONVERT),
    "1 bit": ("a.png", "1", {}, "image mode is 1" + CONVERT),
    "grey with alpha": ("a.png", "LA", {}, "image mode is LA" + CONVERT),
    "alpha": ("a.png", "RGBA", {}, "image mode is RGBA" + CONVERT),
    "alpha, WebP": ("a.webp", "RGBA", {"lossless": True}, "image mode is RGBA" + CONVERT),
    "CMYK": ("a.jpg", "CMYK", {}, "image mode is CMYK" + CONVERT),
    "grey JPEG": ("a.jpg", "L", {}, "image mode is L" + CONVERT),
    "float": ("a.tif", "F", {}, "image mode is F" + CONVERT),
    "Lab": ("a.tif", "LAB", {}, "image mode is LAB" + CONVERT),
    "JPEG 2000": ("a.jp2", "RGB", {}, "is a JPEG2000 file, expected PNG"),
    "GIF": ("a.gif", "RGB", {}, "is a GIF file, expected PNG"),
}


@pytest.mark.parametrize("name", SAVED)
def test_refused_kinds(tmp_path, name):
    file, mode, options, message = SAVED[name]
    colours = Image.fromarray(RGB)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        made = ImageCms.profileToProfile(colours, *profiles, outputMode="LAB")
    else:
        made = colours.convert("L").convert("F") if mode == "F" else colours.convert(mode)
    if mode == "RGBA":
        made.putalpha(128)
    made.save(tmp_path / file, **options)
    with pytest.raises(UserError) as caught:
        read_uint8(tmp_path / file)
    assert str(caught.value).startswith(f"{tmp_path / file}: {message}")


FRAMES = {"a.png": {}, "a.tif": {}, "a.webp": {"lossless": True}, "a.mpo": {}}


@pytest.mark.parametrize("file", FRAMES)
def test_several_frames_are_refused(tmp_path, file):
    """An animation, pages, or two views: which one is meant, nobody has said."""
    frames = [picture(), picture(RGB[::-1].copy()), picture(RGB[:, ::-1].copy())]
    frames[0].save(tmp_path / file, save_all=True, append_images=frames[1:], **FRAMES[file])
    with pytest.raises(UserError) as caught:
        read_uint8(tmp_path / file)
    assert str(caught.value) == (
        f"{tmp_path / file}: holds 3 images (frames or pages), expected one; save the one that is "
        "meant as a file of its own"
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".ppm", ".webp"])
def test_every_cut_is_noticed(tmp_path, suffix):
    """Wherever a download or a copy ended; the last bytes of some formats say nothing."""
    path = tmp_path / f"a{suffix}"
    Image.fromarray(noise(24, 24)).save(path)
    whole = path.read_bytes()
    for length in (1, 9, len(whole) // 3, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cannot be read as an image, perhaps truncated or"):
            read_uint8(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    data = bytearray(png(noise(24, 24)))
    data[len(data) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UserError, match="cannot be read as an image"):
        read_uint8(tmp_path / "a.png")


def test_what_is_no_image_file(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "pointer.png").write_text("version https://git-lfs.github.com/spec/v1\n")
    for name, message in {
        "none.png": "image not found",
        "folder.png": "is a folder, expected an image file",
        "pointer.png": "cannot be read as an image, perhaps truncated or of another kind",
    }.items():
        with pytest.raises(UserError) as caught:
            read_uint8(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {message}")


def test_large_images_are_read_without_a_warning(tmp_path, monkeypatch):
    """Pillow warns from half its limit on; that limit holds again afterwards."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    picture().save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_uint8(tmp_path / "a.png"), RGB)
    assert Image.MAX_IMAGE_PIXELS == 40


# -- profiles, names of outputs ----------------------------------------------------------------


def test_a_profile_goes_along(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for suffix in (".png", ".jpg", ".tif", ".webp"):
        picture().save(tmp_path / f"in{suffix}", icc_profile=profile)
        assert colour_profile(tmp_path / f"in{suffix}") == profile
    write_uint8(tmp_path / "out.png", RGB, profile)
    assert colour_profile(tmp_path / "out.png") == profile
    write_uint8(tmp_path / "none.png", RGB)
    assert colour_profile(tmp_path / "none.png") is None


@pytest.mark.parametrize("name", ["sr.jpg", "sr.jpeg", "sr.tiff", "sr", "sr.png.bak", ".png"])
def test_the_name_says_what_is_written(tmp_path, name):
    with pytest.raises(UserError, match="images are written as PNG; give a name that ends in"):
        write_uint8(tmp_path / name, RGB)
    assert not list(tmp_path.iterdir())
    check_png_name(tmp_path / "sr.Png")
