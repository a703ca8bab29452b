"""The files of each training image, in the layouts that `train/` may have.

train/<image>/image.tif           a folder for each image, see `layout`; or
train/images/<image>.tif          all images in one folder,
train/labels/<image>.tif          and their cells in others: label maps in `labels` or `masks`, or
                                  in `class<K>`, outlines anywhere; or
train/<image>.tif                 all side by side: the cells' file has the image's name, and a
train/<image>_masks.tif           label map `_masks` or `_labels` after it
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellseg.errors import InputError
from cellseg.messages import listed
from cellseg.read.by_name import (
    CLASS_FOLDERS,
    LABEL_MAP_FOLDERS,
    group_by_name,
    is_named_as_label_map,
    joined_name,
    stem,
)
from cellseg.read.layout import (
    LAYOUT,
    TRAIN,
    TrainImage,
    choose_files,
    how_to_convert,
    list_entries,
    may_hold_cells,
    read_train_folder,
)
from cellseg.read.names import IMAGE_FOLDERS, matches

# Names of folders with the cells of all images.
_CELLS = rf"{LABEL_MAP_FOLDERS}|{CLASS_FOLDERS}|(.*[-_ ])?outlines?"

_IMAGE = r".+\.(tiff?|png|jpe?g|bmp)"


@dataclass(frozen=True)
class ImageFiles:
    """Where the files of a training image are.

    Attributes
    ----------
    place
        Its folder, or the image, if that has no folder of its own.
    folder
        The folder that the image is in, relative to the data folder.
    files
        The image and the files of its cells, each after the name that it would have in a folder
        of its own; None for all files in `place`.
    """

    place: Path
    folder: str
    files: tuple[tuple[str, Path], ...] | None = None

    def choose(self, n_classes: int) -> TrainImage:
        """Return what the files are. Raises InputError as `choose_files`."""
        if self.files is None:
            return read_train_folder(self.place, n_classes)
        return choose_files(self.place, self.folder, self.files, n_classes)


def list_train_images(
    data: str | os.PathLike[str],
) -> tuple[list[ImageFiles], dict[str, list[str]]]:
    """List the training images by name, and what in `train/` isn't used, by the reason.

    Raises InputError if the data folder or `train/` are not found, or `train/` has no images in a
    known layout.
    """
    train = Path(data) / TRAIN
    list_entries(Path(data), "check the name, or set the data folder with --data")
    hint = "put the training images there, or set the data folder with --data"
    entries = list_entries(train, f"{hint}; {LAYOUT}")
    folders = [path for path in entries if path.is_dir()]
    files = [path for path in entries if not path.is_dir() and path.exists()]
    broken = [path.name for path in entries if not path.exists()]
    image_folders, cell_folders = find_shared_folders(folders)
    if image_folders or cell_folders:
        if len(image_folders) != 1 or not cell_folders:
            raise InputError(
                f"{train}: {listed(_names(folders))} hold no image.tif, expected one folder "
                "images/ with all images and others with their cells, such as labels/; or "
                f"{LAYOUT}"
            )
        folder = image_folders[0]
        cells = [path for each in cell_folders for path in list_entries(each, LAYOUT)]
        sources, unused = _join(folder, list_entries(folder, LAYOUT), cells, f"/{folder.name}")
        unused["folders in train/ beside those of images and cells, ignored"] = _names(
            {*folders} - {folder, *cell_folders}
        )
    elif folders:
        sources = [ImageFiles(path, f"{TRAIN}/{path.name}") for path in folders]
        unused = {}
    else:
        images = [
            path for path in files if matches(_IMAGE, path.name) and not is_named_as_label_map(path)
        ]
        if not images:
            found = f" in folders, but {listed(_names(files))}" if files else ""
            link = f"; what {train / broken[0]} links to is missing" if broken else ""
            raise InputError(f"{train}: no training images{found}; {LAYOUT}{link}")
        cells = sorted({*files} - {*images})
        sources, unused = _join(train, images, cells)
        files = []
    unused["files in train/ that are in no image's folder, ignored"] = _names(files)
    unused["links in train/, left out, as what they link to is missing"] = broken
    return sources, {reason: names for reason, names in unused.items() if names}


def find_shared_folders(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the folders with all images, and those with their cells, by their names.

    Folders of cells are replaced by their corrected versions, such as `label masks` by
    `label masks modify`. None if any folder is that of one image. Raises InputError if one can't
    be listed.
    """
    images = [path for path in folders if matches(IMAGE_FOLDERS, path.name)]
    names = {path.name.lower() for path in folders}
    cells = [
        path
        for path in folders
        if matches(_CELLS, path.name) and f"{path.name.lower()} modify" not in names
    ]
    if (images or cells) and any(map(_is_of_one_image, folders)):
        return [], []
    return images, cells


def _names(paths: Iterable[Path]) -> list[str]:
    return sorted(path.name for path in paths)


def _join(
    place: Path, image_files: Sequence[Path], cell_files: Sequence[Path], inside: str = ""
) -> tuple[list[ImageFiles], dict[str, list[str]]]:
    """Join images and the files of their cells by their names; what isn't used, by the reason.

    `inside` is the folder of the images after `train`. An image without a file of cells isn't
    used, as it may have cells. Raises InputError if there are no images, two have one name, or none
    has cells.
    """
    images: dict[str, Path] = {}
    others = []
    for path in image_files:
        name = joined_name(stem(path))
        if not matches(_IMAGE, path.name):
            others.append(path)
        elif images.setdefault(name, path) != path:
            raise InputError(
                f"{path}: same name as {images[name].name}, expected one image of a name; if one "
                "is a label map, add _masks to its name, or move it into a folder labels/"
            )
    if not images:
        raise InputError(
            f"{place}: no images, but {listed(_names(others)) or 'nothing'}, expected .tif, .png, "
            ".jpg or .bmp files, not in folders; save them so"
        )
    cells, lost, not_cells = group_by_name(cell_files, images)
    others += not_cells
    without = [path for name, path in images.items() if name not in cells]
    if len(without) == len(images):
        raise InputError(
            f"{place}: no image ({listed(_names(without))}) has a file of cells of its name "
            f"({listed(_names(lost + others)) or 'none there'}), expected <image>.tif and "
            f"<image>_masks.tif, or images/<image>.tif and labels/<image>.tif; "
            f"{how_to_convert(others + lost) or 'rename them'}"
        )
    sources = [
        ImageFiles(path, f"{TRAIN}{inside}", ((f"image{path.suffix}", path), *cells[name]))
        for name, path in sorted(images.items())
        if name in cells
    ]
    return sources, {
        "images without a file of cells, left out (a label map of 0 says that there are none)": (
            _names(without)
        ),
        "files of cells without an image of their name, left out": _names(lost),
        "files in train/ that are neither images nor cells, ignored": _names(others),
    }


def _is_of_one_image(folder: Path) -> bool:
    """Return whether a folder is an image's: it has its `image`.

    A folder named as those of all images, which may have one of this name, has its cells too.
    """
    names = [path.name for path in list_entries(folder, LAYOUT)]
    cells = [name for name in names if may_hold_cells(name)]
    if not any(matches(r"image\.[^.]*", name) for name in {*names} - {*cells}):
        return False
    is_named_otherwise = not matches(f"{IMAGE_FOLDERS}|{_CELLS}|types?", folder.name)
    return is_named_otherwise or any(not matches(r".*\.(csv|tsv)", name) for name in cells)


def list_cell_files(data: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the files of cells in `train/`, as far as it can be read."""
    with contextlib.suppress(InputError):
        for image in list_train_images(data)[0]:
            files = image.files
            if files is None:
                files = tuple((path.name, path) for path in list_entries(image.place, LAYOUT))
            yield from (path for name, path in files if may_hold_cells(name))
