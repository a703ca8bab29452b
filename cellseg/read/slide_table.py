"""Tables of slides: CSV files with a path, and where needed micrometres per pixel and regions."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellseg.errors import InputError
from cellseg.files import exists
from cellseg.images import ImageRecord
from cellseg.messages import listed, plural, warn
from cellseg.read.csv_table import read_rows
from cellseg.read.names import absolute_path, name_outputs_uniquely
from cellseg.read.resolution import MPP_RANGE, is_plausible
from cellseg.read.slide import slide_id

SUFFIXES = (".csv", ".tsv")
_COLUMNS = ("path", "mpp", "regions")


@dataclass(frozen=True)
class Slide:
    """A slide in a table.

    Attributes
    ----------
    image
        The image, with the id 1.
    name
        Name of the folder for its results, unique in the table; it may have `/` in it.
    problem
        Why the row can't be used, or an empty text.
    """

    image: ImageRecord
    name: str
    problem: str = ""


def is_slide_table(paths: Sequence[Path]) -> bool:
    """Return whether a table of slides is among paths. Raises InputError if others are too."""
    tables = [path for path in paths if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    if tables and len(paths) > 1:
        raise InputError(f"--images {tables[0]}: a table of slides; give no other path with it")
    return bool(tables)


def read_slide_table(path: Path) -> list[Slide]:
    """Read a table of slides. Relative paths in it are relative to its folder.

    A row that can't be used has a `problem`. Warns of unknown columns and of repeated rows.

    Raises
    ------
    InputError
        If the file can't be read, has no column `path`, a known column twice, or no rows.
    """
    where = "--images "
    rows = read_rows(path, _COLUMNS[:1], where, optional=_COLUMNS[1:])
    if not rows:
        raise InputError(f"{where}{path}: no slides in it; add a line with the path of each")
    if unknown := [title for title in rows[0][1] if title and title not in _COLUMNS]:
        warn(
            f"{path}: {plural(len(unknown), 'unknown column')} ignored, {listed(unknown)}; known "
            f"are {', '.join(_COLUMNS)}"
        )
    slides: dict[object, tuple[int, Mapping[str, str], ImageRecord, str]] = {}
    repeated: list[int] = []
    for line, row in rows:
        image, problem = _read_row(f"{path}: line {line}: ", line, path.parent, row)
        key = image.path if problem else slide_id(image.path)
        if key not in slides:
            slides[key] = line, row, image, problem
            continue
        first, other, image, problem = slides[key]
        if all(row.get(name) == other.get(name) for name in _COLUMNS[1:]):
            repeated.append(line)
        else:
            problem = (
                f"{path}: line {line}: {row['path']} has other values in line {first}; remove one "
                "of them"
            )
            slides[key] = first, other, image, problem
    if repeated:
        warn(
            f"{path}: {plural(len(repeated), 'line')} with a slide of an earlier line ignored: "
            f"line {listed(repeated)}"
        )
    names = name_outputs_uniquely(path, [image.file_name for _, _, image, _ in slides.values()])
    return [
        Slide(image, name, problem)
        for (_, _, image, problem), name in zip(slides.values(), names, strict=True)
    ]


def _read_row(
    where: str, line: int, folder: Path, row: Mapping[str, str]
) -> tuple[ImageRecord, str]:
    """Return the image of a row, and what is wrong with it."""
    file = absolute_path(folder / row["path"]) if row["path"] else Path(f"line {line}")
    problem, mpp = "", None
    if text := row.get("mpp"):
        with contextlib.suppress(ValueError):
            mpp = float(text.replace(",", "."))
        if not is_plausible(mpp):
            problem = f"{where}mpp {text!r} is not {MPP_RANGE}; correct it, or leave it empty"
    if not row["path"]:
        problem = f"{where}no path; add it, or remove the line"
    elif exists(file) and file.is_dir():
        problem = f"{where}{file}: is a folder, expected an image; write the paths of its images"
    regions = folder / row["regions"] if row.get("regions") else None
    for each in (file, regions):
        if each and not problem and not exists(each):
            problem = f"{where}{each}: no such file; correct the path"
    regions = None if problem else regions
    return ImageRecord(1, str(file), file, None, mpp=mpp, regions=regions), problem
