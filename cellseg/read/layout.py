"""Where things lie in a data folder, in the layout of NYCU HW3.

train/<image>/image.tif
train/<image>/class<K>.tif        a label map per class that occurs, K from 1; in place of
                                  them one *.geojson (QuPath) or *.xml (ImageScope)
test/<image>.tif                  or test_release/
test_image_name_to_ids.json       [{"file_name", "id", "height", "width"}, …]
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from cellseg.errors import InputError
from cellseg.read.names import is_printable
from cellseg.read.tiff import SUFFIXES

TRAIN = "train"
TEST = ("test", "test_release")
TEST_LIST = "test_image_name_to_ids.json"
CLASS_NAMES = ("class1", "class2", "class3", "class4")
"""The homework's classes: epithelial cell, lymphocyte, neutrophil, macrophage."""

OUTLINES = (".geojson", ".xml")

_IMAGE_FILE = re.compile(r"image\.tiff?", re.IGNORECASE)
_CLASS_FILE = re.compile(r"class([^.]*)\.tiff?", re.IGNORECASE)


@dataclass(frozen=True)
class TrainImage:
    """One image of the training part and its label maps.

    Attributes
    ----------
    name
        The name of its folder.
    path
        The image.
    class_files
        The label map of each class that occurs, by class, 1…K, rising.
    outlines
        The file with the cells' outlines that stands in place of label maps, or None.
    ignored
        The names of the other files there, sorted.
    """

    name: str
    path: Path
    class_files: dict[int, Path]
    ignored: tuple[str, ...]
    outlines: Path | None = None


def list_train_folders(data: str | os.PathLike[str]) -> list[Path]:
    """List the folders of the training images, `train/<image>/`, by name. Hidden ones are left out.

    Raises
    ------
    InputError
        If there is no data folder, no `train` in it, or no folder in that.
    """
    train = Path(data) / TRAIN
    _entries(Path(data), "check the name, or say where the data is with --data")
    hint = "put the training images there, or say where the data is with --data"
    folders = [path for path in _entries(train, f"{hint}; {_LAYOUT}") if path.is_dir()]
    if not folders:
        raise InputError(f"{train}: no training image in it; {_LAYOUT}")
    return folders


_LAYOUT = "each has a folder train/<image>/ with image.tif and class1.tif, class2.tif, …"


def read_train_folder(folder: str | os.PathLike[str], n_classes: int) -> TrainImage:
    """Return what a training image's folder holds.

    Names may be in capitals and end in `.tif` or `.tiff`.

    Raises
    ------
    InputError
        If the image is missing or there twice, or a class file stands for no class of
        1…`n_classes`, or for one that another file stands for; or if there is more than
        one file of outlines, or one beside class files.
    """
    folder = Path(folder)
    images: list[Path] = []
    class_files: dict[int, Path] = {}
    outlines: list[Path] = []
    ignored: list[str] = []
    for path in _entries(folder, _LAYOUT):
        if _IMAGE_FILE.fullmatch(path.name):
            images.append(path)
        elif match := _CLASS_FILE.fullmatch(path.name):
            number = match[1]
            if not re.fullmatch("[1-9][0-9]{0,8}", number) or int(number) > n_classes:
                raise InputError(
                    f"{path}: no class stands for it, there are class1.tif to "
                    f"class{n_classes}.tif; rename it, or name as many classes as there are "
                    "with --class_names"
                )
            if int(number) in class_files:
                raise InputError(
                    f"{path}: {class_files[int(number)].name} stands for the same class; "
                    "remove one of them"
                )
            class_files[int(number)] = path
        elif path.suffix.lower() in OUTLINES:
            outlines.append(path)
        elif match := re.match(r"class[0-9]+(?=\.)", path.name, re.IGNORECASE):
            # It looks like a mask: passing it over would make its cells background.
            raise InputError(
                f"{path}: a label map must be a TIFF named {match[0]}.tif; save it as "
                f"{match[0]}.tif, or move it out of the folder"
            )
        else:
            ignored.append(path.name)
    if len(images) != 1:
        found = "no image.tif in it" if not images else f"{images[0].name} and {images[1].name}"
        raise InputError(f"{folder}: {found}, but one image.tif is expected; {_LAYOUT}")
    sources = [*outlines[:2], *class_files.values()][: 2 if outlines else 0]
    if len(sources) == 2:
        raise InputError(
            f"{folder}: {sources[0].name} and {sources[1].name} both say where the cells are; "
            "remove one of them"
        )
    return TrainImage(
        folder.name,
        images[0],
        dict(sorted(class_files.items())),
        tuple(ignored),
        outlines[0] if outlines else None,
    )


def find_test_folder(data: str | os.PathLike[str]) -> Path:
    """Find the folder of the test images: `test/` or `test_release/`.

    Raises
    ------
    InputError
        If neither is there, or both are with different files.
    """
    found = [path for name in TEST if (path := Path(data) / name).is_dir()]
    if not found:
        raise InputError(
            f"{data}: neither test/ nor test_release/ in it; put the test images into one of them"
        )
    contents = [
        {(p.name, p.stat().st_size) for p in _entries(path, "") if p.is_file()} for path in found
    ]
    if len(found) == 2 and all(contents) and contents[0] != contents[1]:
        raise InputError(
            f"{data}: test/ and test_release/ hold different files, so it is not clear which are "
            "the test images; remove one of the folders"
        )
    return found[0] if contents[0] else found[-1]


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the image files of a folder by name, told by their endings. Hidden ones are left out.

    Raises
    ------
    InputError
        If there is no such folder, or no image in it.
    """
    endings = ", ".join(SUFFIXES)
    entries = _entries(Path(folder), f"name a folder with images ({endings})")
    images = [path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not images:
        raise InputError(f"{folder}: no image in it; images end in {endings}")
    return images


def _entries(folder: Path, remedy: str) -> list[Path]:
    """List what is in a folder, by name, without what is hidden."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        raise InputError(f"{folder}: no such folder; {remedy}") from None
    except NotADirectoryError:
        raise InputError(f"{folder}: not a folder; {remedy}") from None
    except OSError as error:
        raise InputError(
            f"{folder}: can't be listed ({error.strerror}); check its rights"
        ) from None
    for path in entries:
        if not is_printable(path.name):
            raise InputError(
                f"{folder}: {path.name!r} in it is a name that can't be printed; rename that file"
            )
    return entries
