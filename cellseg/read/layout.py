"""The files of a data folder, in the layout of NYCU HW3.

train/<image>/image.tif           or another image format
train/<image>/class<K>.tif        a label map per class that occurs, K from 1; or instead
                                  one file with the cells of all classes, see `_READ`; other
                                  layouts of train/ are those of `train_files`
test/<image>.tif                  or test_release/
test_image_name_to_ids.json       [{"file_name", "id", "height", "width"}, …]
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellseg.errors import InputError
from cellseg.files import file_start, find_in_another_case
from cellseg.messages import plural, warn
from cellseg.read.csv_table import has_columns
from cellseg.read.image_formats import MRXS, SUFFIXES
from cellseg.read.names import matches
from cellseg.text import is_printable

TRAIN = "train"
TEST = ("test", "test_release")
TEST_LIST = "test_image_name_to_ids.json"
ANNOTATIONS = "train__annot.json"
CLASS_NAMES = ("class1", "class2", "class3", "class4")
"""NYCU HW3's classes: epithelial cell, lymphocyte, neutrophil, macrophage."""

# What a file in an image's folder is, by its name; the first that matches counts. "maybe" may
# hold the image's cells, unless a file of another type does.
_READ = {
    "image": r"image\.(tiff?|png|jpe?g|bmp)",
    "class": r"class([^.]*)\.(tiff?|png|npy)",
    "outlines": r".*\.(geojson(\.gz)?|xml)",
    "other class file": r"class[0-9]+\..*",
    "maybe outlines": r".*\.json(\.gz)?",
    "maybe label map": r"(.*[-_ ])?(labels?|labelled|masks?)\.(tiff?|png|npy)",
    "maybe MATLAB": r".*\.mat",
    "class table": r".*\.(csv|tsv)",
}

_LOSSY_ENDINGS = ("jpg", "jpeg", "jp2", "webp")
_LOSSY = "a label map as JPEG and its like has other labels at the edges of cells"

# What is often there instead, and how to convert it.
_CONVERT = {
    r".*_seg\.npy": "Cellpose's file, a pickle, is not read; save its masks as PNG or TIFF, which "
    "Cellpose names …_cp_masks",
    r".+\.(geojson|json|xml|tiff?|png|npy|csv)\.zip": "a zip is not read; unpack it",
    r".*\.(zip|roi)": "ImageJ's ROIs are not read; open them in QuPath and export GeoJSON, or save "
    "a label map as label.tif",
    rf"(.*[-_ ])?(labels?|labelled|masks?)\.({'|'.join(_LOSSY_ENDINGS)})": f"{_LOSSY}; save the "
    "original one as label.tif or label.png",
    "masks?|labels?|instances?": "a folder with a mask per cell is not read; number the cells in "
    "one label map, label.tif, as docs/datasets.md does",
}

CLASS_COLUMNS = ("label", "class")
"""Columns of a class table."""

_LABEL_MAP_NAMES = "class<K>.tif, label.tif, …_masks.png, .npy of the same names, .mat"
_OUTLINE_NAMES = ".geojson, .geojson.gz, .json or .xml"

# Folders and files of operating systems and archives; names in lower case.
_BY_PRODUCTS = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "icon\r")


def _is_by_product(name: str) -> bool:
    return name in _BY_PRODUCTS or name.endswith(".aux.xml")  # GDAL's statistics of an image


@dataclass(frozen=True)
class TrainImage:
    """Files of one training image.

    Attributes
    ----------
    file_name
        Its name in annotations, the path relative to the data folder.
    path
        The image.
    class_files
        The label map of each class that occurs, by class 1…K, ascending.
    ignored
        The names of other files, sorted.
    outlines
        The file of outlines, instead of label maps, or None.
    label_map
        The label map of all classes, instead of one for each, or None.
    class_table
        The CSV file with the class of each label of `label_map`, or None.
    """

    file_name: str
    path: Path
    class_files: dict[int, Path]
    ignored: tuple[str, ...]
    outlines: Path | None = None
    label_map: Path | None = None
    class_table: Path | None = None


LAYOUT = "each has a folder train/<image>/ with image.tif and class1.tif, class2.tif, …"


def read_train_folder(folder: str | os.PathLike[str], n_classes: int) -> TrainImage:
    """Return the files in a training image's folder, as `choose_files` does.

    Raises InputError also if the folder can't be listed.
    """
    folder = Path(folder)
    files = [(path.name, path) for path in list_entries(folder, LAYOUT)]
    return choose_files(folder, f"{TRAIN}/{folder.name}", files, n_classes)


def choose_files(
    place: Path, folder: str, files: Sequence[tuple[str, Path]], n_classes: int
) -> TrainImage:
    """Return what each of a training image's files is.

    Parameters
    ----------
    place
        The folder of the image, or the image, for messages.
    folder
        The folder that the image is in, relative to the data folder.
    files
        The files, each after the name that it has in a folder of its own, such as `image.tif`;
        case does not matter.
    n_classes
        The number of classes, K.

    Raises InputError if there is not exactly one image; if a class is not in 1…K or has two
    files; if several files contain cells; or if none does, but there are other files, as an image
    without cells has only its image.
    """
    found: dict[str, list[Path]] = {kind: [] for kind in (*_READ, "unknown")}
    for name, path in files:
        found[_kind(name)].append(path)
    for path in found["other class file"]:
        # Ignoring a label map would make its cells background.
        name, _, ending = path.name.partition(".")
        lossy = f"{_LOSSY}; save the original one as"
        advice = lossy if ending.lower() in _LOSSY_ENDINGS else "not a label map; save it as"
        raise InputError(f"{path}: {advice} {name}.tif or .png, or move it out of the folder")
    image, other_images = _choose_image(place, found["image"], found["unknown"])
    class_files = _choose_class_files(files, n_classes)
    outlines, label_map, unused = _choose_cells(place, found, class_files)
    table, other_tables = _choose_table(place, label_map, found["class table"], n_classes)
    ignored = other_images + found["unknown"] + unused + other_tables
    if ignored and not (class_files or outlines or label_map):
        raise _not_read(ignored)
    return TrainImage(
        f"{folder}/{image.name}",
        image,
        dict(sorted(class_files.items())),
        tuple(sorted(path.name for path in ignored)),
        outlines,
        label_map,
        table,
    )


def _choose_cells(
    folder: Path, found: Mapping[str, list[Path]], class_files: Mapping[int, Path]
) -> tuple[Path | None, Path | None, list[Path]]:
    """Return the file of outlines or the label map of all cells, and the files that are not used.

    Neither is used besides `class_files`. Raises InputError if several files contain cells.
    """
    outlines, label_maps, json_files, matlab = (
        found[kind] for kind in ("outlines", "maybe label map", "maybe outlines", "maybe MATLAB")
    )
    unused: list[Path] = []
    if len(outlines) + len(class_files) + len(label_maps) + len(matlab) > 1:
        # XML is also metadata of many programs.
        unused = [path for path in outlines if not _may_be_outlines(path)]
        outlines = [path for path in outlines if path not in unused]
    certain = [*outlines[:2], *class_files.values()]
    # JSON beside a label map may be settings, and a MATLAB file what the others were made from.
    maybe = label_maps or json_files or matlab
    if outlines and len(certain) > 1:
        raise _two_sources(folder, certain)
    if certain:
        others = label_maps + json_files + matlab
        return (outlines[0] if outlines else None), None, unused + others
    if len(maybe) > 1:
        raise _two_sources(folder, maybe)
    if label_maps:
        return None, label_maps[0], unused + json_files + matlab
    if json_files:
        return json_files[0], None, unused + matlab
    return None, (matlab[0] if matlab else None), unused


def _choose_table(
    folder: Path, label_map: Path | None, tables: Sequence[Path], n_classes: int
) -> tuple[Path | None, list[Path]]:
    """Return the table with the classes of a label map's cells, if any, and the other tables.

    Raises InputError if it may be any of several.
    """
    meant = list(tables)
    if n_classes == 1 or len(tables) > 1:  # with several classes and one table, it is meant
        meant = [path for path in tables if _is_class_table(path)]
    others = [path for path in tables if path not in meant]
    if label_map is None:
        return None, others + meant
    named = [path for path in meant if path.stem.lower() == "classes"]
    if len(named) != 1 and len(meant) > 1:
        raise InputError(
            f"{folder}: {meant[0].name} and {meant[1].name}, expected one table with the classes "
            f"of {label_map.name}; remove the other"
        )
    table = next(iter(named or meant), None)
    return table, others + [path for path in meant if path != table]


def _may_be_outlines(path: Path) -> bool:
    """Return whether a file is not XML, or ImageScope's."""
    start = file_start(path, 4096) if path.suffix.lower() == ".xml" else None
    return start is None or b"<Annotations" in start.replace(b"\0", b"")  # also in UTF-16


def _is_class_table(path: Path) -> bool:
    """Return whether a CSV file is named or titled as the table of the cells' classes."""
    return path.stem.lower() == "classes" or has_columns(path, CLASS_COLUMNS)


def may_hold_cells(name: str) -> bool:
    """Return whether a file of this name in an image's folder may have its cells or classes."""
    return _kind(name) not in ("image", "unknown")


def _kind(name: str) -> str:
    return next((kind for kind, form in _READ.items() if matches(form, name)), "unknown")


def _choose_image(
    folder: Path, images: list[Path], unknown: Sequence[Path]
) -> tuple[Path, list[Path]]:
    """Return the image, a TIFF if there is one, and the other images."""
    tiffs = [path for path in images if path.suffix.lower() in (".tif", ".tiff")]
    choice = tiffs or images
    if len(choice) == 1:
        return choice[0], [path for path in images if path not in choice]
    if images:
        found, remedy = f"{choice[0].name} and {choice[1].name}, expected one image.tif", LAYOUT
    else:
        found, remedy = "no image.tif", how_to_convert(unknown) or LAYOUT
        for path in unknown:
            if _kind(f"image{path.suffix}") == "image":
                remedy = f"rename {path.name} to image{path.suffix} if it is the image"
                break
            if path.stem.lower() == "image" or path.suffix.lower() in SUFFIXES:
                remedy = f"{path.name} is not read, save it as image.tif or image.png"
                break
    raise InputError(f"{folder}: {found}; {remedy}")


def _choose_class_files(files: Sequence[tuple[str, Path]], n_classes: int) -> dict[int, Path]:
    """Return label maps of one class each by their class 1…K.

    Raises InputError if the name has no class of these, or a class has two files.
    """
    class_files: dict[int, Path] = {}
    for name, path in files:
        number = class_number(name, n_classes)
        if number is None:
            continue
        if not number:
            raise InputError(
                f"{path}: class number out of range, expected class1.tif to "
                f"class{n_classes}.tif; rename it, or set the class names with --class_names"
            )
        if number in class_files:
            raise InputError(
                f"{path}: same class as {class_files[number].name}; remove one of them"
            )
        class_files[number] = path
    return class_files


def class_number(name: str, n_classes: int) -> int | None:
    """Return the class 1…K of a label map of one class, 0 if it has none, None for other names."""
    match = matches(_READ["class"], name)
    if not match:
        return None
    number = int(match[1]) if re.fullmatch("[1-9][0-9]{0,8}", match[1]) else 0
    return number if number <= n_classes else 0


def _two_sources(folder: Path, paths: Sequence[Path]) -> InputError:
    names = [path.name for path in paths]
    if paths[0].parent != paths[1].parent:
        names = [f"{path.parent.name}/{path.name}" for path in paths]
    return InputError(
        f"{folder}: {names[0]} and {names[1]} both contain annotations; remove one of them"
    )


def _not_read(paths: Sequence[Path]) -> InputError:
    """Return the error for a folder whose cells, if any, are in files of other types."""
    if advice := how_to_convert(paths):
        return InputError(advice)
    return InputError(
        f"{paths[0]}: unknown, and no other file has the image's cells; expected a label map "
        f"({_LABEL_MAP_NAMES}) or outlines ({_OUTLINE_NAMES}); convert or rename it, or move it "
        "out of the folder if the image has no cells"
    )


def how_to_convert(paths: Sequence[Path]) -> str:
    """Return how to convert the first of some files that hold cells in another form, or ""."""
    for path in paths:
        for form, advice in _CONVERT.items():
            if matches(form, path.name):
                return f"{path}: {advice}"
    return ""


def find_test_folder(data: str | os.PathLike[str]) -> Path:
    """Return the folder of the test images: `test/` or `test_release/`.

    Raises InputError if neither is found, or both have different files.
    """
    found = [path for name in TEST if (path := Path(data) / name).is_dir()]
    if not found:
        rename = "".join(_advise_to_rename(Path(data) / name) for name in TEST)
        raise InputError(
            f"{data}: no test/ or test_release/ folder; {rename}put the test images into one of "
            "them"
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
    """List the images and slides in a folder, by file extension, sorted by name.

    Warns of all other files and folders, except hidden ones and by-products. Raises InputError if
    the folder is not found, or has no image.
    """
    endings = ", ".join(SUFFIXES)
    entries = list_entries(Path(folder), f"choose a folder with images ({endings})")
    images = [path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not images:
        inner = next((path for path in entries if path.is_dir()), None)
        broken = next((path for path in entries if not path.exists()), None)
        hint = f"; folders in it are not searched, name them, such as {inner}" if inner else ""
        hint += f"; what {broken} links to is missing" if broken else ""
        raise InputError(f"{folder}: no images, expected files that end in {endings}{hint}")
    slides = {path.stem for path in images if path.suffix.lower() in (MRXS, ".vms")}
    others = sorted({*entries} - {*images})
    folders = [path.name for path in others if path.is_dir() and path.name not in slides]
    links = [path.name for path in others if not path.exists()]
    files = [path.name for path in others if path.exists() and not path.is_dir()]
    for what, names, reason in (
        ("folder", folders, "name it too, as it is not searched"),
        ("link", links, "what it links to is missing"),
        ("file", files, f"it must end in {endings}"),
    ):
        if names:
            n = plural(len(names), what)
            warn(f"{folder}: {n} left out ({reason}): {', '.join(names)}")
    return images


def _advise_to_rename(missing: Path) -> str:
    """Return the advice to rename what has the path of a missing folder in another case, if any."""
    other = find_in_another_case(missing)
    return f"rename {other} to {missing}, or " if other else ""


def list_entries(folder: Path, remedy: str) -> list[Path]:
    """List the files and folders in a folder, by name.

    Hidden ones and by-products of operating systems and archives are left out. Raises InputError,
    with `remedy`, if it can't be listed or a name can't be printed.
    """
    try:
        entries = sorted(
            path
            for path in folder.iterdir()
            if not path.name.startswith(".") and not _is_by_product(path.name.lower())
        )
    except FileNotFoundError:
        raise InputError(f"{folder}: no such folder; {_advise_to_rename(folder)}{remedy}") from None
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
