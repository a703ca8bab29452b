"""Read the cells of training images from label maps, outlines or a COCO file."""

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
from cellseg.messages import listed, plural, warn
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
"""Area in pixels; cells this small are probably slips. The smallest of NYCU HW3 has 11."""

DARK = 16
"""Of 255; the brightness of a camera's 12 bits in a 16-bit file that was never scaled."""


def annotate_image(image: TrainImage, class_names: Sequence[str] = CLASS_NAMES) -> AnnotatedImage:
    """Read a training image and its label maps or outlines.

    `class_names` are the K class names that outlines use.

    Raises
    ------
    InputError
        If a file can't be read, the image is too large for COCO's masks, a label map has
        another size, labels are not integers from 0, or outlines are outside the image or have
        no class.
    """
    pixels = read_image(image.path)
    size = pixels.shape[0], pixels.shape[1]
    if max(size) > MAX_SIDE:
        raise InputError(
            f"{image.path}: {_size_text(size)} pixels (height x width), expected at most "
            f"{MAX_SIDE} a side; cut it into smaller images"
        )
    if image.outlines is None:
        cells, warnings = _read_label_maps(image, size)
    else:
        is_xml = image.outlines.suffix.lower() == ".xml"
        outlines = (read_imagescope if is_xml else read_geojson)(image.outlines)
        cells, warnings = fill_outlines(image.outlines, outlines, size, class_names)
    warnings["unexpected files, ignored"] += len(image.ignored)
    return _with_warnings(f"{TRAIN}/{image.name}/{image.path.name}", pixels, cells, warnings)


def read_coco_images(
    path: Path, data: Path, bad: dict[int, str] | None = None
) -> tuple[list[str], list[ImageCells]]:
    """Return the K class names of a COCO file, by category id, and its images, by file name.

    Images that `load_coco` adds to `bad` are skipped. File names are relative to `data`.
    Raises InputError if `load_coco` does.
    """
    coco = load_coco(path, bad)
    if bad:
        coco = select_images(coco, {image["id"] for image in coco["images"]} - bad.keys())
    names = [image["file_name"] for image in coco["images"]]
    images = annotated_cells(coco, data, names)
    return names_of(coco), sorted(images, key=lambda image: image.file_name)


def annotate_coco_image(image: ImageCells) -> AnnotatedImage:
    """Read an image of a COCO file, and check that its size is that of the annotations.

    Raises InputError if it can't be read, is outside the data folder or has another size.
    """
    if is_outside(image.file_name):
        raise InputError(
            f"{image.file_name}: outside the data folder; write the COCO file's file_name relative "
            "to it"
        )
    pixels = read_image(image.path)
    if pixels.shape[:2] != image.size:
        raise InputError(
            f"{image.path}: {_size_text(pixels.shape[:2])} pixels (height x width), expected "
            f"{_size_text(image.size)} as in the COCO file; annotate that image"
        )
    cells = {
        number + 1: decode(
            [image.masks[n] for n in np.flatnonzero(image.classes == number)], image.size
        )
        for number in np.unique(image.classes).tolist()
    }
    warnings = Counter({"crowd regions (iscrowd), ignored": image.n_crowds})
    return _with_warnings(image.file_name, pixels, cells, warnings)


def _with_warnings(
    file_name: str, pixels: NDArray[np.uint8], cells: dict[int, MaskRuns], warnings: Counter[str]
) -> AnnotatedImage:
    """Build the result, with the warnings that apply to every source."""
    warnings[f"images with no pixel above {DARK} of 255"] += int(pixels.max()) <= DARK
    warnings[f"cells of at most {SMALL} pixels"] += sum(
        int((areas(mask_runs) <= SMALL).sum()) for mask_runs in cells.values()
    )
    warnings["pixels in two cells"] += count_overlap_pixels(list(cells.values()))
    warnings["images without cells"] += not any(map(len, cells.values()))
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
                f"{path}: {_size_text(labels.shape)} (height x width), expected "
                f"{_size_text(size)} as {image.path.name}; draw it on that image"
            )
        values, cells[number] = label_map_to_runs(labels)
        _check_labels(path, values, cells[number])
        ids = set(values.tolist())
        warnings["labels used in two class files of an image"] += len(ids & seen)
        warnings["class files without cells"] += not ids
        warnings["class files with one label in many pieces (one label per cell?)"] += (
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
            f"{path}: label {values[index]} in row {row}, column {column} (from 0), expected "
            "integers: 0 for background, 1 and up for cells; fix the label map"
        )


def annotate_images(
    sources: Sequence[Source], read: Callable[[Source], AnnotatedImage], jobs: int, skip_bad: bool
) -> tuple[list[AnnotatedImage], list[str]]:
    """Read one image from each source, `jobs` at a time.

    Returns the images in the order of the sources, and a message for each that can't be used;
    without `skip_bad`, raises InputError for the first of these.
    """

    def try_to_read(source: Source) -> AnnotatedImage | InputError:
        try:
            return read(source)
        except InputError as error:
            return error

    images: list[AnnotatedImage] = []
    skipped: list[str] = []
    # Threads suffice: decoding and numpy release the interpreter lock.
    executor = ThreadPoolExecutor(jobs)
    try:
        results = executor.map(try_to_read, sources)
        for result in tqdm(results, "reading", len(sources), unit="image", disable=None):
            if isinstance(result, AnnotatedImage):
                images.append(result)
            elif skip_bad:
                skipped.append(str(result))
            else:
                raise InputError(f"{result} (or skip such images with --skip_bad)")
    finally:
        executor.shutdown(cancel_futures=True)
    return images, skipped


def summarise(images: Sequence[AnnotatedImage], class_names: Sequence[str]) -> str:
    """Return a table of the images and cells of each class."""
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
    return "\n".join(lines)


def warn_of_images(images: Sequence[AnnotatedImage]) -> None:
    """Print the warnings of images: how many of each kind, and in which images."""
    warnings: Counter[str] = sum((image.warnings for image in images), Counter())
    for what, count in sorted(warnings.items()):
        where = [short_name(image.file_name) for image in images if image.warnings[what]]
        warn(f"{what}: {count}, in {plural(len(where), 'image')}: {listed(where)}")


def count_overlap_pixels(masks: Sequence[MaskRuns]) -> int:
    """Count the pixels that are in two or more of the masks of one image."""
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
