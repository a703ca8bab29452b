"""Read the cells of training images from label maps, outlines or a COCO file."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.files import display_path
from cellseg.messages import in_images, listed, plural, warn
from cellseg.read.brightness import DARK_TEXT, count_bright, is_dark
from cellseg.read.cell_checks import (
    OVERLAP_TEXT,
    SMALL,
    count_overlap_pixels,
    remove_copies,
    scattered,
)
from cellseg.read.classes import UnknownClassError
from cellseg.read.coco import MAX_SIDE, AnnotatedImage, load_coco, split_by_class
from cellseg.read.convention import CENTRES, EDGES, move_outlines
from cellseg.read.corrected_store import is_corrected
from cellseg.read.foreign_coco import CocoImage, check_inside
from cellseg.read.geojson import read_geojson
from cellseg.read.imagescope import read_imagescope, read_mpp
from cellseg.read.label_maps import (
    class_name,
    count_labels,
    read_class_files,
    read_class_texts,
    read_joint_label_map,
)
from cellseg.read.layout import CLASS_NAMES, TrainImage
from cellseg.read.names import short_name
from cellseg.read.orientation import turn_note
from cellseg.read.outlines import Outline, fill_outlines
from cellseg.read.resolution import is_about, resolution_text
from cellseg.read.train_files import ImageFiles
from cellseg.read.window import open_image, wrong_size
from cellseg.rle import MaskRuns, areas, decode

Source = TypeVar("Source")


def annotate_image(
    image: TrainImage,
    class_names: Sequence[str] = CLASS_NAMES,
    skip_bad: bool = False,
    convention: str | None = None,
) -> AnnotatedImage:
    """Read a training image and its label maps or outlines.

    `class_names` are the K class names that outlines and class tables use. With `skip_bad`, single
    cells of unknown classes or outside the image are left out. `convention` is where outlines run,
    see `read_outlines`.

    Raises
    ------
    InputError
        If a file can't be read, the image is too large for COCO's masks, a label map has
        another size, labels are not integers from 0, or outlines are outside the image or have
        no class.
    """
    size, mpp, warnings = _read_pixels(image.path)
    if max(size) > MAX_SIDE:
        raise InputError(
            f"{image.path}: {size[0]} x {size[1]} pixels (height x width), expected at most "
            f"{MAX_SIDE} a side; cut it into smaller images"
        )
    cells, unusual = _read_cells(image, size, class_names, skip_bad, convention)
    if mpp is None and image.outlines:
        mpp = read_mpp(image.outlines)
    sources = _sources(image, cells)
    return _check_cells(image.file_name, size, cells, warnings + unusual, mpp, sources)


def annotate_without_pixels(
    image: TrainImage, size: tuple[int, int], class_names: Sequence[str]
) -> AnnotatedImage:
    """Read the cells of an image of a known `size` whose file is elsewhere now.

    Raises InputError as `annotate_image`.
    """
    cells, warnings = _read_cells(image, size, class_names)
    return _check_cells(image.file_name, size, cells, warnings, None, _sources(image, cells))


def _read_cells(
    image: TrainImage,
    size: tuple[int, int],
    class_names: Sequence[str],
    skip_bad: bool = False,
    convention: str | None = None,
) -> tuple[dict[int, MaskRuns], Counter[str]]:
    """Read the masks of each class 1…K in an image's files, and warnings."""
    if image.outlines:
        outlines = read_outlines(image.outlines, convention)
        cells, warnings = fill_outlines(image.outlines, outlines, size, class_names, skip_bad)
    elif image.label_map:
        cells, warnings = read_joint_label_map(
            image.label_map, image.class_table, image.path, size, class_names, skip_bad
        )
    else:
        cells, warnings = read_class_files(image.class_files, image.path, size, skip_bad)
    for name in image.ignored:
        warnings[f"unexpected files ({Path(name).suffix or 'without ending'}), ignored"] += 1
    return cells, warnings


def _sources(image: TrainImage, classes: Iterable[int]) -> dict[int, Path]:
    """Return the file with the cells of each class."""
    joint = image.outlines or image.label_map or image.path
    return {number: image.class_files.get(number, joint) for number in classes}


def _read_pixels(path: Path) -> tuple[tuple[int, int], float | None, Counter[str]]:
    """Read an image: its size, its micrometres per pixel, and warnings about its pixels."""
    with open_image(path) as opened:
        n_bright = count_bright(opened.read_all())
        warnings = Counter(opened.notes)
    warnings[DARK_TEXT] += is_dark(n_bright, math.prod(opened.size))
    return opened.size, opened.mpp, warnings


def read_outlines(path: Path, convention: str | None = None) -> list[Outline]:
    """Read a file of outlines, by its ending. Raises InputError if it can't be read.

    `convention` is where they run, one of `CONVENTIONS`; by default, XML through centres as
    MoNuSAC's, GeoJSON along edges as QuPath's.
    """
    if path.suffix.lower() == ".xml":
        return move_outlines(read_imagescope(path), CENTRES, convention)
    return move_outlines(read_geojson(path), EDGES, convention)


def count_cells(image: TrainImage) -> int:
    """Return the number of cells in those of an image's files that can be read.

    Raises InputError if others can't, and these have none.
    """
    if image.outlines:
        return sum(bool(o.polygons or o.error) for o in read_outlines(image.outlines))
    n_cells, unreadable = 0, None
    for path in [*image.class_files.values(), *filter(None, [image.label_map])]:
        try:
            n_cells += count_labels(path)
        except InputError as error:
            unreadable = error
    if unreadable and not n_cells:
        raise unreadable
    return n_cells


def find_class_names(
    sources: Sequence[ImageFiles], n_classes: int, given: Sequence[str] | None = None
) -> set[str]:
    """Return all class names in the outlines and class tables of training images.

    Numbers in class tables that stand for a `given` name are that name.
    """
    names: set[str] = set()
    for source in sources:
        with contextlib.suppress(InputError):
            image = source.choose(n_classes)
            if image.outlines:
                names |= {o.class_name or "" for o in read_outlines(image.outlines) if o.polygons}
            elif image.label_map:
                texts = read_class_texts(image.label_map, image.class_table)
                names |= {class_name(text, given or ()) for text in texts}
    return names


def annotate_coco_image(image: CocoImage) -> AnnotatedImage:
    """Read an image of a COCO file, and check that its size is that of the annotations.

    Raises InputError if it can't be read, is outside the data folder or has another size.
    """
    check_inside(image.file_name)
    size, mpp, warnings = _read_pixels(image.path)
    if size != image.size:
        turned = turn_note(image.path, size, image.size)
        rest = f" as in the COCO file{turned}; annotate that image"
        raise wrong_size(image.path, size, image.size, rest)
    cells = split_by_class(decode(image.masks, image.size), image.classes)
    warnings.update(image.warnings)
    sources = dict.fromkeys(cells, image.path)
    return _check_cells(image.file_name, size, cells, warnings, image.mpp or mpp, sources)


def _check_cells(
    file_name: str,
    size: tuple[int, int],
    cells: dict[int, MaskRuns],
    warnings: Counter[str],
    mpp: float | None,
    sources: Mapping[int, Path],
) -> AnnotatedImage:
    """Build the result, with warnings of the cells; `sources` are the files of each class."""
    n_pixels = math.prod(size)
    different = {number: remove_copies(mask_runs) for number, mask_runs in cells.items()}
    for number, mask_runs in different.items():
        n_copies = len(cells[number]) - len(mask_runs)
        warnings["cells that occur twice in a class, used once"] += n_copies
        sizes = areas(mask_runs)
        warnings[f"cells of at most {SMALL} pixels"] += int((sizes <= SMALL).sum())
        warnings["cells that cover over half of the image"] += int((2 * sizes > n_pixels).sum())
        reused = int(scattered(mask_runs).sum())
        if reused >= 10 and 2 * reused > len(mask_runs):
            raise InputError(
                f"{sources[number]}: {reused} of {len(mask_runs)} cells of class "
                f"{number} have pieces far apart, expected one label per cell (were more than 255 "
                "cells saved with 8 bits?); save them again"
            )
        warnings["cells with pieces far apart (one label for several?)"] += reused
    warnings[OVERLAP_TEXT] += count_overlap_pixels(list(different.values()))
    warnings["images without cells"] += not any(map(len, different.values()))
    return AnnotatedImage(file_name, size, different, +warnings, mpp)


def annotate_images(
    sources: Sequence[Source],
    read: Callable[[Source], AnnotatedImage],
    count: Callable[[Source], int],
    jobs: int,
    skip_bad: bool,
) -> tuple[list[AnnotatedImage], list[str]]:
    """Read one image from each source, `jobs` at a time.

    Returns the images in the order of the sources, and a message for each that can't be used,
    with the number of its cells by `count`; without `skip_bad`, raises InputError for the first
    of these.
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
        results = tqdm(results, "reading", len(sources), unit="image", disable=None)
        for source, result in zip(sources, results, strict=True):
            if isinstance(result, AnnotatedImage):
                images.append(result)
            elif skip_bad:
                skipped.append(_with_count(result, source, count))
            elif isinstance(result, UnknownClassError):
                raise result
            else:
                raise InputError(f"{result} (or skip what can't be used with --skip_bad)")
    finally:
        executor.shutdown(cancel_futures=True)
    return images, skipped


def _with_count(error: InputError, source: Source, count: Callable[[Source], int]) -> str:
    try:
        n_cells = plural(count(source), "cell")
    except InputError:
        return str(error)
    return f"{error} ({n_cells} not used with it)"


def read_former_images(path: Path) -> list[dict[str, Any]]:
    """Return the images of a former annotation file, none if it is missing or, with a warning,
    damaged.
    """
    if not path.is_file():
        return []
    try:
        return list(load_coco(path)["images"])
    except InputError as error:
        warn(f"{error}; what it said of the images, if anything, is lost")
        return []


def warn_of_lost_images(images: Sequence[AnnotatedImage], former: Sequence[dict[str, Any]]) -> None:
    """Warn of images of the former annotation file, but corrected windows, that are gone."""
    there = {image.file_name for image in images}
    names = [entry["file_name"] for entry in former]
    if lost := [name for name in names if name not in there and not is_corrected(name)]:
        warn(
            f"images of the former annotation file that are no longer training images: "
            f"{len(lost)}: {listed(lost)}; if they are those of a COCO file, add it with --coco"
        )


def with_former_resolution(
    images: Sequence[AnnotatedImage], former: Sequence[dict[str, Any]], path: Path, keep: bool
) -> list[AnnotatedImage]:
    """Return images with the micrometres per pixel of the `former` annotation file, of that path.

    With `keep`, those of unknown resolution get the former one of the same image with the same
    size, and it is said. Warns of other resolutions in the file that are lost now, or changed.
    """
    stated = {entry["file_name"]: entry for entry in former if entry.get("mpp")}
    result, kept, lost = [], [], []
    for image in images:
        if entry := stated.get(image.file_name):
            mpp, size = entry["mpp"], (entry["height"], entry["width"])
            if keep and image.mpp is None and image.size == size:
                image = replace(image, mpp=mpp)
                kept.append(mpp)
            elif image.mpp is None or (
                keep and not is_corrected(image.file_name) and not is_about(image.mpp, mpp)
            ):
                lost.append(mpp)
        result.append(image)
    if kept:
        n, text = plural(len(kept), "image"), resolution_text(kept, len(kept))
        print(f"micrometres per pixel of {n} as in the former {display_path(path)}: {text}")
    if lost:
        n, text = plural(len(lost), "image"), resolution_text(lost, len(lost))
        flag = f"--mpp {text}" if " " not in text else "--mpp"
        warn(
            f"micrometres per pixel of {n}, {text} in the former {path}, are now as the files say "
            f"or unknown; state them again with {flag}"
        )
    return result


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
        warn(f"{what}: {count}, {in_images(where)}")
