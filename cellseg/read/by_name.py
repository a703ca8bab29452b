"""Join images with the files of their cells by their names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from cellseg.read.layout import may_hold_cells
from cellseg.read.names import matches

LABEL_MAP_FOLDERS = r"(.*[-_ ])?(masks?|labels?|annotations?|instances?)( modify)?"
"""Names of folders with the label maps of all images; of NuInsSeg's, also the corrected ones."""

CLASS_FOLDERS = r"class[0-9]+"
"""Names of folders with the label maps of one class of all images."""

_ENDING = r"(?:\.ome)?\.tiff?|\.(?:geojson|json)\.gz|\.[^.]*"
_LABEL_MAP_MARK = r"[-_ .](?:cp[-_ ])?(?:masks?|labels?|labelled)"
_MARK = rf"{_LABEL_MAP_MARK}|[-_ .](?:outlines?|annotations?|cells|nuclei|classes|types)"
_IMAGE_MARK = "[-_ .](?:image|img)"


def joined_name(stem: str) -> str:
    """Return the part of an image's name without extension that the names of its cells begin with.

    It is all but an `_image` or `_img` at the end, `.ome`, and the ending in `a.png.geojson`.
    """
    return _without(_IMAGE_MARK, _without(r"\.(?:ome|tiff?|png|jpe?g|bmp)", stem))


def group_by_name(
    files: Iterable[Path], names: Container[str], all_maps: bool = False
) -> tuple[dict[str, list[tuple[str, Path]]], list[Path], list[Path]]:
    """Group files of cells by the image, one of `names` as of `joined_name`.

    With `all_maps`, TIFF, PNG and the like are label maps in whatever folder. Returns the files of
    each image that has some, as in `ImageFiles`; those of other images; and files that can't hold
    cells.
    """
    cells: dict[str, list[tuple[str, Path]]] = {}
    lost, others = [], []
    for path in files:
        name, as_if = stem(path), _name_in_folder(path, all_maps)
        name = name if name in names else joined_name(_without(_MARK, name))
        if not may_hold_cells(as_if):
            others.append(path)
        elif name in names:
            cells.setdefault(name, []).append((as_if, path))
        else:
            lost.append(path)
    return cells, lost, others


def _name_in_folder(path: Path, is_map: bool) -> str:
    """Return the name that a file of cells, maybe a label map, has in a folder of its image."""
    folder = path.parent.name
    may_be_map = path.suffix.lower() in (".tif", ".tiff", ".png", ".npy", ".mat")
    ending = path.suffix if may_be_map else path.name[len(stem(path)) :]
    if matches(CLASS_FOLDERS, folder):
        return f"{folder}{ending}"
    if not may_be_map:
        return f"cells{ending}"
    is_map = is_map or bool(matches(LABEL_MAP_FOLDERS, folder)) or is_named_as_label_map(path)
    return f"label{path.suffix}" if is_map else path.name


def stem(path: Path) -> str:
    """Return a file's name without its ending, which may have two parts, such as `.ome.tif`."""
    return _without(_ENDING, path.name)


def _without(end: str, text: str) -> str:
    """Return a text without an end; é is one letter, though some systems store names with two."""
    text = unicodedata.normalize("NFC", text)
    return re.sub(f"(?<=.)(?:{end})$", "", text, flags=re.IGNORECASE)


def is_named_as_label_map(path: Path) -> bool:
    """Return whether a file's name ends as that of a label map, such as `a_masks.tif`."""
    return matches(f".+(?:{_LABEL_MAP_MARK})", stem(path)) is not None


def split_label_maps(images: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Split images from label maps of others of them, by their names."""
    named = {path for path in images if is_named_as_label_map(path)}
    names = {joined_name(stem(path)) for path in images if path not in named}
    maps = {path for path in named if joined_name(_without(_MARK, stem(path))) in names}
    return [path for path in images if path not in maps], sorted(maps)
