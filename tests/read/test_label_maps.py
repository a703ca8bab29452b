"""Label maps of every format, one for all classes, and those that are not what they seem."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import scipy.ndimage
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cellseg.pieces import label_runs
from cellseg.read.annotate import annotate_image
from cellseg.read.classes import MONUSAC
from cellseg.read.label_maps import count_labels, read_label_map
from cellseg.read.layout import CLASS_NAMES, read_train_folder
from cellseg.rle import cut_at_columns, encode, label_map_to_runs
from tests.read.refusal import refusal

SIZE = (60, 90)
# 24 cells of 8 x 8 pixels, 7 apart; the outermost 4 pixels are background.
GRID = np.zeros(SIZE, np.int32)
for n in range(24):
    GRID[4 + n // 6 * 15 : 12 + n // 6 * 15, 4 + n % 6 * 15 : 12 + n % 6 * 15] = n + 1


def many_cells(n_cells, side=6):
    """Return a label map of 200 x 200 with up to 400 square cells, row by row."""
    labels = np.zeros((200, 200), np.int64)
    for cell in range(n_cells):
        top, left = 10 * (cell // 20), 10 * (cell % 20)
        labels[top : top + side, left : left + side] = cell + 1
    return labels


def write_folder(folder, image="image.tif", size=SIZE, exif=0, **files):
    folder.mkdir(parents=True)
    pixels = np.full((*size, 3), 200, np.uint8)
    picture = PIL.Image.fromarray(pixels)
    tags = picture.getexif()
    if exif:
        tags[274] = exif
    picture.save(folder / image, exif=tags)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif path.suffix == ".npy":
            np.save(path, content)
        elif path.suffix == ".png":
            PIL.Image.fromarray(content.astype(np.uint16)).save(path)
        else:
            tifffile.imwrite(path, content)
    return folder


def annotate(folder, class_names=CLASS_NAMES, **how):
    return annotate_image(read_train_folder(folder, len(class_names)), class_names, **how)


def warned(folder, text, class_names=CLASS_NAMES):
    """Return the sum of the warnings of an image that contain a text."""
    warnings = annotate(folder, class_names).warnings
    return sum(count for what, count in warnings.items() if text in what)


# ------------------------------------------------------------------ formats


@settings(deadline=None, max_examples=30)
@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 5)),
    st.sampled_from(["u1 png", "u2 png", "P png", "u1 npy", ">f4 npy", "i8 npy", "? npy"]),
)
def test_png_and_npy_are_as_tiff(tmp_path_factory, labels, form):
    dtype, suffix = form.split()
    if dtype == "?":
        labels = labels > 0
    folder = write_folder(tmp_path_factory.mktemp("x") / "x", size=labels.shape)
    tifffile.imwrite(folder / "class2.tif", labels.astype(np.uint8))
    expected = encode(annotate(folder).cells[2])
    (folder / "class2.tif").unlink()
    if dtype == "P":
        picture = PIL.Image.fromarray(labels, "L").convert("P")
        picture.putdata(labels.reshape(-1).tolist())
        picture.putpalette([0, 0, 0] + [9, 99, 9] * 255)
        picture.save(folder / "class2.png")
    elif suffix == "png":
        PIL.Image.fromarray(labels.astype(dtype)).save(folder / "class2.png")
    else:
        np.save(folder / "class2.npy", labels.astype(dtype))
    assert encode(annotate(folder).cells[2]) == expected


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_png_of_few_bits_keeps_its_labels(tmp_path, bits):
    import zlib

    folder = write_folder(tmp_path / "x", size=(1, 8))
    values = [0, 1, 1, 0, 0, 2**bits - 1, 2**bits - 1, 0]
    row = int("".join(f"{value:0{bits}b}" for value in values), 2).to_bytes(bits, "big")
    chunks = [
        (b"IHDR", bytes([0, 0, 0, 8, 0, 0, 0, 1, bits, 0, 0, 0, 0])),
        (b"IDAT", zlib.compress(b"\0" + row)),
        (b"IEND", b""),
    ]
    (folder / "label.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
            for kind, data in chunks
        )
    )
    table = "label,class\n" + "".join(f"{v},{1 + (v > 1)}\n" for v in sorted(set(values)) if v)
    (folder / "classes.csv").write_text(table)
    cells = annotate(folder).cells
    assert {k: len(mask_runs) for k, mask_runs in cells.items()} == (
        {1: 1} if bits == 1 else {1: 1, 2: 1}
    )


@pytest.mark.parametrize("image", ["image.png", "image.jpg", "IMAGE.BMP", "image.tiff"])
def test_images_of_other_formats(tmp_path, image):
    result = annotate(write_folder(tmp_path / "x", image, class1__tif=GRID))
    assert result.file_name == f"train/x/{image}"
    assert len(result.cells[1]) == 24


BAD_FILES = {
    "an RGB png": ("label.png", np.zeros((*SIZE, 3), np.uint8), "3 channels"),
    "a volume": ("label.npy", np.zeros((2, *SIZE)), "of shape (2, 60, 90)"),
    "complex numbers": ("label.npy", np.zeros(SIZE, complex), "complex128"),
    "objects": ("label.npy", np.array({"masks": 1}, object), "not an array of numbers"),
    "another size": ("label.npy", np.zeros((90, 60)), "90 x 60 (height x width), expected 60 x 90"),
    "text": ("label.npy", "1 2 3", "label.npy: not a TIFF"),
    "a fraction": ("label.npy", GRID / 2, "label 0.5 in row 4, column 4"),
    "no data": ("label.png", "\x89PNG", "label.png: "),
}


@pytest.mark.parametrize(("name", "content", "found"), BAD_FILES.values(), ids=BAD_FILES)
def test_files_that_are_no_label_maps(tmp_path, name, content, found):
    folder = write_folder(tmp_path / "x")
    if name.endswith("npy") and not isinstance(content, str):
        np.save(folder / name, content, allow_pickle=True)
    elif isinstance(content, str):
        (folder / name).write_text(content, encoding="latin-1")
    else:
        PIL.Image.fromarray(content).save(folder / name)
    line = refusal(annotate, folder, ["cell"])
    assert line.startswith(f"{folder / name}: ")
    assert found in line


@pytest.mark.parametrize("suffix", ["npy", "png"])
def test_label_maps_cut_off_anywhere(tmp_path, suffix):
    folder = write_folder(tmp_path / "x", **{f"label__{suffix}": GRID.astype(np.uint16)})
    path = folder / f"label.{suffix}"
    whole = path.read_bytes()
    for end in range(0, len(whole) - 16, max(1, len(whole) // 40)):  # the end of a PNG is empty
        path.write_bytes(whole[:end])
        assert str(path) in refusal(annotate, folder, ["cell"])


# ------------------------------------------------------------------ one map for all classes


@pytest.mark.parametrize(
    "name",
    ["label.tif", "Labels.PNG", "mask.npy", "image_masks.tif", "a_cp_masks.png", "x-labelled.tiff"],
)
def test_one_label_map_of_a_single_class(tmp_path, name):
    folder = write_folder(tmp_path / "x", **{name.replace(".", "__").replace("PNG", "tif"): GRID})
    assert len(annotate(folder, ["cell"]).cells[1]) == 24
    assert "classes.csv" in refusal(annotate, folder)
    assert "--class_names" in refusal(annotate, folder)


def table(separator=",", first="label", second="class", name=lambda n: f"class{n % 4 + 1}"):
    lines = [separator.join((first, second))] + [f"{n}{separator}{name(n)}" for n in range(1, 25)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes__csv", table()),
        ("x__CSV", table(";", "Label", " CLASS")),
        ("x__tsv", table("\t")),
        ("x__csv", "\ufeff" + table(";").replace("\n", "\r\n") + "\r\n;\r\n"),
        ("x__csv", table(",", "area,label").replace("\n", "\n7,")),
        ("x__csv", table(name=lambda n: n % 4 + 1)),
        ("x__csv", table(name=lambda n: f"{n % 4 + 1}.0").replace(",", ".0,").replace("l.0", "l")),
        ("x__csv", table(name=lambda n: ("Epithelial", "LYMPHOCYTE", *MONUSAC[2:])[n % 4])),
    ],
)  # fmt: skip
def test_a_class_table(tmp_path, name, text):
    cells = annotate(write_folder(tmp_path / "x", label__tif=GRID, **{name: text})).cells
    for k in range(1, 5):
        members = np.where(GRID % 4 == k - 1, GRID, 0)
        assert encode(cells[k]) == encode(label_map_to_runs(members)[1])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "no columns label,class"),
        ("1,class1\n2,class2", "no columns label,class"),
        (table()[:-2], "label 24 has class 'clas'"),
        (table().replace("24,", "23,"), "label 23 has two classes"),
        (table().replace("\n7,class4", ""), "no class for 1 of"),
        (table().replace("\n7,", "\n7.5,"), "label 7.5 is not an integer"),
        (table().replace("7,class4", "7,"), "no class in line 8"),
        (table(name=lambda n: ["Fat", "class1"][n % 2]), "label 2 has class 'Fat'"),
        (table(name=lambda n: n), "label 5 has class '5'"),
    ],
)  # fmt: skip
def test_a_class_table_with_errors(tmp_path, text, found):
    folder = write_folder(tmp_path / "x", label__tif=GRID, classes__csv=text)
    line = refusal(annotate, folder)
    assert line.startswith(f"{folder / 'classes.csv'}: ")
    assert found in line


def test_a_class_table_may_have_other_labels(tmp_path):
    text = table() + "\n30,class1\n0,background"
    folder = write_folder(tmp_path / "x", label__tif=GRID, classes__csv=text)
    assert warned(folder, "rows of class tables without a cell") == 1


def test_cells_of_ignored_and_unknown_classes(tmp_path):
    names = {1: "Ignore*", 2: "ambiguous", 3: "Fat"}
    folder = write_folder(
        tmp_path / "x", label__tif=GRID, classes__csv=table(name=lambda n: names.get(n, "class1"))
    )
    assert "label 3 has class 'Fat'" in refusal(annotate, folder)
    result = annotate(folder, skip_bad=True)
    assert len(result.cells[1]) == 21
    assert sum(result.warnings.values()) == 3


def test_skip_bad_leaves_out_labels_not_their_image(tmp_path):
    bad = table().replace("\n7,", "\n7.5,").replace("8,class1", "8,") + "\n9,class1\n"
    maps = {"label__npy": np.where(GRID == 3, -1, np.where(GRID == 4, 2.5, GRID))}
    folder = write_folder(tmp_path / "x", classes__csv=bad, **maps)
    assert "label -1.0 in row" in refusal(annotate, folder)
    result = annotate(folder, skip_bad=True)
    assert sum(map(len, result.cells.values())) == 19
    assert result.warnings["labels that are not integers from 0, ignored"] == 2
    assert result.warnings["cells without a class, ignored"] == 3
    folder = write_folder(tmp_path / "y", class1__tif=maps["label__npy"].astype(np.float32))
    assert len(annotate(folder, skip_bad=True).cells[1]) == 22
    np.save(folder / "class1.npy", GRID / 3)
    (folder / "class1.tif").unlink()
    assert "class1.npy: label 0.33" in refusal(annotate, folder, skip_bad=True)


def test_an_empty_label_map_needs_no_table(tmp_path):
    folder = write_folder(tmp_path / "x", label__tif=np.zeros(SIZE, np.uint8))
    assert annotate(folder).cells == {}
    assert warned(folder, "images without cells") == 1


# ------------------------------------------------------------------ labels that are none

BACKGROUND = {
    "another number": GRID + 1,
    "the largest of its type": np.where(GRID == 0, 65535, GRID).astype(np.uint16),
    "complement": ~GRID.astype(np.uint16),
    "inverted binary": ((GRID == 0) * 255).astype(np.uint8),
    "a float": (GRID == 0) * 1.0,
    "most of it covered by cells": many_cells(400, 8) + 1,
    "few cells": np.where(GRID < 3, GRID + 7, 7),
}


@pytest.mark.parametrize("labels", BACKGROUND.values(), ids=BACKGROUND)
@pytest.mark.parametrize("name", ["class1.tif", "class1.npy"])
def test_a_background_other_than_0(tmp_path, labels, name):
    folder = write_folder(tmp_path / "x", size=labels.shape, **{name.replace(".", "__"): labels})
    line = refusal(annotate, folder)
    assert line.startswith(f"{folder / name}: label {labels[-1, -1]}")
    assert "expected 0 for the background" in line


def test_cells_that_may_be_large_are_a_warning(tmp_path):
    one = np.zeros(SIZE, np.uint8)
    one[5:55, 5:85] = 9
    whole = np.ones(SIZE, np.uint8)  # an image within a cell
    around = np.where(GRID == 1, 0, 3)  # with a hole
    for n, labels in enumerate((one, whole, around)):
        folder = write_folder(tmp_path / str(n), class1__tif=labels)
        assert warned(folder, "over half of the image") == 1, n
    assert warned(write_folder(tmp_path / "grid", class1__tif=GRID), "half") == 0


def test_cells_in_a_small_crowded_image_give_no_warning(tmp_path):
    """Confluent cells: no background at all, one of them of nearly half the image."""
    labels = np.arange(1, 7).repeat(15)[None].repeat(60, axis=0).astype(np.uint8)
    labels[:, :44] = 1
    assert annotate(write_folder(tmp_path / "x", class1__tif=labels)).warnings == {}


@pytest.mark.parametrize("n_cells", [255, 300, 400])
def test_more_than_255_cells_in_8_bits(tmp_path, n_cells):
    """Cell 256 is background, cell 257 is cell 1 again, and so on."""
    labels = many_cells(n_cells).astype(np.uint8)
    folder = write_folder(tmp_path / "x", size=(200, 200), class1__tif=labels)
    if n_cells < 400:
        assert warned(folder, "pieces far apart") == max(0, n_cells - 256)
    else:
        line = refusal(annotate, folder)
        assert "144 of 255 cells of class 1 have pieces far apart" in line


def test_classes_instead_of_cells_as_labels(tmp_path):
    labels = many_cells(400)
    labels[labels > 0] = labels[labels > 0] % 4 + 1
    folder = write_folder(tmp_path / "x", size=(200, 200), label__tif=labels.astype(np.uint8))
    assert warned(folder, "pieces far apart", ["cell"]) == 4


@pytest.mark.parametrize("name", ["label__tif", "class1__tif"])
def test_a_map_of_few_labels_in_many_pieces_gives_a_warning(tmp_path, name):
    """Also where the pieces are near each other, as the ten cells of one small crop."""
    dense = np.zeros(SIZE, np.uint8)
    for n in range(9):
        dense[4 + 4 * (n // 3) :, 4 + 4 * (n % 3) :][:3, :3] = n + 1
    text = "in several pieces"
    binary, two, cells = dense > 0, np.minimum(dense, 2), dense
    for n, (labels, expected) in enumerate([(binary, 1), (two, 1), (cells, 0), (dense * 0, 0)]):
        folder = write_folder(tmp_path / str(n), **{name: labels.astype(np.uint8)})
        assert warned(folder, text, ["cell"]) == expected


@pytest.mark.parametrize("name", ["label__tif", "class1__tif"])
def test_a_mask_of_two_cells_gives_a_warning(tmp_path, name):
    """A stray pixel beside a cell is none; a cell with a number may be in two pieces."""
    two = np.zeros(SIZE, np.uint8)
    two[5:15, 5:15] = two[5:15, 18:28] = 255
    stray = np.zeros(SIZE, np.uint8)
    stray[5:15, 5:15] = stray[20, 20] = 255
    for n, (labels, expected) in enumerate([(two, 1), (two > 0, 1), (stray, 0), (two // 255, 0)]):
        folder = write_folder(tmp_path / str(n), **{name: labels})
        assert warned(folder, "in several pieces", ["cell"]) == expected


def test_skip_bad_takes_pixels_that_are_not_numbers_as_one_label(tmp_path):
    labels = np.zeros(SIZE, np.float32)
    labels[5:15, 5:15], labels[30:40, 5:15], labels[5:15, 30:40] = 1, 2, np.nan
    path = write_folder(tmp_path / "x", class1__tif=labels) / "class1.tif"
    values, _, n_bad = read_label_map(path, path, SIZE, skip_bad=True)
    assert (values.tolist(), n_bad, count_labels(path)) == ([1, 2], 1, 3)


def test_cells_in_pieces_nearby_are_one_cell(tmp_path):
    labels = np.zeros(SIZE, np.uint8)
    labels[10:16, 5:40] = 1  # a long cell,
    labels[8:20, 18:28] = 2  # another across it
    labels[50:53, 50:53] = 3  # and one with a stray pixel
    labels[2, 85] = 3
    labels[30:50, 60:62] = labels[30:32, 60:80] = 4  # a hook
    assert warned(write_folder(tmp_path / "x", class1__tif=labels), "pieces far apart") == 0


@settings(deadline=None)
@given(
    arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 3))
)
def test_pieces_of_runs_are_those_of_scipy(labels):
    values, mask_runs = label_map_to_runs(labels)
    if len(values):
        n_pieces, piece = label_runs(labels.shape, *cut_at_columns(mask_runs))
        expected = [scipy.ndimage.label(labels == v, np.ones((3, 3)))[1] for v in values]
        mask = cut_at_columns(mask_runs)[0]
        assert [len(set(piece[mask == n])) for n in range(len(values))] == expected
        assert n_pieces == sum(expected)


# ------------------------------------------------------------------ orientation


@pytest.mark.parametrize("exif", [6, 8])
def test_exif_explains_a_size(tmp_path, exif):
    """Drawn on the image as it is stored, but it is read turned."""
    folder = write_folder(tmp_path / "x", "image.jpg", exif=exif, class1__tif=GRID)
    line = refusal(annotate, folder)
    assert "class1.tif: 60 x 90 (height x width), expected 90 x 60 as image.jpg" in line
    assert f"EXIF orientation {exif}" in line
    turned = write_folder(tmp_path / "y", "image.jpg", exif=exif, class1__tif=GRID.T)
    assert warned(turned, "EXIF") == 1


def test_exif_of_a_jpeg_with_the_name_of_a_png(tmp_path):
    """It is turned, as what a file is depends on its content."""
    drawn_on = {"stored": GRID, "shown": GRID.T}
    for name, labels in drawn_on.items():
        folder = write_folder(tmp_path / name, "image.jpg", exif=6, class1__tif=labels)
        (folder / "image.jpg").rename(folder / "image.png")
    line = refusal(annotate, tmp_path / "stored")
    assert "expected 90 x 60 as image.png (the image is turned on reading, as its EXIF" in line
    assert warned(tmp_path / "shown", "turned by their EXIF orientation") == 1


def test_exif_of_a_tiff_is_not_applied(tmp_path):
    folder = write_folder(tmp_path / "x", "image.tif", exif=6, class1__tif=GRID.T)
    assert "EXIF orientation 6" in refusal(annotate, folder)
    folder = write_folder(tmp_path / "y", "image.tif", exif=6, class1__tif=GRID)
    assert warned(folder, "EXIF") == 0


@pytest.mark.parametrize("name", ["image.jpg", "image.png", "image.tif"])
def test_half_a_turn_is_a_warning(tmp_path, name):
    """No size says if masks were drawn on the image as stored, or as some viewers show it."""
    folder = write_folder(tmp_path / "x", name, exif=3, class1__tif=GRID)
    assert warned(folder, "turned") == 1


def test_exif_does_not_explain_other_sizes(tmp_path):
    folder = write_folder(tmp_path / "x", "image.jpg", exif=6, class1__tif=GRID[:-1])
    assert "EXIF" not in refusal(annotate, folder)
    folder = write_folder(tmp_path / "y", "image.jpg", exif=3, class1__tif=GRID.T)
    assert "EXIF" not in refusal(annotate, folder)
