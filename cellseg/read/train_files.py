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
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellseg.errors import InputError
from cellseg.messages import listed
from cellseg.read.layout import (
    LAYOUT,
    TRAIN,
    TrainImage,
    choose_files,
    list_entries,
    may_hold_cells,
    read_train_folder,
)

# Folders with the files of all images, by name.
_IMAGES = r"(.*[-_ ])?(images?|imgs?|inputs?)"
_LABEL_MAPS = r"(.*[-_ ])?(masks?|labels?|annotations?|instances?)"
_CELLS = rf"{_LABEL_MAPS}|(.*[-_ ])?outlines?"
_CLASS = r"class[0-9]+"

_IMAGE = r"(.+?)((?:\.ome)?\.tiff?|\.png|\.jpe?g|\.bmp)"
_ENDING = r"(?:\.ome)?\.tiff?|\.(?:geojson|json)\.gz|\.[^.]*"
_LABEL_MAP_MARK = r"[-_ .](?:cp[-_ ])?(?:masks?|labels?|labelled)"
_MARK = rf"{_LABEL_MAP_MARK}|[-_ .](?:outlines?|annotations?|cells|nuclei|classes|types)"
_IMAGE_MARK = "[-_ .](?:image|img)"


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
    image_folders = [path for path in folders if _matches(_IMAGES, path.name)]
    cell_folders = [path for path in folders if _matches(f"{_CELLS}|{_CLASS}", path.name)]
    if len(image_folders) == 1 and cell_folders and not _is_of_one_image(image_folders[0]):
        folder = image_folders[0]
        cells = [path for each in cell_folders for path in list_entries(each, LAYOUT)]
        sources, unused = _join(folder, list_entries(folder, LAYOUT), cells, f"/{folder.name}")
        others = {*folders} - {folder, *cell_folders}
        unused["folders in train/ beside those of images and cells, ignored"] = _names(others)
    elif folders:
        _check_not_by_kind(train, folders)
        sources = [ImageFiles(path, f"{TRAIN}/{path.name}") for path in folders]
        unused = {}
    else:
        maps = {path for path in files if _matches(f".+(?:{_LABEL_MAP_MARK})", _stem(path))}
        images = [path for path in files if path not in maps and _matches(_IMAGE, path.name)]
        if not images:
            found = f" in folders, but {listed(_names(files))}" if files else ""
            link = f"; what {train / broken[0]} links to is missing" if broken else ""
            raise InputError(f"{train}: no training images{found}; {LAYOUT}{link}")
        cells = [path for path in files if path not in images]
        sources, unused = _join(train, images, cells)
        files = []
    unused["files in train/ that are in no image's folder, ignored"] = _names(files)
    unused["links in train/, left out, as what they link to is missing"] = broken
    return sources, {reason: names for reason, names in unused.items() if names}


def _names(paths: Iterable[Path]) -> list[str]:
    return sorted(path.name for path in paths)


def _check_not_by_kind(train: Path, folders: Sequence[Path]) -> None:
    """Raise InputError if none of the folders is an image's, by their names."""
    form = f"{_IMAGES}|{_CELLS}|{_CLASS}|types?"
    if all(_matches(form, path.name) and not _is_of_one_image(path) for path in folders):
        raise InputError(
            f"{train}: {listed(_names(folders))} hold the files of all images, expected one folder "
            f"images/ and others with their cells, such as labels/; or {LAYOUT}"
        )


def _join(
    place: Path, image_files: Sequence[Path], cell_files: Sequence[Path], inside: str = ""
) -> tuple[list[ImageFiles], dict[str, list[str]]]:
    """Join images and the files of their cells by their names; what isn't used, by the reason.

    `inside` is the folder of the images after `train`. An image without a file of cells isn't
    used, as it may have cells. Raises InputError if two images have one name, or none has cells.
    """
    images: dict[str, Path] = {}
    others, lost = [], []
    for path in image_files:
        name = _without(_IMAGE_MARK, _stem(path))
        if not _matches(_IMAGE, path.name):
            others.append(path)
        elif images.setdefault(name, path) != path:
            raise InputError(
                f"{path}: same name as {images[name].name}, expected one image of a name; if one "
                "is a label map, add _masks to its name, or move it into a folder labels/"
            )
    cells: dict[str, list[tuple[str, Path]]] = {name: [] for name in images}
    for path in cell_files:
        stem, as_if = _stem(path), _name_in_folder(path)
        name = stem if stem in images else _without(_IMAGE_MARK, _without(_MARK, stem))
        if not may_hold_cells(as_if):
            others.append(path)
        elif name in images:
            cells[name].append((as_if, path))
        else:
            lost.append(path)
    without = [path for name, path in images.items() if not cells[name]]
    if len(without) == len(images):
        raise InputError(
            f"{place}: no image ({listed(_names(without)) or 'none there'}) has a file of cells of "
            f"its name ({listed(_names(lost + others)) or 'none there'}), expected <image>.tif and "
            f"<image>_masks.tif, or images/<image>.tif and labels/<image>.tif; rename them"
        )
    sources = [
        ImageFiles(path, f"{TRAIN}{inside}", ((f"image{path.suffix}", path), *cells[name]))
        for name, path in sorted(images.items())
        if cells[name]
    ]
    return sources, {
        "images without a file of cells, left out (a label map of 0 says that there are none)": (
            _names(without)
        ),
        "files of cells without an image of their name, left out": _names(lost),
        "files in train/ that are neither images nor cells, ignored": _names(others),
    }


def _is_of_one_image(folder: Path) -> bool:
    """Return whether a folder named as those of all images is an image's: it has its `image`."""
    entries = list_entries(folder, LAYOUT)
    return any(_matches(r"image\.[^.]*", path.name) for path in entries)


def _name_in_folder(path: Path) -> str:
    """Return the name that a file of cells would have in its image's folder."""
    if path.suffix.lower() not in (".tif", ".tiff", ".png", ".npy", ".mat", ".jpg", ".jpeg"):
        return path.name
    of_class = _matches(_CLASS, path.parent.name)
    is_map = of_class or _matches(_LABEL_MAPS, path.parent.name)
    if is_map or _matches(f".+{_LABEL_MAP_MARK}", _stem(path)):
        return f"{path.parent.name if of_class else 'label'}{path.suffix}"
    return path.name


def _stem(path: Path) -> str:
    """Return a file's name without its ending, which may have two parts, such as `.ome.tif`."""
    return _without(_ENDING, path.name)


def _without(end: str, text: str) -> str:
    return re.sub(f"(?<=.)(?:{end})$", "", text, flags=re.IGNORECASE)


def _matches(form: str, name: str) -> re.Match[str] | None:
    return re.fullmatch(form, name, re.IGNORECASE)


def list_cell_files(data: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the files of cells in `train/`, as far as it can be read."""
    with contextlib.suppress(InputError):
        for image in list_train_images(data)[0]:
            files = image.files
            if files is None:
                files = tuple((path.name, path) for path in list_entries(image.place, LAYOUT))
            yield from (path for name, path in files if may_hold_cells(name))
