"""Read what the results are measured against."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.read.annotate import annotate_image
from cellseg.read.coco import COCO, build_coco, class_names, load_coco
from cellseg.read.layout import TEST_LIST, TrainImage, read_test_list

# The homework's four, where no annotation file names others.
CLASS_NAMES = ["class1", "class2", "class3", "class4"]


def read_truth(path: Path, data: Path) -> COCO:
    """Read annotations from a COCO file, or from a folder of label maps.

    Parameters
    ----------
    path
        A COCO file, or a folder `<image>/class<K>.tif` with a folder for each annotated
        image of the test list, empty if there is no cell in it.
    data
        The data folder, needed for a folder of label maps alone: its test list gives the
        ids, its `train__annot.json`, where there is one, the classes.

    Returns
    -------
    A COCO dict as of `cellseg.read.coco.load_coco`. Of a folder, it has the images that
    are annotated; their ids are the test list's.

    Raises
    ------
    InputError
        If there is no such file, something in it is damaged or doesn't fit its image.
    """
    return _read_folder(Path(path), Path(data)) if Path(path).is_dir() else load_coco(path)


def _read_folder(folder: Path, data: Path) -> COCO:
    images = {Path(image.file_name).stem: image for image in read_test_list(data)}
    annotations = data / "train__annot.json"
    names = class_names(load_coco(annotations)) if annotations.exists() else CLASS_NAMES
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if not folders:
        raise InputError(
            f"{folder}: no folder in it, expected <image>/class<K>.tif for each annotated image;"
            " name the folder that holds them, or a COCO file"
        )
    annotated = []
    for each in tqdm(folders, desc="reading truth", unit="image", leave=False, disable=None):
        if each.name not in images:
            raise InputError(
                f"{each}: no image of that name in {data / TEST_LIST}; remove the folder,"
                " or give the images' data folder with --data"
            )
        image = images[each.name]
        source = TrainImage(each.name, image.path, _class_files(each, len(names)), ())
        cells = annotate_image(source)
        if cells.size != (image.height, image.width):
            raise InputError(
                f"{image.path}: {cells.size[0]} x {cells.size[1]} (height x width), but"
                f" {data / TEST_LIST} says {image.height} x {image.width}; mend the list"
            )
        annotated.append((image.id, replace(cells, file_name=image.file_name)))

    truth = build_coco([cells for _, cells in annotated], names)
    ids = {made["id"]: id for made, (id, _) in zip(truth["images"], annotated, strict=True)}
    for image in truth["images"]:
        image["id"] = ids[image["id"]]
    for annotation in truth["annotations"]:
        annotation["image_id"] = ids[annotation["image_id"]]
    return truth


def _class_files(folder: Path, n_classes: int) -> dict[int, Path]:
    files = {}
    for path in sorted(folder.glob("[!.]*")):
        match = re.fullmatch(r"class([1-9][0-9]*)\.tiff?", path.name, re.IGNORECASE)
        if not match or int(match[1]) > n_classes or int(match[1]) in files:
            raise InputError(
                f"{path}: expected one class<K>.tif for each class, K from 1 to {n_classes};"
                " remove it, or rename it"
            )
        files[int(match[1])] = path
    return files
