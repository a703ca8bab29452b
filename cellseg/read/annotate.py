"""From what is known of one training image to its cells: label maps, outlines or COCO."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.images import ImageCells
from cellseg.read.coco import MAX_SIDE, AnnotatedImage, annotated_cells, load_coco, select_images
from cellseg.read.coco import class_names as names_of
from cellseg.read.geojson import read_geojson
from cellseg.read.imagescope import read_imagescope
from cellseg.read.layout import CLASS_NAMES, TRAIN, TrainImage
from cellseg.read.names import is_outside, short_name
from cellseg.read.outlines import fill_outlines
from cellseg.read.tiff import read_image, read_labels
from cellseg.rle import MaskRuns, areas, crop_mask, decode, label_map_to_runs

Source = TypeVar("Source")

SMALL = 10
"""Pixels: a cell of so few is probably a slip of the pen. The homework's smallest has 11."""

DARK = 16
"""Of 255: what the 12 bits of a camera come to in a file of 16 bits that nobody scaled."""


def annotate_image(image: TrainImage, class_names: Sequence[str] = CLASS_NAMES) -> AnnotatedImage:
    """Read one image of the training part, and its label maps or outlines.

    `class_names` are the K classes by which outlines call theirs.

    Raises
    ------
    InputError
        If a file can't be read, the image is too large for COCO's masks, a label map has
        another size, labels are not whole numbers from 0 on, or outlines lie off the image
        or have no class.
    """
    pixels = read_image(image.path)
    size = pixels.shape[0], pixels.shape[1]
    if max(size) > MAX_SIDE:
        raise InputError(
            f"{image.path}: {_size_text(size)} pixels (height x width), but an annotated image has "
            f"{MAX_SIDE} a side at most; cut it into smaller images"
        )
    if image.outlines is None:
        cells, warnings = _read_label_maps(image, size)
    else:
        is_xml = image.outlines.suffix.lower() == ".xml"
        outlines = (read_imagescope if is_xml else read_geojson)(image.outlines)
        cells, warnings = fill_outlines(image.outlines, outlines, size, class_names)
    warnings["files that are not of the layout, left out"] += len(image.ignored)
    return _with_warnings(f"{TRAIN}/{image.name}/{image.path.name}", pixels, cells, warnings)


def read_coco_images(
    path: Path, data: Path, bad: dict[int, str] | None = None
) -> tuple[list[str], list[ImageCells]]:
    """Read a COCO file: the K class names, by category id, and the images, by file name.

    Parameters
    ----------
    path
        The file.
    data
        The folder that its file names are relative to.
    bad
        As `load_coco` takes it; images that land in it are left out.

    Raises
    ------
    InputError
        If the file is not what `load_coco` takes.
    """
    coco = load_coco(path, bad)
    if bad:
        coco = select_images(coco, {image["id"] for image in coco["images"]} - bad.keys())
    names = [image["file_name"] for image in coco["images"]]
    images = annotated_cells(coco, data, names)
    return names_of(coco), sorted(images, key=lambda image: image.file_name)


def annotate_coco_image(image: ImageCells) -> AnnotatedImage:
    """Read one image that a COCO file annotates, and check that it is that image.

    Raises
    ------
    InputError
        If the image can't be read, lies outside the data folder or has another size.
    """
    if is_outside(image.file_name):
        raise InputError(
            f"{image.file_name}: lies outside the data folder; write the COCO file's file_name "
            "relative to it"
        )
    pixels = read_image(image.path)
    if pixels.shape[:2] != image.size:
        raise InputError(
            f"{image.path}: {_size_text(pixels.shape[:2])} pixels (height x width), but the COCO "
            f"file says {_size_text(image.size)}; annotate that image"
        )
    cells = {
        number + 1: decode(
            [image.masks[n] for n in np.flatnonzero(image.classes == number)], image.size
        )
        for number in np.unique(image.classes).tolist()
    }
    warnings = Counter({"regions of many cells (iscrowd), left out": image.n_crowds})
    return _with_warnings(image.file_name, pixels, cells, warnings)


def _with_warnings(
    file_name: str, pixels: NDArray[np.uint8], cells: dict[int, MaskRuns], warnings: Counter[str]
) -> AnnotatedImage:
    """Add what looks wrong wherever the cells come from."""
    warnings[f"images with nothing brighter than {DARK} of 255"] += int(pixels.max()) <= DARK
    warnings[f"cells of at most {SMALL} pixels"] += sum(
        int((areas(mask_runs) <= SMALL).sum()) for mask_runs in cells.values()
    )
    warnings["pixels that two cells claim"] += count_overlap_pixels(list(cells.values()))
    warnings["images without a cell"] += not any(map(len, cells.values()))
    return AnnotatedImage(file_name, (pixels.shape[0], pixels.shape[1]), cells, +warnings)


def _read_label_maps(
    image: TrainImage, size: tuple[int, int]
) -> tuple[dict[int, MaskRuns], Counter[str]]:
    cells: dict[int, MaskRuns] = {}
    warnings: Counter[str] = Counter()
    seen: set[int | float] = set()
    for number, path in image.class_files.items():
        labels = read_labels(path)
        if labels.shape != size:
            raise InputError(
                f"{path}: {_size_text(labels.shape)} (height x width), but {image.path.name} is "
                f"{_size_text(size)}; draw it on that image"
            )
        values, cells[number] = label_map_to_runs(labels)
        _check_labels(path, values, cells[number])
        ids = set(values.tolist())
        warnings["labels that stand in two class files of an image"] += len(ids & seen)
        warnings["class files without a cell"] += not ids
        warnings["class files of one cell in many pieces (has each cell a number of its own?)"] += (
            len(ids) == 1
            and scipy.ndimage.label(crop_mask(cells[number], 0)[1], np.ones((3, 3)))[1] > 2
        )
        seen |= ids
    return cells, warnings


def _check_labels(path: Path, values: NDArray[Any], mask_runs: MaskRuns) -> None:
    if values.dtype.kind == "f":
        bad = ~np.isfinite(values) | (values < 0) | (values != np.floor(values))
    else:
        bad = values < 0
    if bad.any():
        index = np.flatnonzero(bad)[0]
        column, row = np.divmod(mask_runs.starts[mask_runs.offsets[index]], mask_runs.size[0])
        raise InputError(
            f"{path}: the label {values[index]} in row {row}, column {column} (from 0), but labels "
            "are whole numbers: 0 for background, 1 and up for cells; mend the label map"
        )


def annotate_images(
    sources: Sequence[Source],
    read: Callable[[Source], AnnotatedImage],
    jobs: int,
    skip_bad: bool,
) -> tuple[list[AnnotatedImage], list[str]]:
    """Read one image from each source, `jobs` at a time, in their order.

    Returns
    -------
    The images, and a line for each that can't be used.

    Raises
    ------
    InputError
        Without `skip_bad`, for the first image that can't be used.
    """

    def try_to_read(source: Source) -> AnnotatedImage | InputError:
        try:
            return read(source)
        except InputError as error:
            return error

    images: list[AnnotatedImage] = []
    skipped: list[str] = []
    # Threads do: decoding and numpy's passes leave the interpreter to the others.
    executor = ThreadPoolExecutor(jobs)
    try:
        results = executor.map(try_to_read, sources)
        for result in tqdm(results, "reading", len(sources), unit="image", disable=None):
            if isinstance(result, AnnotatedImage):
                images.append(result)
            elif skip_bad:
                skipped.append(str(result))
            else:
                raise InputError(f"{result} (--skip_bad goes on without the image)")
    finally:
        executor.shutdown(cancel_futures=True)
    return images, skipped


def summarise(images: Sequence[AnnotatedImage], class_names: Sequence[str]) -> str:
    """Return a table of the images and cells of each class, and what looks odd in which images."""
    per_class = [
        [len(image.cells[number]) for image in images if image.cells.get(number)]
        for number in range(1, len(class_names) + 1)
    ]
    rows = [
        (f"{number} {name}", len(cells), sum(cells))
        for number, (name, cells) in enumerate(zip(class_names, per_class, strict=True), 1)
    ]
    rows.append(("all", len(images), sum(cells for _, _, cells in rows)))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'class':{width}}  images  instances"]
    lines += [f"{name:{width}}  {n_images:6}  {n_cells:9}" for name, n_images, n_cells in rows]
    warnings: Counter[str] = sum((image.warnings for image in images), Counter())
    for what, count in sorted(warnings.items()):
        where = [short_name(image.file_name) for image in images if image.warnings[what]]
        more = ", …" if len(where) > 3 else ""
        lines.append(f"odd: {count} {what}, in {len(where)}: {', '.join(where[:3])}{more}")
    return "\n".join(lines)


def count_overlap_pixels(masks: Sequence[MaskRuns]) -> int:
    """Count the pixels that lie in two or more of the given masks of one image."""
    none = np.zeros(0, np.int64)
    starts = np.concatenate([none, *(mask_runs.starts for mask_runs in masks)])
    ends = np.concatenate([none, *(mask_runs.ends for mask_runs in masks)])
    index = np.concatenate([starts, ends])
    step = np.repeat([1, -1], [len(starts), len(ends)])
    order = np.argsort(index, kind="stable")
    cover = np.cumsum(step[order])
    return int(np.diff(index[order])[cover[:-1] >= 2].sum())


def _size_text(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]}"
