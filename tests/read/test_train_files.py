"""The layouts of `train/`: a folder for each image, or images and cells joined by their names."""

from __future__ import annotations

import os

import pytest

from cellseg.read.train_files import list_cell_files, list_train_images
from tests.read.refusal import refusal


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def listed(data, n_classes=4):
    """Return the files that have a part in each image, by its name in annotations; what is unused.

    Files are those of classes, by class, or of outlines, the label map and its table.
    """
    sources, unused = list_train_images(data)
    found = {}
    for image in (source.choose(n_classes) for source in sources):
        assert image.path == data / image.file_name
        others = [image.outlines, image.label_map, image.class_table]
        files = image.class_files or dict(enumerate(path for path in others if path))
        found[image.file_name] = [
            (k, str(path.relative_to(data / "train"))) for k, path in files.items()
        ]
    return found, unused


def test_folders_are_sorted_by_name(tmp_path):
    for name in ("b", "a", "c10", "c9", ".hidden"):
        (tmp_path / "train" / name).mkdir(parents=True)
    fill(tmp_path / "train", "notes.txt")
    sources, _ = list_train_images(tmp_path)
    assert [source.place.name for source in sources] == ["a", "b", "c10", "c9"]


def test_a_data_folder_without_training_images(tmp_path):
    assert "no such folder" in refusal(list_train_images, tmp_path / "absent")
    assert f"{tmp_path / 'train'}: no such folder" in refusal(list_train_images, tmp_path)
    fill(tmp_path / "train")
    assert "no training images" in refusal(list_train_images, tmp_path)
    (tmp_path / "file").write_text("")
    assert "not a folder" in refusal(list_train_images, tmp_path / "file")


def test_by_products_of_systems_and_archives_are_passed_over(tmp_path):
    names = ("Thumbs.db", "desktop.ini", ".DS_Store", "._image.tif", "Icon\r")
    folder = fill(tmp_path / "train" / "x", "image.tif", *names)
    fill(tmp_path / "train" / "x" / "__MACOSX", "._image.tif")
    fill(tmp_path / "train" / "__MACOSX" / "x", "._image.tif")
    fill(tmp_path / "train" / "@eaDir", "a")
    sources, unused = list_train_images(tmp_path)
    assert [source.place for source in sources] == [folder]
    assert sources[0].choose(4).ignored == ()
    assert unused == {}


def test_files_beside_the_folders(tmp_path):
    fill(tmp_path / "train", "x/image.tif", "y.tif", "Thumbs.db")
    _, unused = list_train_images(tmp_path)
    assert list(unused.values()) == [["y.tif"]]


def test_broken_links_to_folders(tmp_path):
    (tmp_path / "train").mkdir()
    link = tmp_path / "train" / "x"
    link.symlink_to(tmp_path / "missing")
    assert f"{link} links to is missing" in refusal(list_train_images, tmp_path)
    fill(tmp_path / "missing", "image.tif")
    assert [source.place for source in list_train_images(tmp_path)[0]] == [link]


# ------------------------------------------------------------------ folders of all images


@pytest.mark.parametrize(
    ("images", "cells", "files"),
    [
        ("images", "labels", ["a.tif", "a.tif"]),
        ("Images", "Labels", ["a.png", "a.mat"]),  # CoNSeP, Lizard
        ("tissue images", "label masks", ["a.png", "a.tif"]),  # NuInsSeg
        ("tissue images", "label masks modify", ["a.png", "a.tif"]),
        ("img", "masks", ["a_img.jpg", "a_masks.png"]),
        ("images", "masks", ["a.b.ome.tif", "a.b_cp_masks.npy"]),
        ("images", "annotations", ["a.bmp", "a.geojson.gz"]),
        ("images", "outlines", ["a.tiff", "a.xml"]),
        ("images", "outlines", ["a.png", "a.png.geojson"]),
        ("images", "labels", ["caf\u00e9.png", "cafe\u0301.tif"]),  # as macOS stores it
        ("images", "mask", ["image_1.tif", "image_1.mask.tif"]),
    ],
)
def test_images_and_cells_in_two_folders(tmp_path, images, cells, files):
    image, mask = files
    fill(tmp_path / "train", f"{images}/{image}", f"{cells}/{mask}")
    assert listed(tmp_path) == ({f"train/{images}/{image}": [(0, f"{cells}/{mask}")]}, {})


def test_modified_label_masks_replace_those_that_they_were_made_from(tmp_path):
    """In NuInsSeg's `label masks`, where cells overlap there are other numbers."""
    folders = {
        "tissue images": "png", "label masks": "tif", "Label Masks Modify": "tif",
        "stacked mask": "mat", "overlay": "png",
    }  # fmt: skip
    fill(tmp_path / "train", *[f"{folder}/a.{ending}" for folder, ending in folders.items()])
    found, unused = listed(tmp_path)
    assert found == {"train/tissue images/a.png": [(0, "Label Masks Modify/a.tif")]}
    assert [*unused.values()] == [["label masks", "overlay"]]


def test_images_of_similar_names(tmp_path):
    names = ["a.tif", "a_1.tif", "a_10.tif", "a_masks.tif", "b 1.tif"]
    fill(tmp_path / "train", *[f"images/{name}" for name in names])
    fill(tmp_path / "train", *[f"masks/{name}" for name in names])
    found, unused = listed(tmp_path)
    assert found == {f"train/images/{name}": [(0, f"masks/{name}")] for name in names}
    assert unused == {}


def test_a_folder_for_each_class(tmp_path):
    fill(tmp_path / "train", "images/a.png", "images/b.png", "class1/a.png", "class3/a.png")
    fill(tmp_path / "train", "class3/b.npy")
    assert listed(tmp_path)[0] == {
        "train/images/a.png": [(1, "class1/a.png"), (3, "class3/a.png")],
        "train/images/b.png": [(3, "class3/b.npy")],
    }
    (source, _), _ = list_train_images(tmp_path)
    assert "class3/a.png: class number out of range" in refusal(source.choose, 2)
    fill(tmp_path / "train", "class3/a.npy")
    (source, _), _ = list_train_images(tmp_path)
    assert "class3/a.png: same class as a.npy" in refusal(source.choose, 4)


@pytest.mark.parametrize("name", ["a.jpg", "a.csv"])
def test_a_class_in_another_format_is_not_ignored(tmp_path, name):
    """Its cells would be background."""
    fill(tmp_path / "train", "images/a.png", "class2/a.ome.tif", "class1/notes.txt")
    assert listed(tmp_path)[0] == {"train/images/a.png": [(2, "class2/a.ome.tif")]}
    fill(tmp_path / "train", f"class1/{name}")
    (source,), _ = list_train_images(tmp_path)
    assert f"class1/{name}: " in refusal(source.choose, 4)


def test_a_label_map_and_its_table(tmp_path):
    fill(tmp_path / "train", "images/a.png", "labels/a.png", "labels/a_classes.csv")
    assert listed(tmp_path)[0] == {
        "train/images/a.png": [(0, "labels/a.png"), (1, "labels/a_classes.csv")]
    }


def test_two_files_of_the_same_cells(tmp_path):
    fill(tmp_path / "train", "images/a.png", "labels/a.png", "masks/a.png")
    (source,), _ = list_train_images(tmp_path)
    line = refusal(source.choose, 4)
    assert "labels/a.png" in line
    assert "masks/a.png" in line


def test_what_has_no_other_is_named(tmp_path):
    """An image whose cells are not known must not be one without cells."""
    fill(tmp_path / "train", "images/a.png", "images/b.png", "images/c.svs", "labels/a.png")
    fill(tmp_path / "train", "labels/d.png", "labels/notes.txt", "Overlay/a.png", "readme.md")
    found, unused = listed(tmp_path)
    assert list(found) == ["train/images/a.png"]
    by_first_word = {reason.split()[0]: names for reason, names in unused.items()}
    assert by_first_word["images"] == ["b.png"]
    assert by_first_word["folders"] == ["Overlay"]
    assert sorted(unused.values()) == [
        ["Overlay"], ["b.png"], ["c.svs", "notes.txt"], ["d.png"], ["readme.md"],
    ]  # fmt: skip


@pytest.mark.parametrize("names", [["images.npy"], ["a/b.png"], []])
def test_no_image_in_the_folder_of_all(tmp_path, names):
    fill(tmp_path / "train", "labels/a.png", *[f"images/{name}" for name in names])
    (tmp_path / "train" / "images").mkdir(exist_ok=True)
    line = refusal(list_train_images, tmp_path)
    assert "images: no images" in line
    assert all(name.partition("/")[0] in line for name in names)


def test_names_that_do_not_fit(tmp_path):
    fill(tmp_path / "train", "images/a_HE.png", "labels/a_cells.png")
    line = refusal(list_train_images, tmp_path)
    assert "a_HE.png" in line
    assert "a_cells.png" in line
    fill(tmp_path / "train", "images/a_HE.jpg")
    assert "same name" in refusal(list_train_images, tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["images"],
        ["Masks"],
        ["images", "types"],
        ["imgs", "inputs"],
        ["images1", "images2", "labels"],
        ["images", "gt"],
    ],
)
def test_folders_of_all_images_without_cells_or_images(tmp_path, names):
    fill(tmp_path / "train", *[f"{name}/a.tif" for name in names])
    line = refusal(list_train_images, tmp_path)
    assert all(name in line for name in names)


def test_images_whose_folders_are_named_as_those_of_all(tmp_path):
    """A folder that has an image.tif is an image's, whatever its name."""
    fill(tmp_path / "train", "image/image.tif", "labels/image.tif", "labels/class1.tif")
    assert listed(tmp_path)[0] == {
        "train/image/image.tif": [],
        "train/labels/image.tif": [(1, "labels/class1.tif")],
    }


@pytest.mark.parametrize(
    "names", [["image.png"], ["image.png", "b.png"], ["image.tif", "image.csv"], ["image.geojson"]]
)
def test_an_image_named_image_in_the_folder_of_all(tmp_path, names):
    """Its label map is not an image."""
    images = {f"{name.partition('.')[0]}.png" for name in names}
    fill(tmp_path / "train", *[f"images/{name}" for name in images])
    fill(tmp_path / "train", *[f"labels/{name}" for name in names])
    found, unused = listed(tmp_path)
    assert list(found) == sorted(f"train/images/{name}" for name in images)
    files = sorted(path for cells in found.values() for _, path in cells)
    assert files == sorted(f"labels/{name}" for name in names)
    assert unused == {}


def test_folders_of_all_images_beside_those_of_single_ones(tmp_path):
    """What was made from the training images must not replace them."""
    fill(tmp_path / "train", "a/image.tif", "a/class1.tif", "b/image.tif", "b/class1.tif")
    fill(tmp_path / "train", "images/a.png", "masks/a.png")
    sources, _ = list_train_images(tmp_path)
    assert [source.place.name for source in sources] == ["a", "b", "images", "masks"]
    assert "images: no image.tif" in refusal(sources[2].choose, 4)


def test_an_image_named_as_a_class(tmp_path):
    names = ["images/class1.png", "labels/class1.png", "labels/class1.csv"]
    fill(tmp_path / "train", *names)
    assert listed(tmp_path)[0] == {"train/images/class1.png": [(0, names[1]), (1, names[2])]}


@pytest.mark.parametrize("name", ["a_seg.npy", "a.zip"])
def test_cells_in_files_of_other_types(tmp_path, name):
    fill(tmp_path / "train", "images/a.png", f"labels/{name}")
    line = refusal(list_train_images, tmp_path)
    assert name in line
    assert "not read" in line


# ------------------------------------------------------------------ side by side


@pytest.mark.parametrize(
    ("image", "cells"),
    [
        ("a.tif", "a_masks.tif"),
        ("a.tif", "a_cp_masks.png"),  # Cellpose
        ("a_img.png", "a_masks.png"),
        ("a.png", "a.geojson"),
        ("a.tif", "a.xml"),
        ("a.png", "a.mat"),
        ("a.jpg", "a-labels.npy"),
        ("a [x=1,y=2].tif", "a [x=1,y=2]_label.tif"),
    ],
)
def test_images_and_cells_side_by_side(tmp_path, image, cells):
    fill(tmp_path / "train", image, cells)
    assert listed(tmp_path) == ({f"train/{image}": [(0, cells)]}, {})


def test_what_has_no_other_side_by_side(tmp_path):
    fill(tmp_path / "train", "a.tif", "a.geojson", "b.tif", "c_masks.tif", "d.geojson", "e.txt")
    found, unused = listed(tmp_path)
    assert found == {"train/a.tif": [(0, "a.geojson")]}
    assert sorted(unused.values()) == [["b.tif"], ["c_masks.tif", "d.geojson"], ["e.txt"]]


def test_images_alone(tmp_path):
    fill(tmp_path / "train", "a.tif", "b.tif")
    line = refusal(list_train_images, tmp_path)
    assert "a.tif, b.tif" in line


# ------------------------------------------------------------------ files of cells


@pytest.mark.parametrize(
    "names",
    [
        ["x/image.tif", "x/class1.tif", "x/notes.txt"],
        ["images/x.tif", "labels/x.tif", "labels/notes.txt"],
        ["x.tif", "x_masks.tif", "notes.txt"],
    ],
)
def test_files_of_cells(tmp_path, names):
    fill(tmp_path / "train", *names)
    assert list(list_cell_files(tmp_path)) == [tmp_path / "train" / names[1]]


def test_files_of_cells_of_no_training_images(tmp_path):
    assert list(list_cell_files(tmp_path)) == []
    os.mkfifo(fill(tmp_path / "train") / "pipe")
    assert list(list_cell_files(tmp_path)) == []
