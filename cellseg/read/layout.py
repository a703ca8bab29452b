"""The files of a data folder, in the layout of NYCU HW3.

train/<image>/image.tif
train/<image>/class<K>.tif        a label map per class that occurs, K from 1; or instead
                                  one *.geojson (QuPath) or *.xml (ImageScope)
test/<image>.tif                  or test_release/
test_image_name_to_ids.json       [{"file_name", "id", "height", "width"}, …]
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from cellseg.errors import InputError
from cellseg.read.tiff import SUFFIXES
from cellseg.text import is_printable

TRAIN = "train"
TEST = ("test", "test_release")
TEST_LIST = "test_image_name_to_ids.json"
CLASS_NAMES = ("class1", "class2", "class3", "class4")
"""NYCU HW3's classes: epithelial cell, lymphocyte, neutrophil, macrophage."""

OUTLINES = (".geojson", ".xml")

_IMAGE_FILE = re.compile(r"image\.tiff?", re.IGNORECASE)
_CLASS_FILE = re.compile(r"class([^.]*)\.tiff?", re.IGNORECASE)


@dataclass(frozen=True)
class TrainImage:
    """Files of one training image.

    Attributes
    ----------
    name
        The name of its folder.
    path
        The image.
    class_files
        The label map of each class that occurs, by class 1…K, ascending.
    ignored
        The names of other files, sorted.
    outlines
        The file of outlines, instead of label maps, or None.
    """

    name: str
    path: Path
    class_files: dict[int, Path]
    ignored: tuple[str, ...]
    outlines: Path | None = None


def list_train_folders(data: str | os.PathLike[str]) -> list[Path]:
    """List the folders of the training images, `train/<image>/`, by name, without hidden ones.

    Raises InputError if the data folder, `train` or the folders in it are not found.
    """
    train = Path(data) / TRAIN
    list_entries(Path(data), "check the name, or set the data folder with --data")
    hint = "put the training images there, or set the data folder with --data"
    folders = [path for path in list_entries(train, f"{hint}; {_LAYOUT}") if path.is_dir()]
    if not folders:
        raise InputError(f"{train}: no training images; {_LAYOUT}")
    return folders


_LAYOUT = "each has a folder train/<image>/ with image.tif and class1.tif, class2.tif, …"


def read_train_folder(folder: str | os.PathLike[str], n_classes: int) -> TrainImage:
    """Return the files in a training image's folder; names are case-insensitive, `.tif` or `.tiff`.

    Raises InputError if there is not exactly one image; if a class is not in 1…`n_classes` or
    has two files; if there are two files of outlines, or outlines and label maps.
    """
    folder = Path(folder)
    images: list[Path] = []
    class_files: dict[int, Path] = {}
    outlines: list[Path] = []
    ignored: list[str] = []
    for path in list_entries(folder, _LAYOUT):
        if _IMAGE_FILE.fullmatch(path.name):
            images.append(path)
        elif match := _CLASS_FILE.fullmatch(path.name):
            number = match[1]
            if not re.fullmatch("[1-9][0-9]{0,8}", number) or int(number) > n_classes:
                raise InputError(
                    f"{path}: class number out of range, expected class1.tif to "
                    f"class{n_classes}.tif; rename it, or set the class names with --class_names"
                )
            if int(number) in class_files:
                raise InputError(
                    f"{path}: same class as {class_files[int(number)].name}; remove one of them"
                )
            class_files[int(number)] = path
        elif path.suffix.lower() in OUTLINES:
            outlines.append(path)
        elif match := re.match(r"class[0-9]+(?=\.)", path.name, re.IGNORECASE):
            # Ignoring a label map would make its cells background.
            raise InputError(
                f"{path}: expected a TIFF named {match[0]}.tif; save it as {match[0]}.tif, or "
                "move it out of the folder"
            )
        else:
            ignored.append(path.name)
    if len(images) != 1:
        found = "no image.tif" if not images else f"{images[0].name} and {images[1].name}"
        raise InputError(f"{folder}: {found}, expected one image.tif; {_LAYOUT}")
    sources = [*outlines[:2], *class_files.values()][: 2 if outlines else 0]
    if len(sources) == 2:
        raise InputError(
            f"{folder}: {sources[0].name} and {sources[1].name} both contain annotations; remove "
            "one of them"
        )
    files = dict(sorted(class_files.items()))
    return TrainImage(folder.name, images[0], files, tuple(ignored), next(iter(outlines), None))


def find_test_folder(data: str | os.PathLike[str]) -> Path:
    """Return the folder of the test images: `test/` or `test_release/`.

    Raises InputError if neither is found, or both have different files.
    """
    found = [path for name in TEST if (path := Path(data) / name).is_dir()]
    if not found:
        raise InputError(
            f"{data}: no test/ or test_release/ folder; put the test images into one of them"
        )
    contents = [
        {(p.name, p.stat().st_size) for p in list_entries(path, "") if p.is_file()}
        for path in found
    ]
    if len(found) == 2 and all(contents) and contents[0] != contents[1]:
        raise InputError(
            f"{data}: test/ and test_release/ contain different files, expected one folder of test "
            "images; remove the other"
        )
    return found[0] if contents[0] else found[-1]


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the image files of a folder, by file extension, sorted by name, without hidden ones.

    Raises InputError if the folder is not found, or has no image.
    """
    endings = ", ".join(SUFFIXES)
    entries = list_entries(Path(folder), f"choose a folder with images ({endings})")
    images = [path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not images:
        raise InputError(f"{folder}: no images, expected files that end in {endings}")
    return images


def list_entries(folder: Path, remedy: str) -> list[Path]:
    """List the files and folders in a folder, by name, without hidden ones.

    Raises InputError, with `remedy`, if it can't be listed or a name can't be printed.
    """
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        raise InputError(f"{folder}: no such folder; {remedy}") from None
    except NotADirectoryError:
        raise InputError(f"{folder}: not a folder; {remedy}") from None
    except OSError as error:
        raise InputError(
            f"{folder}: can't be listed ({error.strerror}); check its permissions"
        ) from None
    for path in entries:
        if not is_printable(path.name):
            raise InputError(
                f"{folder}: the file name {path.name!r} can't be printed; rename that file"
            )
    return entries
