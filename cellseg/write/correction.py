"""Windows that are worth correcting most, as files for QuPath and, in one COCO file, for CVAT."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.files import display_path, write_atomic, write_json
from cellseg.images import ImageCells
from cellseg.messages import listed, plural
from cellseg.overlap import reach_into
from cellseg.png import write_png
from cellseg.read.cells import read_annotated_cells
from cellseg.read.coco import AnnotatedImage, build_coco, split_by_class
from cellseg.read.corrected import INDEX, load_index
from cellseg.read.corrected_store import Source, unused_name
from cellseg.read.names import absolute_path, image_name
from cellseg.read.window import open_image_of_size
from cellseg.rle import boxes_xyxy, crop_runs, decode, encode, select_masks
from cellseg.runs import RECORD, file_hash, read_record
from cellseg.write.coco import write_coco
from cellseg.write.geojson import cell_features, write_geojson

COCO_FILE = "coco.json"
"""The cells of all windows, for tools that don't open GeoJSON."""
LONGEST = 1024
"""Pixels a side, up to which an image is one window."""
_LEAST_AREA = 256 * 256  # pixels; smaller images count as this large

_README = """\
1. In QuPath, add the PNG files to a project; open each, drag the .geojson of its name onto it, and correct outlines, classes, missing and wrong cells; if you looked through a part only, draw an annotation without class around it.
2. Export all objects (File > Export objects as GeoJSON) over that .geojson, also where nothing was wrong; then: python annotation.py --corrected THIS_FOLDER --data DATA_FOLDER
"""  # noqa: E501


@dataclass(frozen=True)
class Window:
    """A part of an image, XYXY in pixels, and how uncertain its detected cells are."""

    image: ImageCells
    box: tuple[int, int, int, int]
    uncertainty: float


def rank_windows(images: Sequence[ImageCells]) -> list[Window]:
    """Return the windows of all images, the most uncertain first.

    Images of more than 1024 px a side are cut into equal windows of 512 to 1024 px. The uncertainty
    is the sum of s (1 - s) over all detected cells with their centre in the window, per million
    pixels, at least 65,536. If a score s is the probability that it is a cell, that is the
    variance of the number of cells: 0 for scores of 0 or 1, most for 0.5. (Settles 2009, Active
    learning literature survey, describes such uncertainty sampling.)
    """
    windows = []
    for image in images:
        assert image.scores is not None
        doubt = image.scores * (1 - image.scores)
        centres = (image.boxes[:, :2] + image.boxes[:, 2:]) / 2
        edges = [_edges(side) for side in image.size]
        doubts, *_ = np.histogram2d(centres[:, 1], centres[:, 0], edges, weights=doubt)
        boxes = itertools.product(*map(itertools.pairwise, edges))
        for ((top, bottom), (left, right)), total in zip(boxes, doubts.flat, strict=True):
            area = max((right - left) * (bottom - top), _LEAST_AREA)
            windows.append(Window(image, (left, top, right, bottom), float(total) / area * 1e6))
    return sorted(windows, key=lambda window: -window.uncertainty)


def _edges(side: int) -> list[int]:
    """Return the edges of the windows along a side."""
    n = -(-side // LONGEST)
    return [round(i * side / n) for i in range(n + 1)]


def write_most_uncertain(
    folder: Path,
    source: Path,
    images: Sequence[ImageCells],
    names: Sequence[str],
    threshold: float,
    count: int,
) -> None:
    """Write the `count` most uncertain windows of results with `write_windows`, and print them.

    `source` is the results file, or a run folder with one. Raises InputError as `write_windows`
    does, or if `images` have no scores.
    """
    if any(image.scores is None for image in images):
        raise InputError(
            f"--to_correct: {source} are annotations, which have no scores; give results of "
            "inference.py"
        )
    run = source if source.is_dir() else source.parent
    held_out = read_record(run)["held_out"] if (run / RECORD).is_file() else []
    ranked = rank_windows(images)
    chosen = ranked[:count]
    n_cells = write_windows(folder, chosen, names, threshold, held_out)
    for window in chosen:
        left, top, right, bottom = window.box
        print(
            f"{window.uncertainty:8.1f} cells in doubt per megapixel: {window.image.name}, "
            f"{bottom - top} x {right - left} px (height x width) at x {left}, y {top}"
        )
    counts = f"{plural(len(chosen), 'window')} of {len(ranked)}, {plural(n_cells, 'cell')}"
    print(f"to correct: {counts}: {display_path(folder)}, see README.txt there")


def write_windows(
    folder: Path,
    windows: Sequence[Window],
    names: Sequence[str],
    threshold: float,
    held_out: Container[str],
) -> int:
    """Write windows as PNG and GeoJSON, a COCO file and the index of all, and what to do with them.

    Cells at a border are cut there. The index is that of `cellseg.read.corrected`.

    Parameters
    ----------
    folder
        Where to write. Files of an earlier export there are replaced.
    windows
        The windows.
    names
        The K class names.
    threshold
        Minimum score of the cells that are written.
    held_out
        Names of images in the validation set of the run.

    Returns
    -------
    The number of cells.

    Raises
    ------
    InputError
        If an image can't be read, or a file can't be written or may have been corrected.
    """
    _prepare(folder)
    annotated, entries, ids = [], [], []
    used: set[str] = set()
    for window in tqdm(windows, "windows", unit="window", disable=None):
        image, (left, top, right, bottom) = window.image, window.box
        stem = image.name.rpartition("/")[2]
        if (right - left, bottom - top) != image.size[::-1]:
            stem = f"{stem}_x{left}_y{top}"
        name = unused_name(stem, used)
        with open_image_of_size(image.path, image.size, image.level) as opened:
            pixels = opened.read(window.box)
        cells = _cut_cells(window, name, threshold)
        features = list(cell_features(cells, names, "annotation"))
        geojson = folder / f"{name}.geojson"
        write_png(folder / f"{name}.png", pixels)
        write_geojson(geojson, features)
        by_class = split_by_class(decode(cells.masks, cells.size), cells.classes)
        annotated.append(AnnotatedImage(f"{name}.png", cells.size, by_class, Counter(), image.mpp))
        ids += [feature["id"] for feature in features]
        source = Source(
            image.file_name,
            str(absolute_path(image.path)),
            left,
            top,
            right - left,
            bottom - top,
            image.level,
            image_name(image.file_name) in held_out,
        )
        uncertainty = round(window.uncertainty, 3)
        more = {"sha256": file_hash(geojson), "uncertainty": uncertainty}
        entries.append({"source": asdict(source), **more})
    coco = build_coco(annotated, names)
    coco["info"]["description"] = "Windows to correct (export.py --to_correct)"
    for entry, more in zip(coco["images"], entries, strict=True):
        entry.update(more)
    for cell, id_ in zip(coco["annotations"], ids, strict=True):
        cell["cell"] = id_
    write_json(folder / INDEX, coco)
    write_coco(folder / COCO_FILE, read_annotated_cells(folder / INDEX, folder)[1], names)
    return len(ids)


def _cut_cells(window: Window, name: str, threshold: float) -> ImageCells:
    """Return a window as an image of that name, with its cells of a minimum score, by class."""
    image = window.image
    assert image.scores is not None
    here = np.flatnonzero(reach_into(image.boxes, window.box) & (image.scores >= threshold))
    here = here[np.argsort(image.classes[here], kind="stable")]
    masks = crop_runs(decode([image.masks[n] for n in here], image.size), window.box)
    some = np.flatnonzero(np.diff(masks.offsets) > 0)
    kept = select_masks(masks, some)
    return replace(
        image,
        name=name,
        size=kept.size,
        masks=encode(kept),
        classes=image.classes[here[some]],
        boxes=boxes_xyxy(kept),
        scores=image.scores[here[some]],
    )


def _prepare(folder: Path) -> None:
    """Make a folder ready: remove the windows of an earlier export, and write what to do.

    Raises InputError if windows there were corrected, or the folder is for something else.
    """
    note, index = folder / "README.txt", folder / INDEX
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        own = note.is_file() and note.read_text("utf-8", errors="replace") == _README
        if not own:
            raise InputError(
                f"--to_correct {display_path(folder)}: not empty, expected a new folder or one "
                "that this command wrote; choose another"
            )
    if index.is_file():
        images = load_index(index)["images"]
        files = [folder / Path(image["file_name"]).with_suffix(".geojson") for image in images]
        ours = {note, index, folder / COCO_FILE, *files, *(f.with_suffix(".png") for f in files)}
        changed = [
            file.name
            for file, image in zip(files, images, strict=True)
            if file.is_file() and file_hash(file) != image.get("sha256")
        ]
        changed += [
            str(path.relative_to(folder))
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path not in ours and not path.name.startswith(".")
        ]
        if changed:
            raise InputError(
                f"--to_correct {display_path(folder)}: has {plural(len(changed), 'file')} that "
                f"this command did not write, as of corrections ({listed(changed)}); take these "
                "back with annotation.py --corrected, then choose another folder"
            )
        index.unlink()
        for file in files:
            file.unlink(missing_ok=True)
            file.with_suffix(".png").unlink(missing_ok=True)
    with write_atomic(note) as text:
        text.write(_README)
