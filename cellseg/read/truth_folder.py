"""Read a folder with the ground truth of listed images: a folder or a file for each image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.images import ImageRecord
from cellseg.messages import listed as listed_names
from cellseg.messages import plural, warn
from cellseg.read.annotate import annotate_image, annotate_without_pixels, warn_of_images
from cellseg.read.by_name import group_by_name, joined_name
from cellseg.read.coco import COCO, AnnotatedImage, build_coco, data_categories
from cellseg.read.layout import TrainImage, choose_files, list_entries, read_train_folder
from cellseg.read.names import image_name

_REMEDY = (
    "expected <image>/class<K>.tif for each annotated image, or a label map or outlines of its "
    "name, or a COCO file"
)


@dataclass(frozen=True)
class _ImageCells:
    """The cells of an image: its name, its folder or a file, and the files if it has no folder.

    Files are after the names that they would have in a folder of their own.
    """

    name: str
    place: Path
    files: tuple[tuple[str, Path], ...] | None = None


def read_truth_folder(
    folder: Path,
    data: Path,
    listed: Sequence[ImageRecord],
    list_path: Path,
    unpredicted: Sequence[str] | None = None,
) -> COCO:
    """Read a folder with the cells of listed images, whose ids the images get.

    Cells of other images are an error. If the names of listed images without results are given,
    theirs are ignored, and those of other images a warning. The classes are those of the data
    folder. Raises InputError as `annotate_image`, and if the files don't fit the list.
    """
    entries = list_entries(folder, _REMEDY)
    in_folders = any(path.is_dir() for path in entries)
    images: dict[str, list[str]] = {}
    for file_name in [*(image.file_name for image in listed), *(unpredicted or ())]:
        images.setdefault(_name(file_name, in_folders), []).append(file_name)
    records = {_name(image.file_name, in_folders): image for image in listed}
    if in_folders:
        all_cells = [_ImageCells(path.name, path) for path in entries if path.is_dir()]
        loose, _, _ = group_by_name([path for path in entries if not path.is_dir()], images, True)
        if beside := [path.name for files in loose.values() for _, path in files]:
            n = plural(len(beside), "file")
            warn(f"{folder}: {n} of cells beside the folders, ignored: {listed_names(beside)}")
    else:
        image_paths = {image.path.resolve() for image in listed}
        entries = [path for path in entries if path.resolve() not in image_paths]
        all_cells = _join_files(folder, entries, images)
    others = [each.place.name for each in all_cells if each.name not in images]
    if others and unpredicted is not None:
        if len(others) == len(all_cells):
            what = "folders" if in_folders else "files"
            raise InputError(
                f"{folder}: none of its {what} ({listed_names(others)}) has the name of an image "
                f"in {list_path}; pass the folder of the ground truth, {_REMEDY}"
            )
        n = plural(len(others), "image")
        warn(f"{folder}: {n} not in {list_path}, so not scored: {listed_names(others)}")
        all_cells = [each for each in all_cells if each.name in images]
    names = [category["name"] for category in data_categories(data)]
    annotated, ids = [], []
    for each in tqdm(all_cells, "reading ground truth", unit="image", leave=False, disable=None):
        if each.name not in images:
            raise InputError(
                f"{each.place}: no image of this name in {list_path}; remove it, or set the images'"
                " data folder with --data"
            )
        if len(images[each.name]) > 1:
            both = " and ".join(images[each.name])
            raise InputError(
                f"{each.place}: {both} in {list_path} both have this name; rename one of them there"
                " and its file, or pass a COCO file whose file names tell them apart by their "
                "folders"
            )
        if (record := records.get(each.name)) is None:
            continue
        cells = _annotate(each, record, names)
        if cells.size != record.size:
            expected = " x ".join(map(str, record.size or ()))
            raise InputError(
                f"{record.path}: {cells.size[0]} x {cells.size[1]} (height x width), expected"
                f" {expected} as in {list_path}; fix the list"
            )
        ids.append(record.id)
        annotated.append(replace(cells, file_name=record.file_name))
    warn_of_images(annotated)
    return build_coco(annotated, names, ids)


def _name(file_name: str, in_folders: bool) -> str:
    return image_name(file_name) if in_folders else joined_name(image_name(file_name))


def _join_files(
    folder: Path, files: Sequence[Path], images: dict[str, list[str]]
) -> list[_ImageCells]:
    """Return the cells of each image by the names of files, and those of others one by one."""
    cells, lost, others = group_by_name(files, images, all_maps=True)
    if not cells and not lost:
        raise InputError(f"{folder}: no folder in it, and no file of cells, {_REMEDY}")
    if others:
        names = listed_names([path.name for path in others])
        warn(f"{folder}: files that are not of cells, ignored: {len(others)}: {names}")
    own = [_ImageCells(name, some[0][1], tuple(some)) for name, some in sorted(cells.items())]
    return own + [_ImageCells(path.name, path) for path in lost]


def _annotate(cells: _ImageCells, image: ImageRecord, names: Sequence[str]) -> AnnotatedImage:
    """Read the cells of a listed image."""
    if cells.files is not None:
        files = [("image.tif", image.path), *cells.files]
        own = choose_files(cells.place, "", files, len(names))
    elif any(path.stem.lower() == "image" for path in cells.place.iterdir()):
        return annotate_image(read_train_folder(cells.place, len(names)), names)
    else:
        files_of_class = _class_files(cells.place, len(names))
        own = TrainImage(image.file_name, image.path, files_of_class, ())
    if image.size and not image.path.exists():
        return annotate_without_pixels(own, image.size, names)
    return annotate_image(own, names)


def _class_files(folder: Path, n_classes: int) -> dict[int, Path]:
    files = {}
    for path in list_entries(folder, "choose another"):
        match = re.fullmatch(r"class([1-9][0-9]*)\.(tiff?|png|npy)", path.name, re.IGNORECASE)
        if not match or int(match[1]) > n_classes or int(match[1]) in files:
            raise InputError(
                f"{path}: expected one class<K>.tif for each class, K from 1 to {n_classes};"
                " remove it or rename it"
            )
        files[int(match[1])] = path
    return files
