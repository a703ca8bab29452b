"""NYCU HW3's layout: the files of a data folder, and errors in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cellseg.read.layout import (
    find_test_folder,
    list_images,
    read_train_folder,
)
from cellseg.read.train_files import list_train_images
from tests.read.refusal import refusal


def fill(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_files_of_a_training_image(tmp_path):
    folder = fill(tmp_path / "x", "image.tif", "class4.tif", "class2.tif", "a.txt", "._image.tif")
    image = read_train_folder(folder, 4)
    assert (image.file_name, image.path) == ("train/x/image.tif", folder / "image.tif")
    assert list(image.class_files) == [2, 4]
    assert image.class_files[4] == folder / "class4.tif"
    assert image.ignored == ("a.txt",)


def test_capitals_and_long_endings(tmp_path):
    folder = fill(tmp_path / "x", "Image.TIFF", "CLASS1.tiff", "Class2.TIF")
    image = read_train_folder(folder, 2)
    assert image.path.name == "Image.TIFF"
    assert {k: p.name for k, p in image.class_files.items()} == {1: "CLASS1.tiff", 2: "Class2.TIF"}


def test_more_than_nine_classes(tmp_path):
    folder = fill(tmp_path / "x", "image.tif", "class10.tif", "class9.tif")
    assert list(read_train_folder(folder, 10).class_files) == [9, 10]


@pytest.mark.parametrize("number", ["5", "0", "01", "", "x", "-1", "9" * 20, "²"])
def test_a_class_number_out_of_range(tmp_path, number):
    folder = fill(tmp_path / "x", "image.tif", f"class{number}.tif")
    line = refusal(read_train_folder, folder, 4)
    assert line.startswith(f"{folder / f'class{number}.tif'}: ")
    assert "class4.tif" in line
    assert "--class_names" in line


def test_a_folder_with_no_image_or_two(tmp_path):
    folder = fill(tmp_path / "x", "class1.tif")
    assert refusal(read_train_folder, folder, 4).startswith(f"{folder}: no image.tif")
    fill(folder, "image.tif", "image.tiff")
    assert "image.tif and image.tiff" in refusal(read_train_folder, folder, 4)


def test_two_files_for_one_class(tmp_path):
    folder = fill(tmp_path / "x", "image.tif", "class1.tif", "class1.tiff")
    assert "same class as class1.tif" in refusal(read_train_folder, folder, 4)


@pytest.mark.parametrize("name", ["class1.jpg", "Class1.ome.tif", "class1.tif.bak"])
def test_a_mask_in_another_format_is_not_ignored(tmp_path, name):
    folder = fill(tmp_path / "x", "image.tif", "class2.tif", name)
    line = refusal(read_train_folder, folder, 4)
    assert f"as {name[:6]}.tif" in line
    assert ("other labels" in line) == name.endswith("jpg")


def test_names_with_spaces_of_other_scripts(tmp_path):
    folders = [tmp_path / "train" / name for name in ("3.14\u202fPM", "全角\u3000空白")]
    for folder in folders:
        fill(folder, "image.tif", "class1.tif")
    listed = [source.place.name for source in list_train_images(tmp_path)[0]]
    assert listed == [f.name for f in sorted(folders)]


@pytest.mark.skipif(os.name != "posix", reason="the name can't be made")
def test_a_name_that_is_not_text(tmp_path):
    fill(tmp_path / "train")
    Path(os.fsdecode(os.fsencode(tmp_path / "train") + b"/\xff")).mkdir()
    assert "can't be printed" in refusal(list_train_images, tmp_path)


@pytest.mark.parametrize("name", ["test", "test_release"])
def test_both_names_of_the_test_folder(tmp_path, name):
    fill(tmp_path / name, "a.tif")
    assert find_test_folder(tmp_path) == tmp_path / name


def test_two_test_folders(tmp_path):
    fill(tmp_path / "test", "a.tif", ".hidden")
    fill(tmp_path / "test_release", "a.tif")
    assert find_test_folder(tmp_path) == tmp_path / "test"
    fill(tmp_path / "test_release", "b.tif")
    assert "different files" in refusal(find_test_folder, tmp_path)


@pytest.mark.parametrize(("empty", "full"), [("test", "test_release"), ("test_release", "test")])
def test_an_empty_test_folder_and_a_full_one(tmp_path, empty, full):
    fill(tmp_path / empty)
    fill(tmp_path / full, "a.tif")
    assert find_test_folder(tmp_path) == tmp_path / full


def test_no_test_folder(tmp_path):
    assert "no test/ or test_release/" in refusal(find_test_folder, tmp_path)


def test_folders_in_another_case_are_named(tmp_path):
    if (tmp_path.parent / tmp_path.name.upper()).exists():
        pytest.skip("the file system ignores case")
    for name in ("Train", "TEST"):
        (tmp_path / name).mkdir()
    for read, name, there in (
        (list_train_images, "train", "Train"),
        (find_test_folder, "test", "TEST"),
    ):
        assert f"rename {tmp_path / there} to {tmp_path / name}, " in refusal(read, tmp_path)


def test_images_of_a_folder(tmp_path, capsys):
    """Whatever is left out is named, except hidden files and a slide's own folder."""
    files = ("b.PNG", "a.tif", "c.txt", ".d.tif", "e.jpeg", "f.lif", "g.mrxs", "h.SVS")
    fill(tmp_path / "in", *files)
    fill(tmp_path / "in" / "folder.tif")
    fill(tmp_path / "in" / "g", "Slidedat.ini")
    (tmp_path / "in" / "link.tif").symlink_to(tmp_path / "gone.tif")
    (tmp_path / "in" / "to a.tif").symlink_to(tmp_path / "in" / "a.tif")
    names = [path.name for path in list_images(tmp_path / "in")]
    assert names == ["a.tif", "b.PNG", "e.jpeg", "g.mrxs", "h.SVS", "to a.tif"]
    folders, links, others = capsys.readouterr().err.splitlines()
    assert folders.startswith(f"warning: {tmp_path / 'in'}: 1 folder left out (")
    assert folders.endswith(": folder.tif")
    assert links.startswith(f"warning: {tmp_path / 'in'}: 1 link left out (")
    assert links.endswith(": link.tif")
    assert others.startswith(f"warning: {tmp_path / 'in'}: 2 files left out (")
    assert others.endswith(": c.txt, f.lif")
    fill(tmp_path / "whole", "a.tif")
    list_images(tmp_path / "whole")
    assert capsys.readouterr().err == ""
    fill(tmp_path / "none", "c.txt")
    (tmp_path / "none" / "link.tif").symlink_to(tmp_path / "gone.tif")
    assert "no images" in refusal(list_images, tmp_path / "none")
    assert str(tmp_path / "none" / "link.tif") in refusal(list_images, tmp_path / "none")
    assert str(tmp_path / "in") in refusal(list_images, tmp_path)  # of its folders
    assert "no such folder" in refusal(list_images, tmp_path / "absent")
    assert "not a folder" in refusal(list_images, tmp_path / "in" / "a.tif")


# ------------------------------------------------------------------ files with cells


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("label.png", "label_map"),
        ("image_cp_masks.tif", "label_map"),
        ("a.mat", "label_map"),
        ("a.geojson.gz", "outlines"),
        ("a.json", "outlines"),
    ],
)
def test_files_of_all_classes(tmp_path, name, field):
    folder = fill(tmp_path / "x", "image.jpg", name)
    image = read_train_folder(folder, 4)
    assert getattr(image, field) == folder / name
    assert image.ignored == ()
    # Unless there are label maps of the usual names.
    fill(folder, "class1.png")
    if name.endswith((".json", ".png", ".tif", ".mat")):
        image = read_train_folder(folder, 4)
        assert (getattr(image, field), image.ignored) == (None, (name,))
    else:
        assert "both contain annotations" in refusal(read_train_folder, folder, 4)


def test_xml_of_other_programs(tmp_path):
    folder = fill(tmp_path / "x", "image.tif")
    (folder / "A.XML").write_text("<metadata/>")
    assert read_train_folder(folder, 4).outlines == folder / "A.XML"  # whose reader refuses it
    fill(folder, "class1.tif")
    assert read_train_folder(folder, 4).ignored == ("A.XML",)
    for text in (
        "<Annotations/>",
        '<?xml version="1.0"?><!--1-->\n<Annotations MicronsPerPixel="1">',
    ):
        for encoding in ("utf-8", "utf-16"):
            (folder / "A.XML").write_text(text, encoding)
            assert "both contain annotations" in refusal(read_train_folder, folder, 4)


def test_a_label_map_with_its_table_and_other_files(tmp_path):
    folder = fill(tmp_path / "x", "image.tif", "label.npy", "a.csv", "settings.json", "x_seg.npy")
    image = read_train_folder(folder, 4)
    assert image.label_map == folder / "label.npy"
    assert image.class_table == folder / "a.csv"
    assert image.ignored == ("settings.json", "x_seg.npy")
    (folder / "b.tsv").write_text("label\tclass\n1\t2\n")
    assert read_train_folder(folder, 4).class_table == folder / "b.tsv"
    (folder / "a.csv").write_text('"Class"; Label\n1;2\n')
    assert "a.csv and b.tsv" in refusal(read_train_folder, folder, 4)


def test_a_table_of_something_else_beside_a_single_class(tmp_path):
    folder = fill(tmp_path / "x", "image.tif", "label.tif", "measurements.csv")
    image = read_train_folder(folder, 1)
    assert (image.class_table, image.ignored) == (None, ("measurements.csv",))
    (folder / "measurements.csv").write_text("label,area,class\n1,2,3\n")
    assert read_train_folder(folder, 1).class_table == folder / "measurements.csv"


@pytest.mark.parametrize("name", ["label.tif", "cells.json", "cells.geojson", "class1.tif"])
def test_what_a_matlab_file_was_converted_to_is_used(tmp_path, name):
    folder = fill(tmp_path / "a", "image.tif", "a.mat", name)
    image = read_train_folder(folder, 4)
    used = [image.label_map, image.outlines, *image.class_files.values()]
    assert [path for path in used if path] == [folder / name]
    assert image.ignored == ("a.mat",)


@pytest.mark.parametrize("names", [("label.tif", "a_masks.png"), ("a.json", "b.json")])
def test_two_files_of_all_classes(tmp_path, names):
    folder = fill(tmp_path / "x", "image.tif", *names)
    assert "both contain annotations" in refusal(read_train_folder, folder, 4)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("image_seg.npy", "Cellpose"),
        ("RoiSet.zip", "ImageJ"),
        ("cells.geojson.zip", "unpack"),
        ("0012-0034.roi", "ImageJ"),
        ("image.npz", "expected a label map"),
        ("masks.h5", "expected a label map"),
        ("image_outlines.txt", "or outlines"),
        ("table.csv", "move it out of the folder"),
        ("nuclei.tif", "rename it"),
        ("label.jpg", "other labels at the edges"),
        ("0001_masks.JPEG", "other labels at the edges"),
    ],
)
def test_cells_in_other_files_are_not_no_cells(tmp_path, name, advice):
    folder = fill(tmp_path / "x", "image.tif", name)
    line = refusal(read_train_folder, folder, 4)
    assert line.startswith(f"{folder / name}: ")
    assert advice in line


def test_a_folder_of_masks_is_not_no_cells(tmp_path):
    fill(tmp_path / "x", "image.tif")
    fill(tmp_path / "x" / "masks", "1.png")
    assert str(tmp_path / "x" / "masks") in refusal(read_train_folder, tmp_path / "x", 4)


def test_an_image_of_another_name(tmp_path):
    folder = fill(tmp_path / "x", "x.png", "class1.tif")
    assert "rename x.png to image.png" in refusal(read_train_folder, folder, 4)


@pytest.mark.parametrize("name", ["x.svs", "image.svs", "image.webp"])
def test_images_that_are_not_read_are_not_to_be_renamed(tmp_path, name):
    line = refusal(read_train_folder, fill(tmp_path / "x", name, "cells.xml"), 4)
    assert name in line
    assert "rename" not in line


def test_a_folder_of_images_and_one_of_masks_for_each_image(tmp_path):
    folder = fill(tmp_path / "0a", "readme.md")
    fill(folder / "images", "0a.png")
    fill(folder / "masks", "1.png", "2.png")
    line = refusal(read_train_folder, folder, 4)
    assert "no image.tif" in line
    assert str(folder / "masks") in line


def test_a_tiff_is_the_image_and_others_are_previews(tmp_path):
    folder = fill(tmp_path / "x", "image.tif", "image.png", "class1.tif")
    image = read_train_folder(folder, 4)
    assert (image.path.name, image.ignored) == ("image.tif", ("image.png",))
    fill(tmp_path / "y", "image.jpg", "image.png")
    assert "image.jpg and image.png" in refusal(read_train_folder, tmp_path / "y", 4)
