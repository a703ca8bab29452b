"""Reading window by window: the same pixels as the whole image, at the cost of the window."""

from __future__ import annotations

import os
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.messages import collect_warnings
from cellseg.read.window import from_array, open_image, read_image
from tests.read.refusal import refusal as refusal_of

RNG = np.random.default_rng(2)
HEIGHT, WIDTH = 75, 53
MAPS = Path("/proc/self/maps")
RGB = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
RGBA = np.concatenate([RGB, RNG.integers(0, 256, (HEIGHT, WIDTH, 1), np.uint8)], axis=2)
GREY = RGB[:, :, 0]
GREYS = np.repeat(GREY[:, :, None], 3, axis=2)
CLEAR = 1 - RGBA[:, :, 3:] / 255
# 16-bit values within 128 of 257 v become the 8-bit value v.
DEEP = (RGBA.astype(int) * 257 + RNG.integers(-128, 129, RGBA.shape)).clip(0, 65535)
DEEP = DEEP.astype(np.uint16)

TILES = {"tile": (32, 16)}
STRIPS = {"rowsperstrip": 10}
LZW = {"compression": "lzw", "predictor": True}
ZIP = {"compression": "zlib"}
LAYOUTS = {
    "one strip": {},
    "one compressed strip": {"rowsperstrip": HEIGHT} | ZIP,
    "strips": STRIPS,
    "compressed strips": STRIPS | LZW,
    "a row a strip": {"rowsperstrip": 1} | ZIP,
    "tiles": TILES,
    "compressed tiles": TILES | LZW,
    "a tile larger than the image": {"tile": (128, 128)} | ZIP,
    "big-endian": {"byteorder": ">"},
    "big-endian tiles": {"byteorder": ">"} | TILES | LZW,
    "BigTIFF": {"bigtiff": True} | TILES | ZIP,
}
ALPHA = {"photometric": "rgb", "extrasamples": ["unassalpha"]}
COLOURS = {
    "RGB": (RGB, {"photometric": "rgb"}),
    "16-bit RGB": (DEEP[:, :, :3], {"photometric": "rgb"}),
}
TRANSPARENT = {
    "RGBA": (RGBA, ALPHA),
    "RGBA in planes": (np.moveaxis(RGBA, 2, 0), ALPHA | {"planarconfig": "separate"}),
    "16-bit planes": (np.moveaxis(DEEP, 2, 0), ALPHA | {"planarconfig": "separate"}),
}
GREY_ALPHA = {"photometric": "minisblack", "extrasamples": ["unassalpha"]}
GREYSCALES = {
    "grey": (GREY, {"photometric": "minisblack"}),
    "white is zero": (255 - GREY, {"photometric": "miniswhite"}),
    "16-bit white is zero": (65535 - DEEP[:, :, 0], {"photometric": "miniswhite"}),
}
GREY_AND_ALPHA = {
    "grey and alpha": (RGBA[:, :, ::3], GREY_ALPHA | {"planarconfig": "contig"}),
    "grey and alpha in planes": (
        np.moveaxis(RGBA[:, :, ::3], 2, 0),
        GREY_ALPHA | {"planarconfig": "separate"},
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of every type, each with its pixels, or None if it is lossy."""
    folder = tmp_path_factory.mktemp("files")
    made: list[tuple[Path, NDArray[np.uint8] | None]] = []
    for formats, expected in (
        (COLOURS, RGB),
        (TRANSPARENT, np.rint(RGB + (255 - RGB) * CLEAR)),
        (GREYSCALES, GREYS),
        (GREY_AND_ALPHA, np.rint(GREYS + (255 - GREYS) * CLEAR)),
    ):
        for format_name, (pixels, colour) in formats.items():
            for name, layout in LAYOUTS.items():
                path = folder / f"{format_name}, {name}.tif"
                tifffile.imwrite(path, pixels, **colour, **layout)
                made.append((path, expected))
    tifffile.imwrite(folder / "image.ome.tif", RGB, photometric="rgb", **TILES, **ZIP)
    made.append((folder / "image.ome.tif", RGB))
    smooth = np.ascontiguousarray(np.kron(RGB[:10, :7], np.ones((8, 8, 1), np.uint8)))
    for name, options in {
        "YCbCr tiles": {"photometric": "ycbcr", "subsampling": (2, 2), "tile": (32, 16)},
        "YCbCr strips": {"photometric": "ycbcr", "subsampling": (2, 1), "rowsperstrip": 16},
        "RGB tiles": {"photometric": "rgb", "tile": (16, 32)},
    }.items():
        tifffile.imwrite(folder / f"{name}.tif", smooth, compression="jpeg", **options)
        made.append((folder / f"{name}.tif", None))
    picture = PIL.Image.fromarray(smooth)
    picture.save(folder / "shared tables.tif", compression="jpeg")
    exif = PIL.Image.Exif()
    exif[274] = 6
    picture.save(folder / "on its side.jpg", exif=exif)
    made += [(folder / "shared tables.tif", None), (folder / "on its side.jpg", None)]
    for name in ("image.png", "image.bmp"):
        PIL.Image.fromarray(RGB).save(folder / name)
        made.append((folder / name, RGB))
    return made


def check(image, window, whole):
    x0, y0, x1, y1 = window
    pixels = image.read(window)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert np.array_equal(pixels, whole[y0:y1, x0:x1])


def random_windows(rng, size, count):
    for _ in range(count):
        y0, x0 = rng.integers(0, size)
        y1, x1 = rng.integers((y0 + 1, x0 + 1), np.add(size, 1))
        yield int(x0), int(y0), int(x1), int(y1)


def test_windows_are_those_of_read_image(files):
    rng = np.random.default_rng(5)
    for path, expected in files:
        whole = read_image(path)
        assert expected is None or np.array_equal(whole, expected), path
        with open_image(path) as image:
            assert image.size == whole.shape[:2]
            assert image.levels == (image.size,)
            height, width = image.size
            check(image, (0, 0, width, height), whole)
            for window in random_windows(rng, image.size, 6):
                check(image, window, whole)


SIDES = st.integers(1, 50)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32), st.sampled_from([0, 5000, 2**28]))
def test_any_window_of_any_size_in_any_segments(
    tmp_path_factory, height, width, rows, columns, seed, cache_bytes
):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    folder = tmp_path_factory.mktemp("any")
    tile = (16 * rows, 16 * columns) if max(rows, columns) < 4 else (16, 16)
    for name, layout in {"tiles": {"tile": tile}, "strips": {"rowsperstrip": rows}}.items():
        path = folder / f"{name}.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", **layout, **ZIP)
        with open_image(path, cache_bytes=cache_bytes) as image:
            for window in random_windows(rng, (height, width), 8):
                check(image, window, pixels)


@pytest.mark.parametrize("pixels", [RGB, RGBA, GREY, DEEP, DEEP[:, :, 0], RGB[::-1, ::2]])
def test_an_array_is_read_like_a_file(tmp_path, pixels):
    path = tmp_path / "image.tif"
    photometric = "minisblack" if pixels.ndim == 2 else "rgb"
    tifffile.imwrite(path, pixels, photometric=photometric)
    whole = read_image(path)
    with from_array(pixels) as image:
        assert image.size == pixels.shape[:2]
        for window in random_windows(np.random.default_rng(1), image.size, 20):
            check(image, window, whole)


def test_changes_of_a_window_have_no_effect(tmp_path):
    pixels = RGB.copy()
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", **TILES, **ZIP)
    for image in (from_array(pixels), open_image(path)):
        with image:
            image.read((0, 0, WIDTH, HEIGHT))[:] = 0
            check(image, (0, 0, WIDTH, HEIGHT), RGB)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_arrays_of_any_byte_order(order):
    with from_array(DEEP.astype(order)) as image, from_array(DEEP) as expected:
        check(image, (0, 0, *image.size[::-1]), expected.read((0, 0, *image.size[::-1])))


@pytest.mark.parametrize(
    "array", [RGB.astype(np.float32), RGB.astype(int), RGB[:, :, :2], RGB[None], RGB[:0], RGB[0, 0]]
)
def test_arrays_that_are_no_images(array):
    with pytest.raises(ValueError, match=r"expected uint8 or uint16"):
        from_array(array)


@pytest.mark.parametrize(
    "window",
    [(-1, 0, 5, 5), (0, -1, 5, 5), (0, 0, 54, 5), (0, 0, 5, 76), (5, 0, 5, 9), (0, 9, 5, 5)],
)
def test_windows_that_are_empty_or_outside_the_image(window):
    with pytest.raises(ValueError, match=r"not within 75 x 53"):
        from_array(RGB).read(window)


# Levels


def write_ome(path, levels, **options):
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(levels[0], photometric="rgb", subifds=len(levels) - 1, **options)
        for level in levels[1:]:
            tiff.write(level, photometric="rgb", subfiletype=1, **options)


def write_reduced_pages(path, levels, **options):
    with tifffile.TiffWriter(path) as tiff:
        for n, level in enumerate(levels):
            tiff.write(level, photometric="rgb", subfiletype=min(n, 1), metadata=None, **options)


def write_like_aperio(path, levels, **options):
    """Write tiled levels without a flag, a thumbnail as second page, two photos at the end."""
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(levels[0], photometric="rgb", metadata=None, **options)
        tiff.write(levels[0][::3, ::3], photometric="rgb", metadata=None)
        for level in levels[1:]:
            tiff.write(level, photometric="rgb", metadata=None, **options)
        tiff.write(RGB[:20, :30], photometric="rgb", subfiletype=1, metadata=None)
        tiff.write(RGB[:10, :40], photometric="rgb", subfiletype=9, metadata=None)


WRITERS = [write_ome, write_reduced_pages, write_like_aperio]
# 75 x 53 halved, rounded down the first time and up the second.
LEVELS = [RGB, RGB[:74:2, :52:2], RGB[:76:4, :56:4]]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("compression", [{}, ZIP])
def test_levels_of_a_pyramid(tmp_path, write, compression):
    path = tmp_path / "image.tif"
    write(path, LEVELS, tile=(16, 16), **compression)
    for n, level in enumerate(LEVELS):
        with open_image(path, n) as image:
            assert image.levels == ((75, 53), (37, 26), (19, 14))
            assert image.size == level.shape[:2]
            for window in random_windows(np.random.default_rng(n), image.size, 10):
                check(image, window, level)


def refusal(path, *arguments):
    line = refusal_of(open_image, path, *arguments)
    assert line.startswith(f"{path}: ")
    return line


def test_a_missing_level(tmp_path):
    path = tmp_path / "image.tif"
    write_ome(path, LEVELS, tile=(16, 16))
    for level in (3, -1):
        assert f"3 levels, 0 to 2, but level {level}" in refusal(path, level)
    PIL.Image.fromarray(RGB).save(tmp_path / "image.png")
    assert "1 level, 0, but level 1" in refusal(tmp_path / "image.png", 1)


# Cost of a window


@pytest.fixture
def reads(monkeypatch):
    """Collect the offset of each read of a file."""
    offsets = []
    read = tifffile.FileHandle.read

    def counted(file, *arguments):
        offsets.append(file.tell())
        return read(file, *arguments)

    monkeypatch.setattr(tifffile.FileHandle, "read", counted)
    return offsets


def tile_offsets(path):
    with tifffile.TiffFile(path) as tiff:
        return np.reshape(tiff.pages[0].dataoffsets, (5, 4))  # tiles of 16 x 16


@pytest.fixture
def tiled(tmp_path):
    path = tmp_path / "tiled.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(16, 16), **ZIP)
    return path


@pytest.mark.parametrize(
    ("window", "rows", "columns"),
    [
        ((0, 0, 1, 1), slice(0, 1), slice(0, 1)),
        ((16, 16, 32, 32), slice(1, 2), slice(1, 2)),
        ((15, 31, 33, 33), slice(1, 3), slice(0, 3)),
        ((52, 74, 53, 75), slice(4, 5), slice(3, 4)),
    ],
)
def test_a_window_reads_only_its_tiles(tiled, reads, window, rows, columns):
    expected = tile_offsets(tiled)[rows, columns]
    with open_image(tiled) as image:
        reads.clear()
        image.read(window)
    assert reads == expected.ravel().tolist()


@pytest.mark.parametrize("layout", [{}, STRIPS, TILES | ZIP, {"rowsperstrip": 1} | LZW])
@pytest.mark.parametrize("planarconfig", ["contig", "separate"])
def test_little_of_an_image_is_opaque(tmp_path, layout, planarconfig):
    """Between the rows and segments that are sampled, and in the levels of a pyramid."""
    path = tmp_path / "image.tif"
    rgba = np.zeros((300, 400, 4), np.uint8)
    rgba[151:153, 201:205] = 100, 20, 90, 255
    if planarconfig == "separate":
        fine, coarse = np.moveaxis(rgba, 2, 0), np.moveaxis(rgba[::4, ::4], 2, 0) * 0
    else:
        fine, coarse = rgba, rgba[::4, ::4] * 0
    options = ALPHA | layout | {"planarconfig": planarconfig}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(fine, subifds=1, **options)
        tiff.write(coarse, subfiletype=1, **options)
    expected = np.full((300, 400, 3), 255)
    expected[151:153, 201:205] = 100, 20, 90
    assert np.array_equal(read_image(path), expected)
    with open_image(path, 1) as level:
        assert (level.read_all() == 255).all()


@pytest.mark.parametrize(("kind", "read"), [("unassalpha", 4), ("unspecified", 3)])
def test_of_planes_only_colours_and_alpha_are_read(tmp_path, reads, kind, read):
    path = tmp_path / "planes.tif"
    options = {"photometric": "rgb", "planarconfig": "separate", "extrasamples": [kind]}
    opaque = RGBA.copy()
    opaque[:, :, 3] = 255
    tifffile.imwrite(path, np.moveaxis(opaque, 2, 0), tile=(16, 16), **options, **ZIP)
    with tifffile.TiffFile(path) as tiff:
        offsets = np.reshape(tiff.pages[0].dataoffsets, (4, 5, 4))
    with open_image(path) as image:
        reads.clear()
        image.read((20, 40, 21, 41))
    assert reads == offsets[:read, 2, 1].tolist()


def test_overlapping_windows_decode_nothing_twice(tiled, reads):
    with open_image(tiled) as image:
        reads.clear()
        for y in range(0, HEIGHT - 24, 8):
            for x in range(0, WIDTH - 20, 8):
                image.read((x, y, x + 21, y + 25))
    assert sorted(reads) == sorted(tile_offsets(tiled).ravel())


def test_the_topmost_and_leftmost_tile_is_removed_first(tiled, reads):
    tile = 16 * 16 * 3
    offsets = tile_offsets(tiled)
    with open_image(tiled, cache_bytes=3 * tile + tile // 2) as image:
        reads.clear()
        for row, column in ((0, 1), (0, 2), (1, 0), (1, 1), (0, 2)):
            image.read((16 * column, 16 * row, 16 * column + 1, 16 * row + 1))
        # The fourth replaced the first; the last, further up, cleared the cache.
        assert reads == [offsets[at] for at in ((0, 1), (0, 2), (1, 0), (1, 1), (0, 2))]
        reads.clear()
        for row, column in ((0, 2), (1, 0), (1, 1), (1, 2), (1, 1), (1, 0), (1, 2)):
            image.read((16 * column, 16 * row, 16 * column + 1, 16 * row + 1))
        assert reads == [offsets[at] for at in ((1, 0), (1, 1), (1, 2))]


@pytest.mark.parametrize(("n_kept", "twice"), [(5, 0), (4, 6)])
def test_a_row_of_windows_needs_less_than_its_tiles_in_the_cache(tiled, reads, n_kept, twice):
    """Of a row of windows, two tiles high, the four lower tiles, and one for the next window."""
    offsets = tile_offsets(tiled)
    with open_image(tiled, cache_bytes=n_kept * 16 * 16 * 3) as image:
        reads.clear()
        for y in range(0, 64, 16):
            for x in range(0, 48, 16):
                check(image, (x, y, min(x + 32, WIDTH), min(y + 32, HEIGHT)), RGB)
    assert set(reads) == set(offsets.ravel().tolist())
    assert len(reads) == 20 + twice


def test_more_strips_than_the_cache_holds(tmp_path, reads):
    """Ten strips per window, nine cached: each further window decodes one of them again."""
    path = tmp_path / "strips.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", rowsperstrip=4, **ZIP)
    with open_image(path, cache_bytes=9 * 4 * WIDTH * 3) as image:
        reads.clear()
        for x in range(0, 50, 10):
            check(image, (x, 0, x + 10, 40), RGB)
    assert len(reads) == 10 + 4


@pytest.mark.parametrize("colours", ["RGB", "RGBA in planes"])
def test_a_single_strip_is_decoded_once(tmp_path, reads, colours):
    path = tmp_path / "image.tif"
    opaque = RGBA.copy()
    opaque[:, :, 3] = 255
    planes = (np.moveaxis(opaque, 2, 0), ALPHA | {"planarconfig": "separate"})
    pixels, options = COLOURS[colours] if colours == "RGB" else planes
    tifffile.imwrite(path, pixels, rowsperstrip=HEIGHT, **options, **ZIP)
    with open_image(path, cache_bytes=0) as image:
        reads.clear()
        for window in random_windows(np.random.default_rng(1), image.size, 5):
            check(image, window, RGB)
    assert len(reads) == (1 if colours == "RGB" else 4)


@pytest.mark.parametrize(
    "options",
    [
        {"tile": (256, 256), "compression": "zlib"},
        {"rowsperstrip": 64, "compression": "zlib"},
        {},
        {"byteorder": ">", "planarconfig": "separate"},
    ],
    ids=["tiles", "strips", "one strip", "planes"],
)
def test_memory_grows_with_the_window_not_with_the_image(tmp_path, options):
    path = tmp_path / "large.tif"
    large = np.zeros((4096, 4096, 3), np.uint8)  # 48 MiB
    large[1000:1300, 2000:2300] = RNG.integers(0, 256, (300, 300, 3))
    pixels = np.moveaxis(large, 2, 0) if "planarconfig" in options else large
    tifffile.imwrite(path, pixels, photometric="rgb", **options)
    tracemalloc.start()
    try:
        with open_image(path) as image:
            window = image.read((1900, 990, 2400, 1310))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.array_equal(window, large[990:1310, 1900:2400])
    # Six strips of 64 whole rows are 4.5 MiB, the window itself is 0.5.
    assert peak < 8 * 2**20


@pytest.mark.skipif(not MAPS.exists(), reason="no list of memory maps")
def test_a_mapped_file_does_not_stay_in_memory(tmp_path):
    path = tmp_path / "stored.tif"
    tifffile.imwrite(path, RGB, photometric="rgb")
    with open_image(path) as image:
        image.read((0, 0, WIDTH, HEIGHT))
        assert path.name not in MAPS.read_text()


def test_the_cache_is_bounded_in_bytes(tmp_path):
    path = tmp_path / "large.tif"
    tifffile.imwrite(
        path, np.zeros((2048, 2048, 3), np.uint8), photometric="rgb", tile=(256, 256), **ZIP
    )
    tracemalloc.start()
    try:
        with open_image(path, cache_bytes=2**20) as image:
            for y in range(0, 2048, 256):
                for x in range(0, 2048, 256):
                    image.read((x, y, x + 256, y + 256))
            held, _ = tracemalloc.get_traced_memory()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 2**19 < held < 3 * 2**19
    assert after < 2**18


def test_several_threads(files):
    for path, _ in files[:: len(files) // 12]:
        whole = read_image(path)
        with open_image(path, cache_bytes=4000) as image, ThreadPoolExecutor(4) as pool:
            windows = list(random_windows(np.random.default_rng(0), image.size, 60))
            for (x0, y0, x1, y1), pixels in zip(
                windows, pool.map(image.read, windows), strict=True
            ):
                assert np.array_equal(pixels, whole[y0:y1, x0:x1])


# Damage


def test_a_damaged_segment_leaves_the_rest_readable(tiled):
    data = bytearray(tiled.read_bytes())
    at = tile_offsets(tiled)[2, 1]
    data[at : at + 8] = b"\xff" * 8
    tiled.write_bytes(data)
    with open_image(tiled) as image:
        check(image, (0, 0, WIDTH, 32), RGB)
        for _ in range(2):
            message = refusal_of(image.read, (0, 20, WIDTH, 40))
            assert message.startswith(f"{tiled}: damaged")
        check(image, (0, 48, WIDTH, HEIGHT), RGB)


def test_a_file_that_is_cut_off_can_not_be_opened(tiled):
    tiled.write_bytes(tiled.read_bytes()[:-5])
    assert "cut off" in refusal(tiled)


def test_a_level_that_is_cut_off_can_not_be_opened(tmp_path):
    path = tmp_path / "image.tif"
    write_reduced_pages(path, LEVELS, tile=(16, 16), **ZIP)  # the coarsest is last
    path.write_bytes(path.read_bytes()[:-5])
    with open_image(path, 1) as image:
        check(image, (0, 0, 26, 37), LEVELS[1])
    assert "cut off" in refusal(path, 2)


@pytest.mark.parametrize("options", [{}, TILES | ZIP])
def test_a_file_that_is_cut_off_while_open(tmp_path, options):
    path = tmp_path / "image.tif"
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    tifffile.imwrite(path, noise, photometric="rgb", **options)  # larger than a file's buffer
    with open_image(path) as image:
        os.truncate(path, 1000)
        with pytest.raises(InputError, match=r"damaged"):
            image.read((0, 0, 400, 300))


@pytest.mark.parametrize(
    ("pixels", "options", "found"),
    [
        (RGB.astype(np.float32), {"photometric": "rgb"}, "32-bit float32"),
        (np.stack([GREY, GREY]), {"photometric": "minisblack"}, "a stack of 2 images"),
        (
            GREY,
            {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
            "PALETTE",
        ),
    ],
)
def test_unsupported_images_can_not_be_opened(tmp_path, pixels, options, found):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, pixels, **options)
    assert found in refusal(path)
    assert "no such file" in refusal(tmp_path / "absent.tif")


def test_garbled_bytes_are_an_error_or_read_as_by_read_image(tmp_path):
    garbled = tmp_path / "garbled.tif"
    rng = np.random.default_rng(3)
    outcomes = set()
    layouts = [{}, TILES | LZW, STRIPS | ZIP, {"rowsperstrip": 3} | LZW, {"bigtiff": True} | TILES]
    for options in layouts:
        tifffile.imwrite(garbled, RGBA[:19, :17], **ALPHA, **options)
        data = np.frombuffer(garbled.read_bytes(), np.uint8)
        for _ in range(120):
            bad = data.copy()
            bad[rng.integers(0, min(len(bad), 900), 3)] = rng.integers(0, 256, 3)
            garbled.write_bytes(bad.tobytes())
            try:
                with open_image(garbled) as image:
                    height, width = image.size
                    pixels = image.read((0, 0, width, height))
            except InputError:
                outcomes.add("error")
            else:
                outcomes.add("read")
                assert np.array_equal(pixels, read_image(garbled))
    assert outcomes == {"error", "read"}


# Channels as pages, thumbnails, bits in use

CHANNELS = np.ascontiguousarray(np.moveaxis(RGB, 2, 0))


def check_levels(path, levels):
    for n, pixels in enumerate(levels):
        with open_image(path, n) as image:
            assert image.size == pixels.shape[:2]
            for window in random_windows(np.random.default_rng(n), image.size, 5):
                check(image, window, pixels)
    assert np.array_equal(read_image(path), levels[0])


@pytest.mark.parametrize("layout", [{}, TILES | ZIP, STRIPS | LZW])
def test_three_channels_as_pages_of_ome_are_colours(tmp_path, layout):
    path = tmp_path / "image.ome.tif"
    options = {"photometric": "minisblack"} | layout
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(CHANNELS, subifds=1, metadata={"axes": "CYX"}, **options)
        tiff.write(CHANNELS[:, ::2, ::2], subfiletype=1, **options)
    check_levels(path, [RGB, RGB[::2, ::2]])


@pytest.mark.parametrize("mode", ["composite", "color", "grayscale"])
def test_three_channels_of_imagej_are_colours(tmp_path, mode):
    path = tmp_path / "composite.tif"
    tifffile.imwrite(path, CHANNELS, imagej=True, metadata={"axes": "CYX", "mode": mode})
    check_levels(path, [RGB])


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"imagej": True, "metadata": {"axes": "ZYX"}}, 3),
        ({"imagej": True, "metadata": {"axes": "CYX"}}, 4),
        ({"ome": True, "metadata": {"axes": "TYX"}}, 3),
        ({"ome": True, "metadata": {"axes": "CYX"}}, 2),
        ({}, 3),
    ],
)
def test_other_stacks_are_no_images(tmp_path, options, count):
    path = tmp_path / "stack.tif"
    pixels = np.stack([GREY] * count)
    tifffile.imwrite(path, pixels, photometric="minisblack", **options)
    message = refusal(path)
    assert f"a stack of {count} images" in message
    is_channels = options.get("metadata", {}).get("axes") == "CYX"
    assert ("Image > Type > RGB Color" in message) == is_channels


def test_a_stack_in_one_directory_is_no_image(tmp_path):
    """ImageJ writes only one for the pages of a file of over 4 GB."""
    path = tmp_path / "stack.tif"
    text = "ImageJ=1.54\nimages=5\nslices=5\n"
    tifffile.imwrite(path, GREY, description=text, metadata=None)
    assert "a stack of 5 images" in refusal(path)


def test_a_thumbnail_in_front_is_not_the_image(tmp_path):
    path = tmp_path / "image.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(RGB[::5, ::5], photometric="rgb", subfiletype=1, metadata=None)
        tiff.write(RGB, photometric="rgb", metadata=None)
    with open_image(path) as image:
        check(image, (0, 0, WIDTH, HEIGHT), RGB)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("layout", [{}, TILES | ZIP, {"rowsperstrip": 1} | LZW, "png"])
def test_the_bits_in_use_of_16_are_found(tmp_path, bits, layout):
    """The same in windows, levels and whole images."""
    top = (1 << bits) - 1
    deep = np.round(RGB * (top / 255)).astype(np.uint16)
    path = tmp_path / "image"
    if layout == "png":
        path.write_bytes(imagecodecs.png_encode(deep))
    else:
        with tifffile.TiffWriter(path) as tiff:
            tiff.write(deep, photometric="rgb", subifds=1, **layout)
            dark = deep[::2, ::2] // 9
            tiff.write(dark, photometric="rgb", subfiletype=1, **layout)
    with open_image(path) as image:
        assert image.bits == bits
        assert [f"{bits}-bit" in note for note in image.notes] == [True] * (bits < 16)
        check(image, (7, 5, 40, 60), RGB)
    if layout != "png":
        with open_image(path, 1) as image:
            assert image.bits == bits
            assert np.abs(image.read((0, 0, 20, 30)) - dark[:30, :20] * (255 / top)).max() <= 0.5
    with from_array(deep) as image:
        assert image.bits == bits
        check(image, (7, 5, 40, 60), RGB)
    assert np.array_equal(read_image(path), RGB)


def test_bits_in_use_are_those_of_the_colours(tmp_path):
    """An opaque alpha has 16 bits; values that rise to black are bright if they are small."""
    path = tmp_path / "image.tif"
    deep = np.round(RGBA * (4095 / 255)).astype(np.uint16)
    deep[:, :, 3] = 65535
    tifffile.imwrite(path, deep, **ALPHA)
    check_levels(path, [RGB])
    tifffile.imwrite(path, deep[:, :, 0], photometric="miniswhite")
    assert read_image(path).min() >= 255 - 16
    tifffile.imwrite(path, RGB, photometric="rgb")
    with open_image(path) as image:
        assert image.bits is None


def test_values_above_the_range_that_was_sampled_are_white(tmp_path):
    path = tmp_path / "image.tif"
    deep = np.full((400, 8, 3), 2000, np.uint16)
    deep[3, 2] = 60_000
    tifffile.imwrite(path, deep, photometric="rgb")
    with open_image(path) as image:
        assert image.bits == 12
        assert (image.read((2, 3, 3, 4)) == 255).all()


STORAGES = {
    "one strip": {},
    "rows": {"rowsperstrip": 1} | LZW,
    "tiles": {"tile": (16, 16)} | ZIP,
    "png": None,
    "array": None,
}


def open_stored(path, deep, storage):
    if storage == "array":
        return from_array(deep)
    if storage == "png":
        path.write_bytes(imagecodecs.png_encode(deep))
    else:
        photometric = "minisblack" if deep.ndim == 2 else "rgb"
        tifffile.imwrite(path, deep, photometric=photometric, **STORAGES[storage])
    return open_image(path)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("values", "bits"),
    [
        ({4095: 240_000}, 12),
        ({2000: 239_760, 60_000: 240}, 12),  # 0.1 %
        ({2000: 239_759, 60_000: 241}, 16),
        ({2000: 230_000, 65_535: 10_000}, 12),  # a scale bar
        ({2000: 2_000, 65_535: 238_000}, 16),  # a white background
        ({0: 239_500, 2000: 500}, 12),  # little was scanned
        ({0: 239_500, 2000: 499, 5000: 1}, 14),
        ({0: 240_000}, 8),
        ({65_535: 240_000}, 16),
        ({255: 240_000}, 8),
        ({255: 239_000, 256: 1000}, 10),
    ],
    ids=str,
)
def test_the_bits_in_use_are_the_same_in_every_storage(tmp_path, storage, values, bits):
    deep = np.repeat([*values], [*values.values()]).astype(np.uint16).reshape(400, 600)
    with open_stored(tmp_path / "image", deep, storage) as image:
        assert image.bits == bits
        exact = np.minimum(deep / ((1 << bits) - 1), 1)[:, :, None] * 255
        assert np.abs(image.read_all() - exact).max() <= 0.5


@pytest.mark.parametrize("storage", STORAGES)
def test_the_bits_in_use_of_one_pixel(tmp_path, storage):
    for value, bits in {0: 8, 1: 8, 1023: 10, 1024: 12, 16_384: 16, 65_535: 16}.items():
        pixel = np.full((1, 1), value, np.uint16)
        with open_stored(tmp_path / "image", pixel, storage) as image:
            assert image.bits == bits


@pytest.mark.parametrize("storage", STORAGES)
def test_an_image_whose_scanned_area_is_small(tmp_path, storage):
    """Between any 64 rows or tiles that are evenly spread."""
    deep = np.zeros((640, 640, 3), np.uint16)
    deep[309:315, 400:410] = 4000
    with open_stored(tmp_path / "image", deep, storage) as image:
        assert image.bits == 12
        assert image.read((405, 312, 406, 313)).ravel().tolist() == [249] * 3


def write_large(path, tiles):
    """Write a grey image of 10,240 pixels a side, of 100 tiles."""
    encoded = {id(tile): zlib.compress(tile.astype(np.uint16).tobytes(), 1) for tile in tiles}
    tifffile.imwrite(
        path, (encoded[id(tile)] for tile in tiles), shape=(10_240, 10_240), dtype=np.uint16,
        tile=(1024, 1024), compression="zlib",
    )  # fmt: skip


def test_a_large_image_whose_scanned_area_is_small(tmp_path):
    empty, scanned = np.zeros((1024, 1024)), np.full((1024, 1024), 4000)
    write_large(tmp_path / "large.tif", [empty] * 37 + [scanned] + [empty] * 62)
    with open_image(tmp_path / "large.tif") as image:
        assert image.bits == 12


def test_larger_values_than_in_most_of_a_large_image_give_a_warning(tmp_path, reads):
    """Which is not read as a whole for the bits in use. They are less than 0.1 %, in one tile."""
    most = np.full((1024, 1024), 100)
    other = most.copy()
    other[:40] = 4000
    path = tmp_path / "large.tif"
    write_large(path, [most] * 37 + [other] + [most] * 62)
    with collect_warnings() as warnings, open_image(path) as image:
        reads.clear()
        assert image.bits == 8
        assert len(set(reads)) < 100
        assert (image.read((0, 0, 9, 9)) == 100).all()
        assert not warnings
        for _ in range(2):
            assert (image.read((7 * 1024, 3 * 1024, 7 * 1024 + 9, 3 * 1024 + 9)) == 255).all()
    assert len(warnings) == 1
    assert str(path) in warnings[0]


@pytest.mark.parametrize(
    ("size", "side", "count"), [((5, 7), 3, 6), ((4, 4), 4, 1), ((1, 1), 9, 1)]
)
def test_windows_cover_each_pixel_once_row_by_row(size, side, count):
    seen = np.zeros(size, np.int64)
    corners = []
    for left, top, right, bottom in from_array(np.zeros(size, np.uint8)).windows(side):
        seen[top:bottom, left:right] += 1
        corners.append((top, left))
    assert (seen == 1).all()
    assert len(corners) == count
    assert corners == sorted(corners)
