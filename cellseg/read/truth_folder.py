"""Read a folder with the ground truth of listed images: a folder or a file for each image."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.files import display_path
from cellseg.images import ImageRecord
from cellseg.messages import listed as listed_names
from cellseg.messages import plural, warn
from cellseg.read.annotate import annotate_image, annotate_without_pixels, warn_of_images
from cellseg.read.by_name import group_by_name, joined_name
from cellseg.read.coco import COCO, AnnotatedImage, build_coco
from cellseg.read.layout import TrainImage, class_number, list_entries
from cellseg.read.merge_classes import read_merge
from cellseg.read.names import image_name
from cellseg.read.train_files import ImageFiles, find_shared_folders

_REMEDY = (
    "expected <image>/class<K>.tif for each annotated image, or a label map or outlines of its "
    "name, or a COCO file"
)


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
    file_names = [*(image.file_name for image in listed), *(unpredicted or ())]
    entries = list_entries(folder, _REMEDY)
    folders = [path for path in entries if path.is_dir()]
    if {path.name for path in folders}.isdisjoint(map(image_name, file_names)):
        # As in train/: labels/ beside images/, or class1/, class2/, …
        _, shared = find_shared_folders(folders)
        entries = [path for each in shared for path in list_entries(each, _REMEDY)] or entries
    in_folders = any(path.is_dir() for path in entries)
    images: dict[str, list[str]] = {}
    for file_name in file_names:
        images.setdefault(_name(file_name, in_folders), []).append(file_name)
    if in_folders:
        sources, others = _find_folders(folder, entries, images)
    else:
        image_paths = {image.path.resolve() for image in listed}
        files = [path for path in entries if path.resolve() not in image_paths]
        sources, others = _find_files(folder, files, images)
    meant = None if sources else _find_meant(folder, set(map(image_name, file_names)), listed)
    if others and unpredicted is None:
        remedy = "remove it, or set the images' data folder with --data"
        raise InputError(
            f"{others[0]}: no image of this name in {list_path}; {_pass(meant) or remedy}"
        )
    if others:
        other_names = listed_names([path.name for path in others])
        if not sources:
            what = "folders" if in_folders else "files"
            raise InputError(
                f"{folder}: none of its {what} ({other_names}) has the name of an image in "
                f"{list_path}; {_pass(meant) or f'pass the folder of the ground truth, {_REMEDY}'}"
            )
        n = plural(len(others), "image")
        warn(f"{folder}: {n} not in {list_path}, so not scored: {other_names}")
    merge = read_merge(data)
    if merge.names != merge.file_names:
        print(f"{display_path(folder)}: classes merged as in the annotation file: {merge}")
    records = {_name(image.file_name, in_folders): image for image in listed}
    annotated, ids, used = [], [], {0}
    bar = {"unit": "image", "leave": False, "disable": None}
    for name, source in tqdm(sources.items(), "reading ground truth", **bar):
        if len(images[name]) > 1:
            both = " and ".join(images[name])
            raise InputError(
                f"{source.place}: {both} in {list_path} both have this name; rename one of them"
                " there and its file, or pass a COCO file whose file names tell them apart by"
                " their folders"
            )
        if image := records.get(name):
            cells = _annotate(source, image, merge.file_names, list_path)
            annotated.append(merge.apply(cells))
            used |= {number for number, masks in cells.cells.items() if len(masks)}
            ids.append(image.id)
    warn_of_images(annotated)
    if max(used) <= len(merge.names) < len(merge.file_names):
        warn(
            f"{folder}: of the classes {', '.join(merge.file_names)} only the first "
            f"{len(merge.names)} occur; if they are merged already, pass a COCO file of them"
        )
    return build_coco(annotated, merge.names, ids)


def _find_meant(folder: Path, names: set[str], listed: Sequence[ImageRecord]) -> Path | None:
    """Return the folder above or in a folder that has entries of images' names, if it is one."""
    if folder.resolve().name in names:
        return folder.resolve().parent
    images = {image.path.resolve() for image in listed}
    meant = {
        path.parent
        for path in folder.glob("*/*")
        if image_name(path.name) in names and path.resolve() not in images
    }
    return meant.pop() if len(meant) == 1 else None


def _pass(meant: Path | None) -> str:
    return f"pass {display_path(meant)}, which seems to be meant" if meant else ""


def _name(file_name: str, in_folders: bool) -> str:
    return image_name(file_name) if in_folders else joined_name(image_name(file_name))


def _find_folders(
    folder: Path, entries: Sequence[Path], images: Container[str]
) -> tuple[dict[str, ImageFiles], list[Path]]:
    """Return the folder of each image with one, by its name, and the folders of other images."""
    folders = [path for path in entries if path.is_dir()]
    loose, _, _ = group_by_name([path for path in entries if not path.is_dir()], images, True)
    if beside := [path.name for files in loose.values() for _, path in files]:
        n = plural(len(beside), "file")
        warn(f"{folder}: {n} of cells beside the folders, ignored: {listed_names(beside)}")
    sources = {path.name: ImageFiles(path, "") for path in folders if path.name in images}
    return sources, [path for path in folders if path.name not in images]


def _find_files(
    folder: Path, files: Sequence[Path], images: Container[str]
) -> tuple[dict[str, ImageFiles], list[Path]]:
    """Return the files of the cells of each image with some, by its name, and those of others."""
    cells, lost, others = group_by_name(files, images, all_maps=True)
    if not cells and not lost:
        raise InputError(f"{folder}: no folder in it, and no file of cells, {_REMEDY}")
    if others:
        names = listed_names([path.name for path in others])
        warn(f"{folder}: files that are not of cells, ignored: {len(others)}: {names}")
    sources = {
        name: ImageFiles(some[0][1], "", tuple(some)) for name, some in sorted(cells.items())
    }
    return sources, lost


def _annotate(
    source: ImageFiles, image: ImageRecord, names: Sequence[str], list_path: Path
) -> AnnotatedImage:
    """Read the cells of a listed image. Raises InputError if it has another size than listed."""
    own = _choose(source, image, len(names))
    if image.size and not own.path.exists():
        cells = annotate_without_pixels(own, image.size, names)
    else:
        cells = annotate_image(own, names)
    if cells.size != image.size:
        expected = " x ".join(map(str, image.size or ()))
        raise InputError(
            f"{image.path}: {cells.size[0]} x {cells.size[1]} (height x width), expected"
            f" {expected} as in {list_path}; fix the list"
        )
    return replace(cells, file_name=image.file_name)


def _choose(source: ImageFiles, image: ImageRecord, n_classes: int) -> TrainImage:
    """Return what the files of a listed image's cells are. A folder may have the image, too."""
    files = source.files
    if files is None:
        entries = list_entries(source.place, "choose another")
        if any(path.stem.lower() == "image" for path in entries):
            return source.choose(n_classes)
        numbers = [class_number(path.name, n_classes) for path in entries]
        if not entries or any(number is not None for number in numbers):
            return _choose_class_maps(entries, numbers, image, n_classes)
        files = tuple((path.name, path) for path in entries)
    return replace(source, files=(("image.tif", image.path), *files)).choose(n_classes)


def _choose_class_maps(
    entries: Sequence[Path], numbers: Sequence[int | None], image: ImageRecord, n_classes: int
) -> TrainImage:
    """Return the label maps of a folder with nothing else, by the class of each."""
    class_files: dict[int, Path] = {}
    for path, number in zip(entries, numbers, strict=True):
        if not number or number in class_files:
            raise InputError(
                f"{path}: expected one class<K>.tif for each class, K from 1 to {n_classes};"
                " remove it or rename it"
            )
        class_files[number] = path
    return TrainImage(image.file_name, image.path, class_files, ())
