"""Windows that a person has corrected: what was changed, and what was looked through.

`export.py --to_correct` writes a folder of windows, each a PNG and a GeoJSON file, and an index of
what it wrote: a COCO file, whose images have, beside COCO's keys, a `source` (`Source`) and the
`sha256` of the GeoJSON file, and whose annotations have the `cell` id of the GeoJSON feature.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellseg.errors import InputError
from cellseg.files import read_json
from cellseg.messages import listed, plural, warn
from cellseg.read.classes import (
    UnknownClassError,
    advise_class_names,
    class_numbers,
    is_ignored,
)
from cellseg.read.coco import (
    COCO,
    COCO_REMEDY,
    EmptyMaskError,
    annotations_by_image,
    check_coco,
    class_names,
    load_coco,
)
from cellseg.read.corrected_changes import Tally, count_changes, is_same, print_changes
from cellseg.read.corrected_store import (
    Bools,
    Cell,
    Corrected,
    crop,
    mostly_inside,
    read_source,
    union,
)
from cellseg.read.fill import check_lengths, fill_polygons
from cellseg.read.geojson import read_geojson
from cellseg.read.layout import TEST
from cellseg.read.names import comparable_name
from cellseg.read.window import read_image, wrong_size
from cellseg.rle import RLE, MaskRuns, areas, encode, select_masks
from cellseg.runs import file_hash

INDEX = "index.json"
"""In an exported folder: what was written."""

_MANY = 5  # deleted cells in a window, if most of its cells
_REGION = 4  # times the area of the largest cell: a region, if nothing else tells
_REMEDY = "expected the folder that export.py --to_correct wrote"


def take_back(
    folders: Sequence[Path], data: Path, names: Sequence[str] | None, skip_bad: bool = False
) -> tuple[Sequence[str], list[Corrected]]:
    """Read the corrected windows of exported folders.

    Prints what was changed. Windows that were not changed at all, file and all, were not looked
    through and are not used.

    Parameters
    ----------
    folders
        Folders that `export.py --to_correct` wrote; or in one of them a COCO file of a tool that
        can't write GeoJSON, such as CVAT.
    data
        The data folder.
    names
        The class names; None for those of the exported windows.
    skip_bad
        Leave out windows that can't be used.

    Returns
    -------
    The class names, and the windows, whose cells have these classes.

    Raises
    ------
    InputError
        With everything that has to be fixed, of all windows.
    """
    corrected: list[Corrected] = []
    problems: list[InputError] = []
    tally = Tally()
    for given in folders:
        folder, coco_file = (given.parent, given) if given.is_file() else (given, None)
        index = load_index(folder / INDEX)
        if names is None:
            names = class_names(index)
        files = (
            _coco_outlines(coco_file, index, names, tally.unknown)
            if coco_file
            else _find_files(folder, index)
        )
        reader = _Reader(folder, index, names, tally)
        for image in index["images"]:
            try:
                window = reader.read(image, files.get(image["file_name"]))
            except InputError as error:
                problems.append(error)
                continue
            if window:
                corrected.append(window)
    assert names is not None
    counts = tally.counts
    advice = f"; {advise_class_names(names, tally.unknown)}" if tally.unknown else ""
    if problems and not (skip_bad and corrected):
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError(
            f"--corrected {folders[0]}: nothing was stored, as {plural(len(problems), 'thing')} "
            f"must be fixed first: {'; '.join(map(str, problems[:20]))}{more}{advice}"
        )
    for problem in problems:
        warn(f"skipped: {problem}{advice if isinstance(problem, UnknownClassError) else ''}")
    if not corrected:
        raise InputError(
            f"--corrected {folders[0]}: none of "
            f"{plural(counts['unchanged'] + counts['missing'], 'window')} was changed; correct "
            "them, and export the objects over the .geojson files there, also where nothing was "
            "wrong; or name the COCO file of CVAT"
        )
    counts["held out"] = sum(window.source.held_out for window in corrected)
    tests = {os.path.realpath(data / name) for name in TEST}
    counts["test"] = sum(
        os.path.realpath(Path(window.source.path).parent) in tests for window in corrected
    )
    print_changes(names, tally, len(corrected))
    return names, corrected


def load_index(path: Path) -> COCO:
    """Load the index of an exported folder. Raise InputError if it is something else."""
    if not path.is_file():
        raise InputError(f"--corrected {path.parent}: no {INDEX} in it; {_REMEDY}")
    coco = load_coco(path)
    for image in coco["images"]:
        read_source(path, image)
    if not all(isinstance(entry.get("cell"), str) for entry in coco["annotations"]):
        raise InputError(f"{path}: cells without an id; {_REMEDY}")
    return coco


class _File(NamedTuple):
    """The file with a window's cells: GeoJSON, or a COCO file, its cells and ignored ones."""

    path: Path
    coco: list[Cell] | None = None
    ignored: Sequence[RLE] = ()
    problem: InputError | None = None


def _find_files(folder: Path, index: COCO) -> dict[str, _File]:
    """Return the corrected GeoJSON file of each window that has one; warn of other files.

    QuPath may suggest another name, with the image's ending; such a file counts before the one
    that was written, if that is unchanged.
    """
    known = {Path(image["file_name"]).stem: image for image in index["images"]}
    found: dict[str, list[Path]] = {}
    foreign = []
    for path in sorted(folder.rglob("*")):
        name = path.name.lower().removesuffix(".gz")
        if path.name.startswith(".") or not name.endswith(".geojson"):
            continue
        stem = path.name[: len(name) - len(".geojson")]
        stem = stem if stem in known else stem.removesuffix(".png")
        if stem in known:
            found.setdefault(stem, []).append(path)
        else:
            foreign.append(path.name)
    if foreign:
        what = plural(len(foreign), "GeoJSON file")
        warn(f"{folder}: {what} of no window in {INDEX}, ignored: {listed(foreign)}")
    files = {}
    for stem, paths in found.items():
        image = known[stem]
        changed = [path for path in paths if file_hash(path) != image.get("sha256")]
        if len(changed) > 1:
            raise InputError(
                f"{folder}: {changed[0].name} and {changed[1].name} are both corrections of "
                f"{image['file_name']}; remove one of them"
            )
        files[image["file_name"]] = _File((changed or paths)[0])
    return files


def _coco_outlines(
    path: Path, index: COCO, names: Sequence[str], unknown: Counter[str]
) -> dict[str, _File]:
    """Return the cells of each window from a COCO file of another program.

    Counts cells of `unknown` classes.
    """
    unusable: list[tuple[int, InputError]] = []
    coco = check_coco(path, read_json(path, "corrected cells", COCO_REMEDY), unusable)
    broken = {id_: error for id_, error in unusable if not isinstance(error, EmptyMaskError)}
    if n_empty := sum(isinstance(error, EmptyMaskError) for _, error in unusable):
        warn(f"{path}: cells without a pixel, ignored: {n_empty}")
    numbers = class_numbers(names)
    theirs = {c["id"]: c["name"] for c in coco["categories"]}
    numbered = {id_: numbers.get(comparable_name(name), 0) for id_, name in theirs.items()}
    ignored = {
        id_
        for id_, name in theirs.items()
        if not numbered[id_] and is_ignored(name) and not _is_region_name(name)
    }
    by_name = {Path(image["file_name"].replace("\\", "/")).name: image for image in coco["images"]}
    if foreign := sorted(by_name.keys() - {image["file_name"] for image in index["images"]}):
        what = plural(len(foreign), "image")
        warn(f"{path}: {what} of no window in {INDEX}, ignored: {listed(foreign)}")
    of_image = annotations_by_image(coco)

    def read(image: dict[str, Any], other: dict[str, Any]) -> _File:
        """Read a window. Raises InputError if its cells can't be used."""
        annotations = [(a["category_id"], a["segmentation"]) for a in of_image[other["id"]]]
        classes = Counter(k for k, _ in annotations)
        bad = {theirs[k]: n for k, n in classes.items() if not numbered[k] and k not in ignored}
        unknown.update(bad)
        if (other["height"], other["width"]) != (image["height"], image["width"]):
            raise InputError(
                f"{path}: {other['file_name']} has {other['height']} x {other['width']} pixels "
                f"(height x width), expected {image['height']} x {image['width']}; export the "
                "windows that export.py wrote"
            )
        if other["id"] in broken:
            raise broken[other["id"]]
        if bad:
            raise UnknownClassError(f"{path}: {other['file_name']}: {_unknown_classes(bad, names)}")
        cells = [Cell("", numbered[k] - 1, mask) for k, mask in annotations if k not in ignored]
        return _File(path, cells, [mask for k, mask in annotations if k in ignored])

    files = {}
    for image in index["images"]:
        if other := by_name.get(image["file_name"]):
            try:
                files[image["file_name"]] = read(image, other)
            except InputError as error:
                files[image["file_name"]] = _File(path, problem=error)
    return files


def _unknown_classes(counts: Mapping[str, int], names: Sequence[str]) -> str:
    found = ", ".join(f"{name!r} ({n})" for name, n in sorted(counts.items()))
    return f"unknown classes: {found}, expected one of {', '.join(names)}"


@dataclass(frozen=True)
class _Reader:
    """Reads the corrected windows of one folder, and counts what was changed."""

    folder: Path
    index: COCO
    names: Sequence[str]
    tally: Tally

    def read(self, image: dict[str, Any], file: _File | None) -> Corrected | None:
        """Read a window; None if it was not looked through.

        Raises InputError with all its problems in one line.
        """
        size = image["height"], image["width"]
        if file is None:
            self.tally.counts["missing"] += 1
            return None
        if file.problem:
            raise file.problem
        written = self._written[image["id"]]
        if file.coco is None:
            unchanged = file_hash(file.path) == image.get("sha256")
        else:
            unchanged = not file.ignored and is_same(written, file.coco)
        if unchanged:
            self.tally.counts["unchanged"] += 1
            return None
        path = self.folder / image["file_name"]
        pixels = read_image(path)
        if pixels.shape[:2] != size:
            raise wrong_size(path, pixels.shape, size, " as written; restore it")
        ids = {cell.id for cell in written}
        if file.coco is None:
            cells, region, ignored = self._outlines(file.path, size, ids)
        else:
            cells, region, ignored = file.coco, np.ones(size, bool), [*file.ignored]
            self.tally.counts["whole"] += 1
        self.tally.counts["ignored"] += sum(
            bool(union([mask], size)[region].any()) for mask in ignored
        )
        # A file that was dragged into QuPath twice gives each cell twice.
        once: dict[tuple[int, str], Cell] = {}
        for cell in sorted(cells, key=lambda cell: cell.id not in ids):
            once.setdefault((cell.class_, str(cell.mask["counts"])), cell)
        self.tally.ignored["twice"][image["file_name"]] += len(cells) - len(once)
        cells = list(once.values())
        kept = mostly_inside([cell.mask for cell in cells], region)
        now = [cell for cell, inside in zip(cells, kept, strict=True) if inside]
        before = mostly_inside([cell.mask for cell in written], region)
        self.tally.counts["outside"] += len(cells) - len(now)
        n_lost = count_changes(written, cells, ~before, ~kept)
        self.tally.ignored["corrections"][image["file_name"]] += n_lost
        looked_at = [cell for cell, inside in zip(written, before, strict=True) if inside]
        n_deleted = self.tally.compare(self.names, looked_at, now)
        if not now:
            self.tally.empty.append(image["file_name"])
        if n_deleted >= _MANY and 2 * n_deleted > len(looked_at):
            self.tally.deleted.append(f"{image['file_name']} ({n_deleted})")
        source = replace(read_source(self.folder / INDEX, image), height=size[0], width=size[1])
        others = [cell.mask for cell, inside in zip(cells, kept, strict=True) if not inside]
        visible = (region & ~union([*ignored, *others], size)) | union([c.mask for c in now], size)
        return crop(
            Corrected(Path(image["file_name"]).stem, source, pixels, visible, now, image.get("mpp"))
        )

    @cached_property
    def _written(self) -> dict[int, list[Cell]]:
        """The cells that were written, by the id of the window."""
        ours = class_numbers(self.names)
        theirs = {c["id"]: comparable_name(c["name"]) for c in self.index["categories"]}
        return {
            id_: [
                Cell(a["cell"], ours.get(theirs[a["category_id"]], 0) - 1, a["segmentation"])
                for a in annotations
            ]
            for id_, annotations in annotations_by_image(self.index).items()
        }

    def _outlines(
        self, path: Path, size: tuple[int, int], known: set[str]
    ) -> tuple[list[Cell], Bools, list[RLE]]:
        """Return the cells of a GeoJSON file, the region looked through, and ignored cells."""
        outlines = read_geojson(path)
        broken = [outline.error for outline in outlines if outline.error]
        problems = [error.removeprefix(f"{path}: ") for error in broken]
        outlines = [outline for outline in outlines if not outline.error]
        self.tally.ignored["points"][path.name] += sum(not outline.polygons for outline in outlines)
        outlines = [outline for outline in outlines if outline.polygons]
        polygons = [outline.polygons for outline in outlines]
        check_lengths(path, polygons, size)
        masks = fill_polygons(polygons, size)
        numbers = class_numbers(self.names)
        class_text = [(outline.class_name or "").strip() for outline in outlines]
        class_of = [numbers.get(comparable_name(text), 0) for text in class_text]
        is_cell = np.array(class_of, np.int64) > 0
        may_be_region = [
            not text and outline.id not in known
            for outline, text in zip(outlines, class_text, strict=True)
        ]
        is_region = _find_regions(masks, class_text, is_cell, np.array(may_be_region, bool))
        is_left_out = np.array([is_ignored(text) for text in class_text], bool)
        unclear = np.flatnonzero(~(is_cell | is_region | is_left_out))
        others = Counter(class_text[n] for n in unclear if class_text[n])
        no_class = [outlines[n].where for n in unclear if not class_text[n]]
        self.tally.unknown.update(others)
        if no_class:
            problems.append(
                f"{plural(len(no_class), 'cell')} without a class ({listed(no_class)}): set it, or "
                "the class Region* if it is what you looked through"
            )
        if others:
            problems.append(_unknown_classes(others, self.names))
        encoded = encode(masks)
        region = union([encoded[n] for n in np.flatnonzero(is_region)], size)
        if not is_region.any():
            region[:] = True
        elif not region.any():
            problems.append("the region that was looked through is outside the window: move it")
        if problems:
            more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
            error = UnknownClassError if others else InputError
            raise error(f"{path}: {'; '.join(problems[:5])}{more}")
        self.tally.counts["whole"] += not is_region.any()
        is_cell &= ~is_region
        area = areas(masks)
        self.tally.ignored["empty"][path.name] += int((is_cell & (area == 0)).sum())
        ignored = [encoded[n] for n in np.flatnonzero(is_left_out & ~is_region & ~is_cell)]
        cells = [
            Cell(outlines[n].id or "", class_of[n] - 1, encoded[n])
            for n in np.flatnonzero(is_cell & (area > 0)).tolist()
        ]
        return cells, region, ignored


def _is_region_name(name: str) -> bool:
    """Return whether a class is QuPath's for regions, Region*."""
    return name.casefold() in ("region", "region*")


def _find_regions(
    masks: MaskRuns, class_text: Sequence[str], is_cell: Bools, may_be_region: Bools
) -> Bools:
    """Return which outlines are regions, `(N,)` bool: by their class, or without one by their area.

    Cells of a single class need no name, and may look like a region then.
    """
    sure = np.flatnonzero(is_cell & ~may_be_region)
    compared = sure if len(sure) else np.flatnonzero(is_cell)
    is_region = [
        (_is_region_name(text) and not is_cell[n])
        or (may_be_region[n] and _is_region(masks, n, compared[compared != n]))
        for n, text in enumerate(class_text)
    ]
    return np.array(is_region, bool)


def _is_region(masks: MaskRuns, n: int, cells: NDArray[np.int64]) -> bool:
    """Return whether an outline without a class is a region, and not a cell that has none.

    It is four times as large as each cell in it or, without any, as all cells of the window.
    """
    area = areas(masks)
    region = union(encode(select_masks(masks, np.array([n]))), masks.size)
    inside = cells[mostly_inside(encode(select_masks(masks, cells)), region)]
    compared = inside if len(inside) else cells
    return bool(area[n] >= _REGION * area[compared].max(initial=0))
