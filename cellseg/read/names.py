"""Names of images for users and outputs; `…/<name>/image.tif` is named by its folder."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from cellseg.errors import InputError
from cellseg.files import hashed_name, safe_name
from cellseg.text import is_printable, show

LONGEST_NAME = 200
"""Characters of a class name; tables and legends show them in full."""

IMAGE_FOLDERS = r"(.*[-_ ])?(images?|imgs?|inputs?)"
"""Names of folders in `train/` with all images."""


def matches(form: str, name: str) -> re.Match[str] | None:
    """Match a name with a form as a whole, in any case."""
    return re.fullmatch(form, name, re.IGNORECASE)


def is_plain(name: str) -> bool:
    """Return whether a name has no folder in it, on any operating system."""
    return name == PurePosixPath(name).name == PureWindowsPath(name).name and "\0" not in name


def comparable_name(name: str | None) -> str:
    """Return a class name as it is compared: without outer spaces and case, é one letter or two."""
    return unicodedata.normalize("NFC", (name or "").strip()).casefold()


def check_class_names(source: object, names: Sequence[str]) -> None:
    """Raise InputError, naming their source, unless class names can be used everywhere.

    They are printable, not empty, of at most `LONGEST_NAME` characters, and differ in more than
    case and surrounding spaces, as outlines' classes are compared without these.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not name.strip():
            problem = "an empty class name"
        elif not is_printable(name):
            problem = f"the class name {show(name)} has control characters or isn't UTF-8"
        elif len(name) > LONGEST_NAME:
            problem = f"the class name {show(name)} has {len(name)} characters"
        elif other := seen.get(comparable_name(name)):
            problem = f"the class name {name!r} occurs twice"
            if other != name:
                problem = f"the class names {other!r} and {name!r} differ only in case or spaces"
        else:
            seen[comparable_name(name)] = name
            continue
        raise InputError(
            f"{source}: {problem}; give each class a distinct printable name of at most "
            f"{LONGEST_NAME} characters"
        )


def check_image_name(source: object, file_name: str) -> None:
    """Raise InputError, naming its source, if the name of an image in a file isn't printable."""
    if not is_printable(file_name):
        raise InputError(
            f"{source}: the image name {show(file_name)} has control characters or isn't "
            "UTF-8; rename the image"
        )


def path_parts(file_name: str) -> tuple[str, ...]:
    """Return the folders and the file name of a path with either type of slashes."""
    return PurePosixPath(file_name.replace("\\", "/")).parts


def is_outside(file_name: str) -> bool:
    """Return whether a relative path is outside the folder that it is relative to."""
    is_absolute = file_name[:1] in ("/", "\\") or PureWindowsPath(file_name).is_absolute()
    return is_absolute or ".." in path_parts(file_name)


def absolute_path(path: Path) -> Path:
    """Return an absolute path, with `..` resolved, as the parent of a link is another folder."""
    return (path.parent.resolve() if ".." in path.parts else path.parent.absolute()) / path.name


def relative_name(file_name: str, folder: Path) -> str:
    """Return a file name relative to a folder and without `..`, if it is in it, else unchanged."""
    if is_outside(file_name):
        path = absolute_path(folder / file_name)
        for each in (folder.absolute(), folder.resolve()):
            if path.is_relative_to(each):
                return path.relative_to(each).as_posix()
    return file_name


def check_distinct(source: object, file_names: Sequence[str], folder: Path) -> None:
    """Raise InputError if two names, such as `a.tif` and `./a.tif`, are of one file in a folder."""
    first: dict[tuple[str, ...], str] = {}
    for name in file_names:
        other = first.setdefault(path_parts(relative_name(name, folder)), name)
        if other != name:
            raise InputError(
                f"{source}: {other} and {name} are the same image; list it once, with all cells"
            )


def name_images(file_names: Sequence[str]) -> list[str]:
    """Return the names of the images of an annotation file.

    They are folder names for `image.tif`, else file names without extension; if two are
    equal, all are the `file_name`s.
    """
    paths = [PurePosixPath(file_name) for file_name in file_names]
    names = [
        path.parent.name if path.stem.lower() == "image" and path.parent.name else path.stem
        for path in paths
    ]
    return names if len(set(names)) == len(names) else list(file_names)


def image_name(file_name: str) -> str:
    """Return an image's folder for `image.tif`, else its file name without the extension."""
    return _stem_parts(path_parts(file_name))[-1]


def short_name(file_name: str) -> str:
    """Return a training image's folder for `image.tif`, its own name in a folder of all images.

    Other names of files stay as they are.
    """
    path = PurePosixPath(file_name)
    if path.parts[:1] != ("train",) or len(path.parts) < 3:
        return file_name
    if path.stem.lower() == "image":
        return path.parent.name
    return path.name if matches(IMAGE_FOLDERS, path.parent.name) else file_name


def name_outputs(source: Path, file_names: Sequence[str], data: Path) -> list[str]:
    """Return output names for images in the data folder: their paths in it without the extension.

    Names have forward slashes. Raises InputError, naming the list `source`, for an image
    outside the data folder.
    """
    names = []
    for file_name in file_names:
        inside = relative_name(file_name, data)
        parts = path_parts(inside)
        if not parts or is_outside(inside):
            raise InputError(
                f"{source}: the image {file_name!r} is outside the data folder; write its name "
                "relative to it"
            )
        named = _stem_parts(parts)
        names.append(_output_name(named[-1:] if len(named) < len(parts) else named))
    return _make_distinct(names, names)


def name_outputs_uniquely(source: object, file_names: Sequence[str]) -> list[str]:
    """Return output names for images anywhere, with as many folders as distinguish them.

    Names of different files differ in more than case. Raises InputError, naming the list `source`,
    if a name can't be printed.
    """
    paths = [
        tuple(part for part in path_parts(file_name) if part.strip("/."))
        for file_name in file_names
    ]
    # Files of one folder may differ only in their extensions; with it, a name may be another's.
    kept = [_stem_parts(path) if path else () for path in paths]
    while True:
        times = Counter(kept)
        whole = [
            path if times[parts] > 1 else parts for path, parts in zip(paths, kept, strict=True)
        ]
        if whole == kept:
            break
        kept = whole
    names = [parts[-1:] for parts in kept]
    while True:
        times = Counter(names)
        longer = [
            parts[-len(name) - (times[name] > 1) :] for name, parts in zip(names, kept, strict=True)
        ]
        if longer == names:
            break
        names = longer
    for parts, file_name in zip(names, file_names, strict=True):
        if not parts or not all(map(is_printable, parts)):
            raise InputError(f"{source}: the image {file_name!r} has no printable name; rename it")
    return _make_distinct(list(map(_output_name, names)), file_names)


def _make_distinct(names: Sequence[str], files: Sequence[str]) -> list[str]:
    """Add a hash to the names of files that are those of another file, in any case of letters."""
    distinct = []
    file_of: dict[str, str] = {}
    for name, file in zip(names, files, strict=True):
        own, hashed = name, name
        while file_of.setdefault(own.casefold(), file) != file:
            own = hashed_name(name, hashed)
            hashed += f"/{file}"
        distinct.append(own)
    return distinct


def _output_name(parts: Sequence[str]) -> str:
    """Return a relative path that is safe to write to, whatever the parts are."""
    return "/".join(map(safe_name, parts))


def _stem_parts(parts: tuple[str, ...]) -> tuple[str, ...]:
    *folders, name = parts
    stem = PurePosixPath(name).stem
    return tuple(folders) if folders and stem.lower() == "image" else (*folders, stem)
