"""Image lists: the test list, those of annotation files, and a user's own images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellseg.errors import InputError
from cellseg.files import read_json
from cellseg.images import ImageRecord
from cellseg.read.coco import image_records, load_coco
from cellseg.read.layout import TEST_LIST, find_test_folder, list_images
from cellseg.read.names import (
    absolute_path,
    check_image_name,
    is_plain,
    name_images,
    name_outputs_uniquely,
)
from cellseg.read.resolution import is_plausible
from cellseg.read.slide import slide_id
from cellseg.read.window import image_size, open_image
from cellseg.text import show

_REMEDY = "restore the original file"
_NO_LIST = (
    "restore NYCU HW3's; predict other images with inference.py --images PATH, annotated ones with "
    "inference.py --dataset train or val"
)


def read_size(image: ImageRecord) -> tuple[int, int]:
    """Return an image's height and width, from the file's header if they aren't listed.

    Raises InputError if the header can't be read, or has no such level.
    """
    if image.size:
        return image.size
    if not image.level:
        return image_size(image.path)
    with open_image(image.path, image.level) as opened:
        return opened.size


def list_entry(image: ImageRecord) -> dict[str, Any]:
    """Return an image in the form of the test list, with level and mpp unless 0 or unknown."""
    height, width = read_size(image)
    entry = {"file_name": image.file_name, "id": image.id, "height": height, "width": width}
    more = {"level": image.level, "mpp": image.mpp}
    return entry | {key: value for key, value in more.items() if value}


def read_test_list(data: str | os.PathLike[str]) -> list[ImageRecord]:
    """Read `test_image_name_to_ids.json`, in its order, with the listed sizes.

    Raises InputError if the list is missing or broken, an id or a file occurs twice, or a file
    is not in the test folder.
    """
    path = Path(data) / TEST_LIST
    entries = read_json(path, "test list", _REMEDY if path.exists() else _NO_LIST)
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: no list of test images in it; {_REMEDY}")
    folder = find_test_folder(data)
    images = [_test_image(path, folder, entry, n) for n, entry in enumerate(entries, 1)]
    for key in ("id", "file_name"):
        seen: set[Any] = set()
        for image in images:
            value = getattr(image, key)
            if value in seen:
                raise InputError(f"{path}: the {key} {value} occurs twice; {_REMEDY}")
            seen.add(value)
    missing = [image for image in images if not image.path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{path}: lists {missing[0].file_name}{more}, not found in {folder}; put it there, or "
            "remove it from the list"
        )
    return images


def _test_image(path: Path, folder: Path, entry: Any, number: int) -> ImageRecord:
    if not isinstance(entry, dict):
        raise InputError(
            f"{path}: entry {number} is not an object with file_name, id, height and width; "
            f"{_REMEDY}"
        )
    name = entry.get("file_name")
    if not isinstance(name, str) or name in ("", ".", "..") or not is_plain(name):
        raise InputError(
            f"{path}: file_name {show(name)} in entry {number} is not the name of a file in "
            f"{folder.name}/; write the name without folders"
        )
    check_image_name(path, name)
    for key, minimum in (("id", 0), ("height", 1), ("width", 1)):
        value = entry.get(key)
        if type(value) is not int or value < minimum:
            raise InputError(
                f"{path}: {key} {show(value)} of {name} is not an integer of {minimum} or more; "
                "fix it"
            )
    return ImageRecord(entry["id"], name, folder / name, (entry["height"], entry["width"]))


def read_image_list(path: Path, remedy: str) -> list[ImageRecord]:
    """Read a list of images without checking the files: the test list, or that of `--images`.

    Raises InputError, with `remedy`, if it is missing or broken.
    """
    entries = read_json(path, "list of images", remedy)
    if (
        not isinstance(entries, list)
        or not entries
        or not all(
            isinstance(entry, dict)
            and isinstance(entry.get("file_name"), str)
            and type(entry.get("id")) is int
            and all(type(entry.get(k)) is int and entry[k] > 0 for k in ("height", "width"))
            and type(entry.get("level", 0)) is int
            and entry.get("level", 0) >= 0
            and is_plausible(entry.get("mpp", 1))
            and type(entry.get("tissue_px2", 0)) in (int, float)
            and entry.get("tissue_px2", 0) >= 0
            for entry in entries
        )
        or len({entry["id"] for entry in entries}) < len(entries)
    ):
        raise InputError(f"{path}: not a valid image list; {remedy}")
    name_outputs_uniquely(path, [entry["file_name"] for entry in entries])  # raises InputError
    return [
        ImageRecord(
            entry["id"],
            entry["file_name"],
            Path(entry["file_name"]),
            (entry["height"], entry["width"]),
            entry.get("level", 0),
            entry.get("mpp"),
            tissue_px=entry.get("tissue_px2"),
        )
        for entry in entries
    ]


def list_annotated_images(
    data: Path, annotations: Path, names: Sequence[str] | None = None
) -> list[ImageRecord]:
    """List the images of an annotation file, all or those with the given names.

    Raises InputError if one of `names` is not in the file.
    """
    images = image_records(load_coco(annotations), data)
    names_in_file = name_images([image.file_name for image in images])
    missing = sorted(set(names or ()) - set(names_in_file))
    if missing:
        raise InputError(
            f"{annotations}: has no image {missing[0]}, which is in the run's validation set; set "
            "the run's annotation file with --annotations"
        )
    return [
        image
        for name, image in zip(names_in_file, images, strict=True)
        if names is None or name in names
    ]


def list_image_files(paths: Sequence[Path]) -> list[ImageRecord]:
    """List images, and the images in folders, with the ids 1, 2, …, absolute names, each once.

    Of a slide in several DICOM files, that is the first.

    Raises InputError if a file is not found, a folder has no image, or a name can't be printed.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += list_images(path)
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"--images {path}: no such file, expected an image or a folder")
    unique_files: dict[object, Path] = {}
    for path in files:
        unique_files.setdefault(slide_id(path), path)
    names = [str(absolute_path(path)) for path in unique_files.values()]
    name_outputs_uniquely("--images", names)  # raises InputError
    return [
        ImageRecord(n, name, path, None)
        for n, (name, path) in enumerate(zip(names, unique_files.values(), strict=True), 1)
    ]
