"""Reading images and label maps: the same pixels in every format, errors for damaged files."""

from __future__ import annotations

import os
import struct
import zlib

import cv2
import imagecodecs
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from cellseg.errors import InputError
from cellseg.read.tiff import read_labels
from cellseg.read.window import image_size, open_image, read_image
from tests.read.refusal import refusal as refusal_of

RNG = np.random.default_rng(1)
RGB = RNG.integers(0, 256, (37, 29, 3), np.uint8)
ALPHA = RNG.integers(0, 256, (37, 29, 1), np.uint8)
RGBA = np.concatenate([RGB, ALPHA], axis=2)
GREY = RGB[:, :, 0]
GREYS = np.repeat(GREY[:, :, None], 3, axis=2)
ON_WHITE = np.rint(255 - (255 - RGB.astype(float)) * ALPHA / 255)
LABELS = RNG.integers(0, 90, (37, 29))

RGB_TIFFS = {
    "plain": {},
    "strips": {"rowsperstrip": 5},
    "lzw with predictor": {"compression": "lzw", "predictor": True, "rowsperstrip": 8},
    "deflate": {"compression": "zlib"},
    "packbits": {"compression": "packbits"},
    "zstd": {"compression": "zstd"},
    "tiles": {"tile": (16, 16)},
    "compressed tiles": {"tile": (32, 16), "compression": "lzw", "predictor": True},
    "big-endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True, "byteorder": ">"},
}


def check(path, expected):
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert np.array_equal(image, expected)
    assert image_size(path) == expected.shape[:2]


@pytest.mark.parametrize("options", RGB_TIFFS.values(), ids=RGB_TIFFS)
def test_rgb_and_rgba_tiffs(tmp_path, options):
    tifffile.imwrite(tmp_path / "rgb.tif", RGB, photometric="rgb", **options)
    check(tmp_path / "rgb.tif", RGB)
    path = tmp_path / "rgba.tif"
    for extra, expected in (("unassalpha", ON_WHITE), ("unspecified", RGB)):
        tifffile.imwrite(path, RGBA, photometric="rgb", extrasamples=[extra], **options)
        check(path, expected)
    multiplied = np.concatenate([np.rint(RGB * (ALPHA / 255)).astype(np.uint8), ALPHA], axis=2)
    tifffile.imwrite(path, multiplied, photometric="rgb", extrasamples=["assocalpha"], **options)
    check(path, multiplied[:, :, :3] + (255 - ALPHA))


@pytest.mark.parametrize("writer", ["tif", "png"])
@pytest.mark.parametrize("largest", [0, 1, 254])
def test_an_alpha_that_is_nowhere_opaque_does_not_count(tmp_path, writer, largest):
    """Some programs write 0 or 1 for pixels that are to be seen."""
    path = tmp_path / f"image.{writer}"
    for factor, dtype in ((1, np.uint8), (257, np.uint16)):
        values = np.concatenate([RGB, ALPHA.astype(int) * largest // 255], axis=2)
        rgba = (values * factor).astype(dtype)
        if writer == "tif":
            tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["unassalpha"])
        else:
            path.write_bytes(imagecodecs.png_encode(rgba))
        check(path, RGB)


def test_an_alpha_of_16_or_12_bits(tmp_path):
    path = tmp_path / "image.tif"
    for top in (65535, 4095):
        deep = np.rint(RGBA * (top / 255)).astype(np.uint16)
        planes = np.moveaxis(deep, 2, 0)
        for pixels, layout in ((deep, "contig"), (planes, "separate")):
            alpha = {"planarconfig": layout, "extrasamples": ["unassalpha"]}
            tifffile.imwrite(path, pixels, photometric="rgb", **alpha)
            check(path, ON_WHITE)


@pytest.mark.parametrize("options", RGB_TIFFS.values(), ids=RGB_TIFFS)
def test_separate_planes(tmp_path, options):
    path = tmp_path / "planar.tif"
    multiplied = np.rint(RGB * (ALPHA / 255)).astype(np.uint8)
    for extra, colours, expected in (
        (["unspecified"], RGB, RGB),
        (["unassalpha"], RGB, ON_WHITE),
        (["assocalpha"], multiplied, multiplied + (255 - ALPHA)),
        (["unspecified", "unassalpha"], RGB, ON_WHITE),
    ):
        channels = [colours, *[255 - ALPHA] * (len(extra) - 1), ALPHA]
        planes = np.ascontiguousarray(np.moveaxis(np.concatenate(channels, axis=2), 2, 0))
        planar = {"planarconfig": "separate", "extrasamples": extra}
        tifffile.imwrite(path, planes, photometric="rgb", **planar, **options)
        check(path, expected)


def png_with(bits, colour, pixels, *chunks):
    """Return a PNG of two rows of two pixels, with chunks before the pixels."""
    header = struct.pack(">IIBBBBB", 2, 2, bits, colour, 0, 0, 0)
    content = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    sums = [struct.pack(">I", zlib.crc32(name + data)) for name, data in content]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + total
        for (name, data), total in zip(content, sums, strict=True)
    )


def test_a_transparent_colour_of_a_png_is_white(tmp_path, capfd):
    """Grey, RGB and a palette; in 16 bits, values that differ by 1 become the same grey."""
    path = tmp_path / "image.png"
    grey = [[0, 7], [255, 9]]
    palette = (b"PLTE", bytes([10, 20, 30, 40, 50, 60, 70, 80, 90]))
    for bits, colour, pixels, chunks, expected in (
        (8, 0, b"\0\0\7\0\xff\x09", [(b"tRNS", b"\0\0")], [[255, 7], [255, 9]]),
        (4, 0, b"\0\x0f\0\x21", [(b"tRNS", b"\0\0")], [[255, 255], [34, 17]]),
        (16, 0, b"\0\0\0\0\1\0\1\1\xff\xff", [(b"tRNS", b"\0\0")], [[255, 0], [1, 255]]),
        (
            *(8, 2, b"\0\1\2\3\4\5\6\0\1\2\4\1\2\3", [(b"tRNS", b"\0\1\0\2\0\3")]),
            [[[255, 255, 255], [4, 5, 6]], [[1, 2, 4], [255, 255, 255]]],
        ),
        (
            *(8, 3, b"\0\0\1\0\2\0", [palette, (b"tRNS", b"\x00\x80")]),
            [[[255, 255, 255], [147, 152, 157]], [[70, 80, 90], [255, 255, 255]]],
        ),
        # What is not valid makes nothing transparent.
        (8, 0, b"\0\0\7\0\xff\x09", [(b"tRNS", b"\1\0")], grey),
        (8, 0, b"\0\0\7\0\xff\x09", [(b"tRNS", b"\0")], grey),
        (8, 0, b"\0\0\7\0\xff\x09", [(b"tRNS", b"")], grey),
        (8, 0, b"\0\0\7\0\xff\x09", [(b"tRNS", b"\0\7")] * 2, [[0, 255], [255, 9]]),
        (
            *(8, 3, b"\0\0\1\0\2\0", [(b"tRNS", b"\0"), palette]),
            [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [10, 20, 30]]],
        ),
    ):
        path.write_bytes(png_with(bits, colour, pixels, *chunks))
        values = np.array(expected)
        check(path, values if values.ndim == 3 else np.repeat(values[:, :, None], 3, 2))
    assert capfd.readouterr() == ("", "")


def test_three_channels_tagged_as_grey(tmp_path):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, RGB, photometric="minisblack", planarconfig="contig")
    check(path, RGB)


@pytest.mark.parametrize("name", ["tif", "png", "bmp"])
def test_grey_is_repeated(tmp_path, name):
    PIL.Image.fromarray(GREY).save(tmp_path / f"grey.{name}")
    check(tmp_path / f"grey.{name}", GREYS)


@pytest.mark.parametrize("name", ["tif", "png"])
def test_grey_with_alpha(tmp_path, name):
    both = np.stack([GREY, ALPHA[:, :, 0]], axis=2)
    PIL.Image.fromarray(both, "LA").save(tmp_path / f"grey.{name}")
    check(tmp_path / f"grey.{name}", np.rint(255 - (255 - GREYS.astype(float)) * ALPHA / 255))


def test_white_is_zero(tmp_path):
    tifffile.imwrite(tmp_path / "white.tif", 255 - GREY, photometric="miniswhite")
    check(tmp_path / "white.tif", GREYS)


@pytest.mark.parametrize("writer", ["tif", "png"])
def test_16_bits_become_8_by_a_fixed_rule(tmp_path, writer):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    # round(v / 257), in integers: as 257 is odd, no value is halfway.
    rule = [(2 * value + 257) // 514 for value in range(65536)]
    expected = np.repeat(np.reshape(rule, (256, 256, 1)), 3, axis=2)
    path = tmp_path / f"deep.{writer}"
    for deep in (values, np.repeat(values[:, :, None], 3, axis=2)):
        if writer == "tif":
            tifffile.imwrite(path, deep, photometric="rgb" if deep.ndim == 3 else "minisblack")
        else:
            path.write_bytes(imagecodecs.png_encode(deep))
        check(path, expected)
        assert read_image(path)[0, 0, 0] == 0
        assert read_image(path)[-1, -1, 0] == 255


def test_a_window_of_a_16_bit_image_equals_the_whole(tmp_path):
    deep = RNG.integers(0, 3000, (40, 40, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "whole.tif", deep, photometric="rgb")
    tifffile.imwrite(tmp_path / "window.tif", deep[5:20, 8:31], photometric="rgb")
    whole, window = read_image(tmp_path / "whole.tif"), read_image(tmp_path / "window.tif")
    assert np.array_equal(whole[5:20, 8:31], window)


def test_png_and_bmp_are_read_exactly(tmp_path):
    PIL.Image.fromarray(RGBA).save(tmp_path / "rgba.png")
    check(tmp_path / "rgba.png", ON_WHITE)
    PIL.Image.fromarray(RGB).save(tmp_path / "rgb.bmp")
    check(tmp_path / "rgb.bmp", RGB)
    palette = PIL.Image.fromarray(RGB).quantize(16)
    palette.save(tmp_path / "palette.png")
    check(tmp_path / "palette.png", np.asarray(palette.convert("RGB")))


def test_the_format_is_that_of_the_content_not_the_name(tmp_path):
    PIL.Image.fromarray(RGB).save(tmp_path / "image.tif", format="PNG")
    check(tmp_path / "image.tif", RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations(tmp_path, orientation):
    # Four flat quarters survive the compression. Their places follow from the EXIF
    # standard: orientation 6 shows the stored left edge on top, and so on.
    stored = np.kron([[10, 90], [170, 250]], np.ones((16, 32))).astype(np.uint8)
    exif = PIL.Image.Exif()
    exif[274] = orientation
    path = tmp_path / "photo.jpg"
    PIL.Image.fromarray(stored).save(path, exif=exif, quality=100)
    shown = {
        1: [[10, 90], [170, 250]],
        2: [[90, 10], [250, 170]],
        3: [[250, 170], [90, 10]],
        4: [[170, 250], [10, 90]],
        5: [[10, 170], [90, 250]],
        6: [[170, 10], [250, 90]],
        7: [[250, 90], [170, 10]],
        8: [[90, 250], [10, 170]],
    }[orientation]
    height, width = (32, 64) if orientation < 5 else (64, 32)
    image = read_image(path)
    assert image_size(path) == image.shape[:2] == (height, width)
    corners = image[[0, 0, -1, -1], [0, -1, 0, -1], 0].reshape(2, 2).astype(int)
    assert np.abs(corners - shown).max() <= 2


def test_an_unknown_exif_orientation_is_ignored(tmp_path):
    exif = PIL.Image.Exif()
    exif[274] = 9
    PIL.Image.fromarray(RGB).save(tmp_path / "photo.jpg", exif=exif)
    assert image_size(tmp_path / "photo.jpg") == read_image(tmp_path / "photo.jpg").shape[:2]


@pytest.mark.parametrize("orientation", range(10))
def test_other_images_with_an_orientation_are_read_as_stored_and_noted(tmp_path, orientation):
    exif = PIL.Image.Exif()
    exif[274] = orientation
    PIL.Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    *before, pixels, end = png_chunks((tmp_path / "a.png").read_bytes())
    at = [chunk[4:8] for chunk in before].index(b"eXIf")
    late = [*before[:at], *before[at + 1 :], pixels, before[at], end]
    (tmp_path / "late.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(late))
    tags = {"extratags": [(274, "H", 1, orientation)]}
    for name, options in (("a", {}), ("tiled", {"tile": (16, 16), "compression": "zlib"})):
        tifffile.imwrite(tmp_path / f"{name}.tif", RGB, photometric="rgb", **tags, **options)
    for name in ("a.png", "late.png", "a.tif", "tiled.tif"):
        check(tmp_path / name, RGB)
        with open_image(tmp_path / name) as image:
            is_noted = any("as stored" in note for note in image.notes)
        assert is_noted == (orientation in range(2, 9)), name


def png_chunks(data):
    chunks, at = [], 8
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        chunks.append(data[at:end])
        at = end
    return chunks


@pytest.mark.parametrize("orientation", [1, 3])
def test_a_turned_jpeg_is_noted(tmp_path, orientation):
    exif = PIL.Image.Exif()
    exif[274] = orientation
    PIL.Image.fromarray(RGB).save(tmp_path / "photo.jpg", exif=exif)
    with open_image(tmp_path / "photo.jpg") as image:
        assert [("turned" in note) for note in image.notes] == [True] * (orientation == 3)


def test_a_png_with_a_long_text(tmp_path):
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("history", "x" * 2_000_000, zip=True)
    PIL.Image.fromarray(RGB).save(tmp_path / "image.png", pnginfo=text)
    check(tmp_path / "image.png", RGB)


def test_a_png_that_does_not_begin_with_its_size(tmp_path):
    path = tmp_path / "image.png"
    PIL.Image.fromarray(RGB).save(path)
    data = path.read_bytes()
    for bad in (data[:12] + b"tEXt" + data[16:], data[:16] + bytes(8) + data[24:], data[:20]):
        path.write_bytes(bad)
        assert "damaged" in refusal(image_size, path)
        assert "damaged" in refusal(read_image, path)


def test_one_pixel(tmp_path):
    tifffile.imwrite(tmp_path / "one.tif", RGB[:1, :1], photometric="rgb")
    check(tmp_path / "one.tif", RGB[:1, :1])
    tifffile.imwrite(tmp_path / "label.tif", np.full((1, 1), 7.0))
    assert read_labels(tmp_path / "label.tif").tolist() == [[7.0]]


@pytest.mark.parametrize(
    "dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]
)
@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "predictor": True}])
def test_label_maps_of_every_number_type(tmp_path, dtype, options):
    if options and dtype in ("i8", "u8"):
        options = {"compression": "zlib"}
    tifffile.imwrite(tmp_path / "class1.tif", LABELS.astype(dtype), **options)
    labels = read_labels(tmp_path / "class1.tif")
    assert labels.dtype == np.dtype(dtype)
    assert np.array_equal(labels, LABELS)


def test_a_label_map_of_one_bit_has_one_cell(tmp_path):
    tifffile.imwrite(tmp_path / "class1.tif", LABELS > 40)
    labels = read_labels(tmp_path / "class1.tif")
    assert labels.dtype == bool
    assert np.array_equal(labels, LABELS > 40)


def test_a_thumbnail_as_large_as_the_image_of_a_small_slide(tmp_path):
    """As an SVS has: the image in tiles, then the thumbnail in strips."""
    path = tmp_path / "a.svs"
    thumbnail = 255 - RGB
    with tifffile.TiffWriter(path) as tiff:
        for pixels, how in ((RGB, {"tile": (16, 16)}), (thumbnail, {"rowsperstrip": 8})):
            description = "Aperio Image Library v11.2.1\r\n|MPP = 0.25"
            tiff.write(pixels, photometric="rgb", metadata=None, description=description, **how)
    assert (read_image(path) == RGB).all()


def test_thumbnails_in_the_file_are_ignored(tmp_path):
    path = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(RGB, photometric="rgb", metadata=None)
        tiff.write(RGB[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
        tiff.write(RGB[::3, ::3], photometric="rgb", metadata=None)
    check(path, RGB)


@pytest.mark.parametrize("flag", [0, 1])
@pytest.mark.parametrize("divisor", [2, 3, 7])
def test_a_thumbnail_as_the_first_page_is_ignored(tmp_path, flag, divisor):
    """By its flag, or as another page is its enlargement."""
    path = tmp_path / "thumbnail.tif"
    thumbnail = np.ascontiguousarray(RGB[::divisor, ::divisor])
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(thumbnail, photometric="rgb", subfiletype=flag, metadata=None)
        tiff.write(RGB, photometric="rgb", metadata=None)
    check(path, RGB)


def test_a_larger_page_of_another_shape_is_not_the_image(tmp_path):
    """Such as the macro image of a slide, of which this is a crop."""
    path = tmp_path / "crop.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(RGB, photometric="rgb", metadata=None)
        tiff.write(np.zeros((90, 240, 3), np.uint8), photometric="rgb", metadata=None)
    check(path, RGB)


@pytest.mark.parametrize(
    ("shape", "options", "is_noted"),
    [
        ((30, 30), {}, True),
        ((90, 240), {}, True),
        ((33, 26), {}, True),  # no thumbnail or level is so large
        (RGB.shape[:2], {"photometric": "minisblack"}, True),
        (RGB.shape[:2], {"photometric": "mask", "subfiletype": 4}, False),
        ((90, 240), {"subfiletype": 1}, False),  # says that it is reduced
        ((24, 18), {}, False),  # a thumbnail
        ((8, 18), {}, False),  # a label or another photo
        ((1, 1), {}, False),
    ],
)
@pytest.mark.parametrize("main", [{}, {"tile": (16, 16)}])
def test_pages_that_show_something_else_are_noted(tmp_path, shape, options, is_noted, main):
    path = tmp_path / "pages.tif"
    pixels = np.zeros(shape if "photometric" in options else (*shape, 3), np.uint8)
    if options.get("photometric") == "mask":
        pixels = pixels.astype(bool)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(RGB, photometric="rgb", metadata=None, **main)
        tiff.write(pixels, **{"photometric": "rgb", "metadata": None} | options)
    with open_image(path) as image:
        assert np.array_equal(image.read_all(), RGB)
    assert bool(image.notes) == is_noted


@pytest.mark.parametrize(
    ("name", "flag", "n_levels", "is_noted"),
    [
        ("region 2", 0, 1, True),
        ("label 2", 0, 1, True),
        ("macro image", 0, 1, False),
        ("Label", 0, 1, False),
        ("region 2", 1, 2, False),  # says that it is reduced
        (None, 0, 2, False),  # is not in OME-XML
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_a_second_image_of_ome_is_no_level(tmp_path, name, flag, n_levels, is_noted, order):
    """Though it has the proportions of the first, and both are tiled."""
    path = tmp_path / "images.tif"
    second = np.zeros((18, 14, 3), np.uint8)
    images = [(RGB, "region 1", 0), (second, name, flag)][::order]
    tags = [
        f"<Image Name='{each}'><Pixels SizeX='{shown.shape[1]}' SizeY='{shown.shape[0]}'/></Image>"
        for shown, each, _ in images
        if each
    ]
    xml = f"<OME>{''.join(tags)}</OME>"
    with tifffile.TiffWriter(path) as tiff:
        for pixels, _, subfiletype in images:
            tiff.write(
                pixels, photometric="rgb", tile=(16, 16), subfiletype=subfiletype,
                description=xml, metadata=None,
            )  # fmt: skip
    with open_image(path) as image:
        assert np.array_equal(image.read_all(), RGB)
        assert image.levels == ((37, 29), (18, 14))[:n_levels]
        assert any("several images" in note for note in image.notes) == is_noted


def test_levels_of_an_image_of_ome_with_a_second_one(tmp_path):
    """Both written by tifffile, with levels as sub-images of the proportions of the other."""
    path = tmp_path / "images.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for pixels in (RGB, np.zeros((18, 14, 3), np.uint8)):
            options = {"photometric": "rgb", "tile": (16, 16)}
            tiff.write(pixels, subifds=1, metadata={"axes": "YXS"}, **options)
            tiff.write(pixels[::2, ::2], subfiletype=1, **options)
    half = RGB[::2, ::2]
    with open_image(path, 1) as image:
        assert image.levels == ((37, 29), (19, 15))
        assert np.array_equal(image.read_all(), half)
        assert any("several images" in note for note in image.notes)
    labels = tmp_path / "labels.ome.tif"
    with tifffile.TiffWriter(labels, ome=True) as tiff:
        for shape in ((37, 29), (18, 14)):
            tiff.write(np.ones(shape, np.uint16), metadata={"axes": "YX"})
    assert "several images" in refusal(read_labels, labels)


def jpeg(path, **options):
    pixels = np.cumsum(RNG.integers(-9, 10, (96, 128, 3)), axis=1).clip(0, 255).astype(np.uint8)
    pixels = pixels if options.pop("colour", True) else pixels[:, :, 0]
    PIL.Image.fromarray(pixels).save(path, "JPEG", quality=90, **options)
    return path.read_bytes()


def without_the_middle(data):
    middle, hole = len(data) // 2, len(data) // 8
    return data[:middle] + bytes(hole) + data[middle + hole :]


def with_height(data, change):
    start = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    height = int.from_bytes(data[start : start + 2], "big") + change
    return data[:start] + height.to_bytes(2, "big") + data[start + 2 :]


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 4}, {"colour": 0}],
    ids=str,
)
def test_jpegs_with_damaged_pixels(tmp_path, options):
    pytest.importorskip("simplejpeg")
    path = tmp_path / "a.jpg"
    data = jpeg(path, **options)
    with PIL.Image.open(path) as picture:
        pixels = np.array(picture.convert("RGB"))
    filled = data[:-2] + bytes(30) + data[-2:]
    for valid in (data, data + bytes(3), filled, filled + data):
        path.write_bytes(valid)
        check(path, pixels)
    damaged = [without_the_middle(data), with_height(data, 64), with_height(data, -48)]
    damaged += [data[: len(data) // 2] + b"\xff\xd9", data[:-2] + bytes(range(1, 30)) + data[-2:]]
    for invalid in damaged:
        path.write_bytes(invalid)
        assert "damaged" in refusal(read_image, path)


def refusal(read, path):
    line = refusal_of(read, path)
    assert line.startswith(f"{path}: ")
    return line


BAD_IMAGES = {
    "float": (RGB.astype(np.float32), {"photometric": "rgb"}, "32-bit float32 pixels"),
    "32 bits": (GREY.astype(np.uint32), {}, "32-bit uint32 pixels"),
    "signed": (GREY.astype(np.int8), {}, "8-bit int8 pixels"),
    "one bit": (GREY > 99, {}, "1-bit bool pixels"),
    "stack": (np.stack([GREY, GREY]), {"photometric": "minisblack"}, "a stack of 2 images"),
    "CMYK": (RGBA, {"photometric": "separated"}, "SEPARATED with 4 channels"),
    "palette": (
        GREY,
        {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
        "PALETTE with 1 channels",
    ),
    "four channels": (
        RGBA,
        {"photometric": "minisblack", "planarconfig": "contig"},
        "MINISBLACK with 4 channels",
    ),
    "YCbCr without JPEG": (
        RGB,
        {"photometric": "ycbcr", "subsampling": (1, 1), "compression": "zlib"},
        "YCBCR with 3 channels",
    ),
    "volume": (
        np.stack([GREY] * 16),
        {"photometric": "minisblack", "volumetric": True, "tile": (16, 16, 16)},
        "a volume",
    ),
}


@pytest.mark.parametrize(("pixels", "options", "found"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_images_that_are_not_8_or_16_bit_grey_or_rgb(tmp_path, pixels, options, found):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, pixels, **options)
    assert found in refusal(read_image, path)
    assert found in refusal(image_size, path)


def test_label_maps_of_several_images(tmp_path):
    path = tmp_path / "class1.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(LABELS, metadata=None)
        tiff.write(LABELS[:-4], metadata=None)
    assert "several images" in refusal(read_labels, path)


BAD_LABELS = {
    "RGB": (RGB, {"photometric": "rgb"}, "3 channels"),
    "complex": (LABELS.astype(np.complex64), {}, "complex numbers"),
    "stack": (np.stack([GREY] * 3), {"photometric": "minisblack"}, "a stack of 3 images"),
    "JPEG": (GREY, {"photometric": "minisblack", "compression": "jpeg"}, "compressed as JPEG"),
}


@pytest.mark.parametrize(("pixels", "options", "found"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_label_maps_that_are_not_one_value_per_pixel(tmp_path, pixels, options, found):
    path = tmp_path / "class1.tif"
    tifffile.imwrite(path, pixels, **options)
    assert found in refusal(read_labels, path)


@pytest.mark.parametrize("codec", [33003, 33005, 34712, 22610, 34934, 50001, 50002, 52546, 34887])
def test_label_maps_in_lossy_codecs(tmp_path, codec):
    path = tmp_path / "class1.tif"
    tifffile.imwrite(path, LABELS.astype(np.uint8), compression="zlib")
    data = bytearray(path.read_bytes())
    at = tags_of(path)[0][259][1]  # Compression
    data[at : at + 2] = codec.to_bytes(2, "little")
    path.write_bytes(data)
    name = tifffile.COMPRESSION(codec).name
    assert f"compressed as {name}" in refusal(read_labels, path)


@pytest.mark.parametrize("codec", ["png", "zstd", "lzma", "packbits"])
def test_label_maps_in_lossless_codecs(tmp_path, codec):
    tifffile.imwrite(tmp_path / "class1.tif", LABELS.astype(np.uint8), compression=codec)
    assert np.array_equal(read_labels(tmp_path / "class1.tif"), LABELS)


@pytest.mark.parametrize("name", ["large.png", "large.bmp"])
def test_pictures_of_any_size(tmp_path, name):
    """More pixels than Pillow's default limit."""
    PIL.Image.new("1", (14_000, 13_000)).save(tmp_path / name)
    assert image_size(tmp_path / name) == (13_000, 14_000)


@pytest.mark.parametrize("read", [read_image, image_size, read_labels])
def test_files_that_are_no_images(tmp_path, read):
    assert "no such file" in refusal(read, tmp_path / "absent.tif")
    assert "a folder" in refusal(read, tmp_path)
    path = tmp_path / "file.tif"
    path.write_bytes(b"")
    assert "an empty file" in refusal(read, path)
    path.write_text("These are the masks.")
    assert "not a TIFF" in refusal(read, path)
    path.write_bytes(b"II*\0")
    assert "damaged" in refusal(read, path)
    path.write_bytes(b"II*\0\0\0\0\0")
    assert "damaged" in refusal(read, path)


def test_a_png_is_no_label_map(tmp_path):
    PIL.Image.fromarray(GREY).save(tmp_path / "class1.png")
    assert "not a TIFF" in refusal(read_labels, tmp_path / "class1.png")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every file")
def test_no_permission_to_read(tmp_path):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, RGB, photometric="rgb")
    path.chmod(0)
    assert "Permission denied" in refusal(read_image, path)


def sample_files(folder):
    """Yield small files of many types, with the function that reads each."""
    small, labels = np.ascontiguousarray(RGBA[:9, :7]), LABELS[:9, :7].astype(np.float64)
    lzw = {"compression": "lzw", "predictor": True, "rowsperstrip": 4}
    tifffile.imwrite(
        folder / "lzw.tif", small, photometric="rgb", extrasamples=["unassalpha"], **lzw
    )
    tifffile.imwrite(folder / "labels.tif", labels)
    tifffile.imwrite(folder / "strips.tif", labels, rowsperstrip=2, compression="zlib")
    tifffile.imwrite(folder / "tiles.tif", small[:, :, :3], photometric="rgb", tile=(16, 16))
    tifffile.imwrite(folder / "big.tif", small[:, :, :3], photometric="rgb", bigtiff=True)
    # Pillow writes the directory first or last, depending on the compression.
    picture = PIL.Image.fromarray(small)
    picture.save(folder / "pillow.tif")
    picture.save(folder / "pillow_lzw.tif", compression="tiff_lzw")
    picture.save(folder / "picture.png")
    picture.convert("RGB").save(folder / "photo.jpg")
    picture.convert("RGB").save(folder / "picture.bmp")
    for path in sorted(folder.iterdir()):
        yield path, read_labels if path.stem in ("labels", "strips") else read_image


def test_files_that_are_cut_off_are_errors_or_read_the_same(tmp_path):
    cut = tmp_path / "cut"
    folder = tmp_path / "whole"
    folder.mkdir()
    for path, read in sample_files(folder):
        whole, data = read(path), path.read_bytes()
        # Every third byte, and each of the first and the last, where headers and ends are.
        near = {*range(24), *range(len(data) - 24, len(data))}
        for length in sorted(near | set(range(0, len(data), 3))):
            cut.write_bytes(data[:length])
            try:
                part = read(cut)
            except InputError:
                pass
            else:
                # Only the end of a PNG or JPEG can be missing.
                assert np.array_equal(part, whole), (path.name, length)
                assert length >= len(data) - 16, (path.name, length)


def test_garbled_bytes_are_read_or_an_input_error(tmp_path):
    garbled = tmp_path / "garbled"
    folder = tmp_path / "whole"
    folder.mkdir()
    rng = np.random.default_rng(3)
    n_errors = 0
    for path, read in sample_files(folder):
        data = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(150):
            bad = data.copy()
            bad[rng.integers(0, len(bad), 3)] = rng.integers(0, 256, 3)
            garbled.write_bytes(bad.tobytes())
            for function in (read, image_size):
                try:
                    function(garbled)
                except InputError:
                    n_errors += 1
    assert n_errors > 100


def tags_of(path):
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        return {tag.code: (tag.offset, tag.valueoffset) for tag in page.tags}, page.databytecounts


def test_strips_that_are_missing_or_end_early(tmp_path):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", compression="lzw", rowsperstrip=10)
    data = path.read_bytes()
    tags, counts = tags_of(path)
    at = tags[279][1]  # StripByteCounts
    width = 4 if max(counts) > 65535 else 2
    for count, found in ((0, "missing"), (counts[1] // 2, "damaged")):
        bad = bytearray(data)
        bad[at + width : at + 2 * width] = count.to_bytes(width, "little")
        path.write_bytes(bad)
        assert found in refusal(read_image, path)


def write_jpeg(path, pixels, writer):
    """Write a TIFF of JPEG or JPEG 2000, in several strips or tiles."""
    if writer == "Pillow":  # libtiff: the tables of all strips are in a tag
        PIL.Image.fromarray(pixels).save(path, compression="jpeg", tiffinfo={278: 64})
    elif writer == "OpenCV":
        # The same, and writes BGR.
        options = [cv2.IMWRITE_TIFF_COMPRESSION, 7, cv2.IMWRITE_TIFF_ROWSPERSTRIP, 64]
        cv2.imwrite(str(path), pixels[:, :, ::-1], options)
    else:
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 48), compression=writer)


@pytest.mark.parametrize("writer", ["Pillow", "OpenCV", "jpeg", "jpeg2000"])
def test_jpegs_that_end_in_zeros(tmp_path, writer):
    path = tmp_path / "image.tif"
    pixels = RNG.integers(0, 256, (150, 100, 3), np.uint8)
    for flat in (np.zeros_like(pixels), np.full_like(pixels, 255)):
        write_jpeg(path, flat, writer)
        assert read_image(path).shape == flat.shape  # zeros within, if any, are fine
    write_jpeg(path, pixels, writer)
    whole, data = read_image(path), path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        pieces = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    assert len(pieces) > 1
    for start, count in pieces:
        half = count // 2
        path.write_bytes(data[: start + half] + bytes(count - half) + data[start + count :])
        assert "damaged" in refusal(read_image, path)
        with open_image(path) as image, pytest.raises(InputError, match="damaged"):
            image.read((0, 0, 100, 150))
    start, count = pieces[-1]
    unmarked = bytearray(data)
    unmarked[start + count - 2 : start + count] = b"\0\0"
    path.write_bytes(unmarked)
    assert np.array_equal(read_image(path), whole)


def test_an_unknown_planar_configuration(tmp_path):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, RGB, photometric="rgb")
    data = bytearray(path.read_bytes())
    data[tags_of(path)[0][284][1]] = 5  # PlanarConfiguration
    path.write_bytes(data)
    assert "planar configuration 5" in refusal(read_image, path)


def test_fewer_strips_than_rows_need(tmp_path):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", rowsperstrip=37)
    data = bytearray(path.read_bytes())
    at = tags_of(path)[0][278][1]  # RowsPerStrip
    data[at : at + 2] = (10).to_bytes(2, "little")
    path.write_bytes(data)
    assert "1 pieces of pixels, expected 4" in refusal(read_image, path)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_any_size_in_any_strips(tmp_path_factory, height, width, rows, compress):
    path = tmp_path_factory.mktemp("any") / "image.tif"
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    options = {"compression": "lzw", "predictor": True} if compress else {}
    tifffile.imwrite(path, pixels, photometric="rgb", rowsperstrip=rows, **options)
    check(path, pixels)


@pytest.mark.parametrize("filled_up_with", [0, 65535])
def test_bits_in_use_are_those_of_the_image(tmp_path, filled_up_with):
    """Not of what fills up its last tiles."""
    pixels = np.full((68, 68, 3), 3000, np.uint16)
    filled = np.full((128, 128, 3), filled_up_with, np.uint16)
    filled[:68, :68] = pixels
    tiles = [filled[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    path = tmp_path / "tiled.tif"
    tifffile.imwrite(
        path, iter(tiles), shape=pixels.shape, dtype=np.uint16, photometric="rgb", tile=(64, 64)
    )
    with open_image(path) as image:
        assert image.bits == 12
        assert (image.read_all() == round(255 * 3000 / 4095)).all()


def test_a_mark_in_an_image_that_was_looked_at_as_a_whole_is_no_warning(tmp_path, caplog):
    pixels = np.full((2000, 2000, 3), 3000, np.uint16)
    pixels[:20, :150] = 60000  # 0.075 % of all, and 4.6 % of the window
    for name, options in (("stored.tif", {}), ("tiled.tif", {"tile": (256, 256)})):
        tifffile.imwrite(tmp_path / name, pixels, photometric="rgb", **options)
        with open_image(tmp_path / name) as image:
            assert image.read((0, 0, 256, 256))[100, 100].tolist() == [187] * 3
            assert image.bits == 12
    assert not caplog.text


CELLS = np.random.default_rng(0).integers(0, 256, (60, 50), np.uint8)


@pytest.mark.parametrize("kind", ["unspecified", "unassalpha"])
@pytest.mark.parametrize(
    ("channel", "is_noted"),
    [
        (np.full_like(CELLS, 255), False),
        (np.zeros_like(CELLS), False),
        (CELLS % 2, False),
        (np.where(CELLS > 99, 255, 0), False),
        (np.where(CELLS > 99, 255, np.where(CELLS > 80, 128, 0)), False),  # smooth edges
        (CELLS, True),
        (np.where(CELLS > 200, CELLS - 99, 0), True),
    ],
    ids=["opaque", "none", "0 and 1", "sharp", "smooth", "dye", "dye on black"],
)
@pytest.mark.parametrize("colours", [1, 3])
def test_channels_that_are_not_read_are_noted(tmp_path, kind, channel, is_noted, colours):
    pixels = np.stack([CELLS] * colours + [channel.astype(np.uint8)], axis=-1)
    for how in ({}, {"compression": "zlib", "tile": (32, 32)}):
        photometric = "rgb" if colours == 3 else "minisblack"
        tifffile.imwrite(
            tmp_path / "x.tif", pixels, photometric=photometric, planarconfig="contig",
            extrasamples=[kind], **how,
        )  # fmt: skip
        with open_image(tmp_path / "x.tif") as image:
            assert any("channels besides" in note for note in image.notes) == is_noted


def test_separate_planes_that_are_not_read_are_noted(tmp_path):
    for n, colours in ((2, 1), (3, 3), (4, 3)):
        path, extra = tmp_path / f"{n}.tif", ["unspecified"] * (n - colours)
        tifffile.imwrite(
            path, np.stack([CELLS] * n), photometric="rgb" if colours == 3 else "minisblack",
            planarconfig="separate", extrasamples=extra,
        )  # fmt: skip
        with open_image(path) as image:
            assert any("channels besides" in note for note in image.notes) == (n > colours)
