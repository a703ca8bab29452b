"""Lists of images: the test list, those of annotation files, and of a user's own images."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cellseg.errors import InputError
from cellseg.files import read_json
from cellseg.images import ImageRecord
from cellseg.messages import collect_warnings, listed, plural, warn
from cellseg.read.by_name import split_label_maps
from cellseg.read.coco import image_records, load_coco
from cellseg.read.layout import TEST, TEST_LIST, find_test_folder, list_images
from cellseg.read.names import (
    absolute_path,
    check_image_name,
    is_plain,
    name_images,
    name_outputs_uniquely,
)
from cellseg.read.resolution import MPP_RANGE, is_plausible
from cellseg.read.results import AGAIN, MANIFEST, cohort_results, is_cohort, sidecar_path
from cellseg.read.slide import slide_id
from cellseg.read.window import image_size, open_image
from cellseg.rle import decode
from cellseg.text import printable, show

_REMEDY = "restore the original file"
_NO_LIST = (
    "restore NYCU HW3's; predict other images with inference.py --images PATH, annotated ones with "
    "inference.py --dataset train or val"
)


@dataclass(frozen=True)
class ImageSet:
    """Images to predict into one results file.

    Attributes
    ----------
    results_name
        Name of that file.
    images
        The images.
    data
        The data folder, None for a user's own images.
    annotations
        The COCO file that the ids refer to, None for the test list and for a user's own images.
    categories
        The classes of the data folder, for the test list only.
    """

    results_name: str
    images: list[ImageRecord]
    data: Path | None = None
    annotations: Path | None = None
    categories: list[dict[str, Any]] | None = None

    @property
    def is_own(self) -> bool:
        """Whether they are a user's own images."""
        return self.data is None

    @property
    def is_test(self) -> bool:
        """Whether they are those of the test list."""
        return self.categories is not None


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


def read_test_list(data: str | os.PathLike[str], *, with_files: bool = True) -> list[ImageRecord]:
    """Read `test_image_name_to_ids.json`, in its order, with the listed sizes.

    Raises InputError if the list is missing or broken, an id or a file occurs twice, or, unless
    `with_files` is False, a file is not in the test folder.
    """
    path = Path(data) / TEST_LIST
    remedy = _REMEDY if path.exists() else _NO_LIST
    entries = _read_entries(path, "test images", remedy, _check_test_entry)
    folder = find_test_folder(data) if with_files else Path(data) / TEST[0]
    images = [_record(entry, folder / entry["file_name"]) for entry in entries]
    missing = [image for image in images if with_files and not image.path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{path}: lists {missing[0].file_name}{more}, not found in {folder}; put it there, or "
            "remove it from the list"
        )
    return images


def _check_test_entry(where: str, entry: dict[str, Any]) -> None:
    name = entry["file_name"]
    if name in ("", ".", "..") or not is_plain(name):
        raise InputError(
            f"{where}: file_name {show(name)} is not the name of a file in the test folder; write "
            "the name without folders"
        )
    check_image_name(where, name)


def _read_own_list(path: Path) -> tuple[list[ImageRecord], list[str]]:
    """Read the list that inference.py wrote of a user's own images, without checking the files.

    Returns the images and their output names. Raises InputError if it is missing or broken.
    """
    entries = _read_entries(path, "images", AGAIN, _check_own_entry)
    names = name_outputs_uniquely(path, [entry["file_name"] for entry in entries])
    images = [
        replace(
            _record(entry, Path(entry["file_name"])),
            level=entry.get("level", 0),
            mpp=entry.get("mpp"),
            region_mask=entry.get("regions"),
            tissue_px=entry.get("tissue_px2"),
        )
        for entry in entries
    ]
    return images, names


def _check_own_entry(where: str, entry: dict[str, Any]) -> None:
    size = entry["height"], entry["width"]
    for key, is_valid, expected in (
        ("level", lambda n: type(n) is int and n >= 0, "an integer of 0 or more"),
        ("mpp", is_plausible, MPP_RANGE),
        ("tissue_px2", lambda n: type(n) in (int, float) and n >= 0, "a number of 0 or more"),
        ("bytes", lambda n: type(n) is int and n >= 0, "an integer of 0 or more"),
        ("regions", lambda mask: _is_mask(mask, size), "a mask of the image's size"),
    ):
        if key in entry and not is_valid(entry[key]):
            raise InputError(f"{where}: {key} {show(entry[key])} is not {expected}; {AGAIN}")


def _is_mask(mask: Any, size: tuple[int, int]) -> bool:
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str):
        return False
    try:
        return mask.get("size") == [*size] and len(decode([mask], size)) == 1
    except ValueError:
        return False


def _record(entry: dict[str, Any], path: Path) -> ImageRecord:
    return ImageRecord(entry["id"], entry["file_name"], path, (entry["height"], entry["width"]))


def _read_entries(
    path: Path, what: str, remedy: str, check: Callable[[str, dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Read a list of images: check what every list has, and with `check` the rest of each entry.

    `what` are the images, and `remedy` is what to do, for messages. Raises InputError, also if
    `check` does, for the first entry that is broken or has the id or file of an earlier one.
    """
    entries = read_json(path, f"list of {what}", remedy)
    where = f"{path}: not a valid image list"
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{where}: no list of {what} in it; {remedy}")
    seen: set[tuple[str, Any]] = set()
    for number, entry in enumerate(entries, 1):
        where = f"{path}: not a valid image list: entry {number}"
        if not isinstance(entry, dict):
            raise InputError(
                f"{where} is not an object with file_name, id, height and width; {remedy}"
            )
        name = entry.get("file_name")
        if not isinstance(name, str):
            raise InputError(f"{where}: file_name {show(name)} is not the name of a file; {remedy}")
        for key, minimum in (("id", 0), ("height", 1), ("width", 1)):
            value = entry.get(key)
            if type(value) is not int or value < minimum:
                raise InputError(
                    f"{where}: {key} {show(value)} of {printable(name)} is not an integer of "
                    f"{minimum} or more; {remedy}"
                )
        check(where, entry)
        for key in ("id", "file_name"):
            if (key, entry[key]) in seen:
                value = printable(str(entry[key]))
                raise InputError(f"{where}: the {key} {value} occurs twice; {remedy}")
            seen.add((key, entry[key]))
    return entries


@dataclass(frozen=True)
class ListedImages:
    """N images of a user's own, and where their results are.

    Attributes
    ----------
    source
        The list, or the manifest of many slides.
    images
        N records, with different ids.
    names
        N names of the images and their outputs, all different.
    parts
        The results: files, or folders as of `results_file`, each with the ids in `images` of the
        image ids in it.
    others
        Paths of slides without results, with which others may share a name.
    """

    source: Path
    images: list[ImageRecord]
    names: list[str]
    parts: list[tuple[Path, dict[int, int]]]
    others: list[str] = field(default_factory=list)


def has_list(path: Path) -> bool:
    """Return whether results are of a user's own images, listed next to them."""
    return is_cohort(path) or sidecar_path(path, "list").is_file()


def read_listed_images(path: Path) -> ListedImages | None:
    """Read the list of results on a user's own images, or those of many slides.

    Parameters
    ----------
    path
        Results as of `results_file`, or a folder of many slides, which get the ids 1, 2, … in the
        order of the table, and as names those of their folders.

    Returns
    -------
    The images; None for results of the test list or of annotations.

    Raises
    ------
    InputError
        If a list is missing or damaged, or `cohort_results` does.
    """
    if not has_list(path):
        return None
    if not is_cohort(path):
        source = sidecar_path(path, "list")
        images, names = _read_own_list(source)
        ids = {image.id: image.id for image in images}
        return ListedImages(source, images, names, [(path, ids)])
    done, others = cohort_results(path)
    slides = ListedImages(path / MANIFEST, [], [], [], others)
    for name, folder in done:
        source = sidecar_path(folder, "list")
        images, _ = _read_own_list(source)
        if len(images) != 1:
            raise InputError(f"{source}: {len(images)} images, expected the slide alone; {AGAIN}")
        id_ = 1 + len(slides.images)
        slides.images.append(replace(images[0], id=id_))
        slides.names.append(name)
        slides.parts.append((folder, {images[0].id: id_}))
    return slides


def warn_of_changed_images(path: Path) -> None:
    """Warn if files of a user's own images have another size than when they were predicted.

    `path` is as for `read_listed_images`. Their times say less, as copies have new ones.
    """
    with collect_warnings():  # what reads the results says them
        listed_images = read_listed_images(path)
    changed = []
    for part, _ in listed_images.parts if listed_images else ():
        for entry in read_json(sidecar_path(part, "list"), "list of images", AGAIN):
            with contextlib.suppress(OSError):
                n_bytes = Path(entry["file_name"]).stat().st_size
                if n_bytes != entry.get("bytes", n_bytes):
                    changed.append(entry["file_name"])
    if changed:
        warn(
            f"{path}: images whose files have changed since they were predicted, so that the cells "
            f"may be elsewhere in them: {len(changed)}: {listed(changed)}; predict them again"
        )


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

    Label maps in folders, such as `a_masks.tif` beside `a.tif`, are left out, with a warning. Of a
    slide in several DICOM files, the first is listed.

    Raises InputError if a file is not found, a folder has no image, or a name can't be printed.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            images, label_maps = split_label_maps(list_images(path))
            files += images
            if label_maps:
                n = plural(len(label_maps), "label map")
                names = listed([each.name for each in label_maps])
                warn(f"{path}: {n} of images left out, by their names: {names}")
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"--images {path}: no such file, expected an image or a folder")
    unique_files: dict[object, Path] = {}
    for path in files:
        unique_files.setdefault(slide_id(path), path)
    file_names = [str(absolute_path(path)) for path in unique_files.values()]
    name_outputs_uniquely("--images", file_names)  # raises InputError
    return [
        ImageRecord(n, name, path, None)
        for n, (name, path) in enumerate(zip(file_names, unique_files.values(), strict=True), 1)
    ]
