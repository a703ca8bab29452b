"""Read what the results are measured against."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.read.annotate import annotate_image
from cellseg.read.coco import COCO, build_coco, class_names, load_coco
from cellseg.read.layout import CLASS_NAMES, TEST_LIST, TestImage, TrainImage, read_test_list


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
    images: dict[str, list[TestImage]] = {}
    for image in read_test_list(data):
        images.setdefault(Path(image.file_name).stem, []).append(image)
    annotations = data / "train__annot.json"
    names = class_names(load_coco(annotations)) if annotations.exists() else list(CLASS_NAMES)
    folders = [path for path in _entries(folder) if path.is_dir()]
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
        if len(images[each.name]) > 1:
            both = " and ".join(image.file_name for image in images[each.name])
            raise InputError(
                f"{each}: {both} in {data / TEST_LIST} are both called so; rename one of them"
                " there and in the folder of the test images"
            )
        image = images[each.name][0]
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
    for path in _entries(folder):
        match = re.fullmatch(r"class([1-9][0-9]*)\.tiff?", path.name, re.IGNORECASE)
        if not match or int(match[1]) > n_classes or int(match[1]) in files:
            raise InputError(
                f"{path}: expected one class<K>.tif for each class, K from 1 to {n_classes};"
                " remove it, or rename it"
            )
        files[int(match[1])] = path
    return files


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name[0] != ".")
    except OSError as error:
        raise InputError(
            f"{folder}: can't be listed ({error.strerror}); check its rights"
        ) from None
