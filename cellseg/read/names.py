"""Rules for the names of images: how files, users and outputs call them.

In all of them `…/<name>/image.tif` is called by its folder, as in a data folder's `train/`.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import groupby, takewhile
from pathlib import Path, PurePosixPath, PureWindowsPath

from cellseg.errors import InputError
from cellseg.images import ImageRecord


def is_plain(name: str) -> bool:
    """Return whether a name has no folder in it, on any system."""
    return name == PurePosixPath(name).name == PureWindowsPath(name).name and "\0" not in name


def is_printable(name: str) -> bool:
    """Return whether a name fits a line of UTF-8: no control character and no lone byte."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name)


def path_parts(file_name: str) -> tuple[str, ...]:
    """Return the folders and the name of a path with slashes of either kind."""
    return PurePosixPath(file_name.replace("\\", "/")).parts


def is_outside(file_name: str) -> bool:
    """Return whether a path doesn't lie below the folder that it is relative to."""
    return file_name[:1] in ("/", "\\") or ".." in path_parts(file_name)


def absolute_path(path: Path) -> Path:
    """Return a path that holds in any folder, without `..`, which may lead out of a link."""
    return (path.parent.resolve() if ".." in path.parts else path.parent.absolute()) / path.name


def name_images(file_names: Sequence[str]) -> list[str]:
    """Name the images of an annotation file as their user does.

    By the folder in `train/`, else by the file's stem; where two would share a name, as
    may be in other people's files, all by their `file_name`.
    """
    paths = [PurePosixPath(file_name) for file_name in file_names]
    names = [
        path.parent.name if path.stem.lower() == "image" and path.parent.name else path.stem
        for path in paths
    ]
    return names if len(set(names)) == len(names) else list(file_names)


def short_name(file_name: str) -> str:
    """Return an image's folder in `train/`, which is how people know it, else its file name."""
    path = PurePosixPath(file_name)
    return path.parent.name if path.parts[:1] == ("train",) else file_name


def name_outputs(source: Path, file_names: Sequence[str]) -> list[str]:
    """Name the outputs of images in the data folder: their paths without the ending.

    The names have forward slashes and never lead out of a folder.

    Raises
    ------
    InputError
        If an image lies outside the data folder, naming `source`, the list.
    """
    names = []
    for file_name in file_names:
        parts = path_parts(file_name)
        if not parts or is_outside(file_name) or not is_printable(file_name):
            raise InputError(
                f"{source}: the image {file_name!r} lies outside the data folder; write its name "
                "relative to it"
            )
        named = _stem_parts(parts)
        names.append(named[-1] if len(named) < len(parts) else "/".join(named))
    return names


def name_outputs_uniquely(source: Path, file_names: Sequence[str]) -> list[str]:
    """Name the outputs of images anywhere: with as many folders as tell them apart.

    Raises
    ------
    InputError
        If a name can't be printed, naming `source`, the list.
    """
    paths = [
        tuple(part for part in path_parts(file_name) if part.strip("/."))
        for file_name in file_names
    ]
    short = [_stem_parts(path) if path else () for path in paths]
    alike = Counter(short)
    # Two of one folder may have endings alone to tell them apart.
    kept = [path if alike[its] > 1 else its for path, its in zip(paths, short, strict=True)]
    names = [parts[-1:] for parts in kept]
    while True:
        times = Counter(names)
        longer = [
            parts[-len(name) - (times[name] > 1) :] for name, parts in zip(names, kept, strict=True)
        ]
        if longer == names:
            break
        names = longer
    outputs = list(map("/".join, names))
    for output, file_name in zip(outputs, file_names, strict=True):
        if not output or not is_printable(output):
            raise InputError(
                f"{source}: the image {file_name!r} has no name that can be printed; rename it and "
                "predict again"
            )
    return outputs


def _stem_parts(parts: tuple[str, ...]) -> tuple[str, ...]:
    *folders, name = parts
    stem = PurePosixPath(name).stem
    return tuple(folders) if folders and stem.lower() == "image" else (*folders, stem)


def pair_by_name(
    listed: Sequence[ImageRecord], list_path: Path, images: Sequence[ImageRecord], source: Path
) -> dict[int, int]:
    """Return the ids of the images of `source` by those of `list_path`, for the images in both.

    An image's name is the last part of its file's, or `<folder>/image.tif`. Of several of
    the same name, those go together whose paths end alike for longest.

    Raises
    ------
    InputError
        If several could go together as well.
    """
    by_name: dict[tuple[str, ...], list[ImageRecord]] = {}
    for image in images:
        by_name.setdefault(_last_parts(image), []).append(image)
    pairs = [
        (_n_common_parts(listed_image, gt_image), listed_image, gt_image)
        for listed_image in listed
        for gt_image in by_name.get(_last_parts(listed_image), ())
    ]
    ids: dict[int, int] = {}
    taken: set[int] = set()
    pairs.sort(key=lambda pair: -pair[0])
    for _, same_length in groupby(pairs, key=lambda pair: pair[0]):
        for _, listed_image, gt_image in [
            p for p in same_length if p[1].id not in ids and p[2].id not in taken
        ]:
            if listed_image.id in ids or gt_image.id in taken:
                raise InputError(
                    f"{list_path}: {listed_image.file_name} may be {gt_image.file_name} of "
                    f"{source}, but others are called so too; name the images with their folders "
                    "in both"
                )
            ids[listed_image.id] = gt_image.id
            taken.add(gt_image.id)
    return ids


def _last_parts(image: ImageRecord) -> tuple[str, ...]:
    parts = path_parts(image.file_name)
    return parts[-2:] if PurePosixPath(*parts).stem == "image" else parts[-1:]


def _n_common_parts(one: ImageRecord, other: ImageRecord) -> int:
    """Count the parts at the ends of two file names that are the same."""
    ends = zip(
        reversed(path_parts(one.file_name)), reversed(path_parts(other.file_name)), strict=False
    )
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
