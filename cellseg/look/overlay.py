"""Pictures of an image with outlined cells, one colour for each class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cellseg.coarse import reduce_pixels
from cellseg.colours import class_colour
from cellseg.images import ImageCells
from cellseg.outline import trace_masks
from cellseg.overlap import reach_into
from cellseg.png import write_jpeg, write_png
from cellseg.read.window import WindowedImage, open_image_of_size
from cellseg.rle import RLE, crop_mask, crop_runs, decode, encode

WINDOW = 4096  # px, maximum side of a picture, which any viewer opens

_LONG_SIDE = 800  # px, to which a small image is enlarged
_MAX_ZOOM = 8
_TEXT = 16  # px, font size
_LINE = 24  # px, line height
_MARGIN = 8
_MIN_WIDTH = 240  # px, room for the legend of the smallest image


def draw_outlines(
    image: NDArray[np.uint8],
    masks: Sequence[RLE],
    classes: NDArray[np.int64],
    scores: NDArray[np.float32] | None = None,
    zoom: int = 1,
) -> NDArray[np.uint8]:
    """Draw the outline of each cell on a copy of the image, enlarged `zoom` times.

    An outline consists of the cell's own border pixels, also at the image's edge, so that
    touching cells have separate ones. It is 1 px wide; in an enlarged image 2 px, or half a
    pixel of the image if that is more.

    Parameters
    ----------
    image
        `(H, W, 3)` uint8 RGB.
    masks
        N compressed RLEs of the image's size.
    classes
        `(N,)`, 0 to K−1.
    scores
        `(N,)`; if given, of overlapping cells the one with the higher score is on top, of equal
        ones the first.
    zoom
        Enlargement, 1 or more.

    Returns
    -------
    `(zoom * H, zoom * W, 3)` uint8 RGB.

    Raises
    ------
    ValueError
        If the image has another type, the lengths differ, or a mask is not an RLE of the
        image's size.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"image is {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
    if len(classes) != len(masks) or (scores is not None and len(scores) != len(masks)):
        raise ValueError(f"{len(masks)} masks, expected as many classes and scores")
    height, width = image.shape[:2]
    canvas = image.copy()
    if zoom > 1:
        canvas = cv2.resize(image, (width * zoom, height * zoom), interpolation=cv2.INTER_CUBIC)
    thickness = 1 if zoom == 1 else max(2, zoom // 2)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    mask_runs = decode(masks, (height, width))
    best_last = range(len(masks))
    if scores is not None:
        best_last = np.argsort(-scores, kind="stable")[::-1].tolist()
    for index in best_last:
        box, mask = crop_mask(mask_runs, index)
        if not mask.size:
            continue
        left, top, right, bottom = (box * zoom).tolist()
        inside = mask.repeat(zoom, axis=0).repeat(zoom, axis=1).astype(np.uint8)
        core = cv2.erode(
            inside, cross, iterations=thickness, borderType=cv2.BORDER_CONSTANT, borderValue=0
        )
        canvas[top:bottom, left:right][inside > core] = class_colour(int(classes[index]))
    return canvas


def draw_overlay(
    image: NDArray[np.uint8],
    masks: Sequence[RLE],
    classes: NDArray[np.int64],
    names: Sequence[str],
    scores: NDArray[np.float32] | None = None,
    zoom: int | None = None,
) -> NDArray[np.uint8]:
    """Draw an image with outlined cells above a legend.

    Parameters
    ----------
    image, masks, classes, scores
        As for `draw_outlines`.
    names
        The K class names; the legend gives the number of cells of each.
    zoom
        Enlargement; by default a small image is enlarged to about 800 px, at most 8 times.

    Returns
    -------
    `(H', W', 3)` uint8 RGB.

    Raises
    ------
    ValueError
        As `draw_outlines`, or if a class has no name.
    """
    counts = _count(classes, names)
    zoom = zoom or _zoom_for(image)
    picture = draw_outlines(image, masks, classes, scores, zoom)
    entries = [f"{name}  {n}" for name, n in zip(names, counts, strict=True)]
    return _with_legend(picture, entries)


def draw_comparison(
    image: NDArray[np.uint8],
    gt_masks: Sequence[RLE],
    gt_classes: NDArray[np.int64],
    masks: Sequence[RLE],
    classes: NDArray[np.int64],
    names: Sequence[str],
    scores: NDArray[np.float32] | None = None,
    zoom: int | None = None,
) -> NDArray[np.uint8]:
    """Draw the ground truth on the left, the detections on the right, and a legend below.

    Parameters, result and errors are those of `draw_overlay`; the legend gives for each class
    the numbers of ground-truth cells and detections.
    """
    counts = zip(_count(gt_classes, names), _count(classes, names), strict=True)
    zoom = zoom or _zoom_for(image)
    panels = []
    for title, panel in (
        ("ground truth", draw_outlines(image, gt_masks, gt_classes, None, zoom)),
        ("detections", draw_outlines(image, masks, classes, scores, zoom)),
    ):
        width = max(panel.shape[1], _MIN_WIDTH // 2)
        panels.append(np.vstack([_text_lines([[(0, title, None)]], width), _widen(panel, width)]))
    gap = np.full((panels[0].shape[0], _MARGIN, 3), 255, np.uint8)
    both = np.hstack([panels[0], gap, panels[1]])
    entries = [f"{name}  {a} | {b}" for name, (a, b) in zip(names, counts, strict=True)]
    return _with_legend(both, entries)


def write_overlay(image: ImageCells, names: Sequence[str], folder: Path, max_side: int) -> None:
    """Draw an image with its cells and write the picture as `<folder>/<image>.png`.

    An image of more than `max_side` pixels a side is reduced, and written as
    `<folder>/<image>.jpg`. With `max_side` 0, a large one gets a picture in full resolution for
    each window of `WINDOW` pixels a side, `<folder>/<image>/x<left>_y<top>.png`. `names` are the
    K class names.

    Raises InputError if the image can't be read or has another size than its cells, or a
    picture can't be written.
    """
    whole = max(image.size) <= WINDOW
    with open_image_of_size(image.path, image.size, image.level) as pixels:
        if 0 < max_side < max(image.size):
            picture = draw_reduced(pixels, image.masks, image.classes, names, max_side)
            write_jpeg(folder / f"{image.name}.jpg", picture)
            return
        for window in pixels.windows(WINDOW):
            left, top = window[:2]
            here = np.flatnonzero(reach_into(image.boxes, window))
            mask_runs = decode([image.masks[n] for n in here], image.size)
            picture = draw_overlay(
                pixels.read(window),
                encode(crop_runs(mask_runs, window)),
                image.classes[here],
                names,
                None if image.scores is None else image.scores[here].astype(np.float32),
            )
            name = f"{image.name}.png" if whole else f"{image.name}/x{left:05}_y{top:05}.png"
            write_png(folder / name, picture)


def draw_reduced(
    image: WindowedImage,
    masks: Sequence[RLE],
    classes: NDArray[np.int64],
    names: Sequence[str],
    max_side: int,
) -> NDArray[np.uint8]:
    """Draw an image of any size, reduced by a whole number to `max_side` px, above a legend.

    The outlines are reduced too, and drawn 1 px wide. The image is read window by window. The
    other parameters, the result and the errors are those of `draw_overlay`.
    """
    entries = [f"{name}  {n}" for name, n in zip(names, _count(classes, names), strict=True)]
    factor = -(-max(image.size) // max_side)
    height, width = image.size
    small = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    step = max(1, WINDOW // factor) * factor
    for window in image.windows(step):
        part = image.read(window)
        x, y = window[0] // factor, window[1] // factor
        small[y : y + step // factor, x : x + step // factor] = reduce_pixels(part, factor)
    for cell, polygons in enumerate(trace_masks(masks, image.size)):
        # In 16ths of a pixel, whose middle is 0 for OpenCV.
        rings = [
            ((ring / factor - 0.5) * 16).round().astype(np.int32)
            for polygon in polygons
            for ring in polygon
        ]
        cv2.polylines(small, rings, True, class_colour(int(classes[cell])), 1, cv2.LINE_AA, 4)
    return _with_legend(small, entries)


def _zoom_for(image: NDArray[np.uint8]) -> int:
    return int(min(-(-_LONG_SIDE // max(*image.shape[:2], 1)), _MAX_ZOOM))


def _count(classes: NDArray[np.int64], names: Sequence[str]) -> list[int]:
    classes = np.asarray(classes, np.int64)
    if len(classes) and not set(classes.tolist()) <= set(range(len(names))):
        raise ValueError(
            f"classes run from {classes.min()} to {classes.max()}, but there are {len(names)} names"
        )
    counts: list[int] = np.bincount(classes, minlength=len(names)).tolist()
    return counts


def _with_legend(picture: NDArray[np.uint8], entries: Sequence[str]) -> NDArray[np.uint8]:
    width = max(picture.shape[1], _MIN_WIDTH)
    return np.vstack([_widen(picture, width), _legend(entries, width)])


def _widen(picture: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    return np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255)


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    # A font of matplotlib with the letters of most alphabets.
    return ImageFont.truetype(
        Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), _TEXT
    )


def _legend(entries: Sequence[str], width: int) -> NDArray[np.uint8]:
    """Draw the entry of each class next to a patch of its colour, in one or more lines."""
    patch = _TEXT + _MARGIN
    lines: list[list[tuple[int, str, int | None]]] = [[]]
    x = 0
    for index, entry in enumerate(entries):
        text = _shorten(" ".join(entry.split()), width - patch - 2 * _MARGIN)
        needed = patch + int(_font().getlength(text)) + 2 * _MARGIN
        if x and x + needed > width:
            lines.append([])
            x = 0
        lines[-1].append((x, text, index))
        x += needed
    return _text_lines(lines, width)


def _shorten(text: str, width: int) -> str:
    """Cut the middle of a text that is longer than `width` px; its end is the count."""
    shorter, keep = text, len(text)
    while keep > 2 and _font().getlength(shorter) > width:
        keep -= 1
        shorter = text[: (keep + 1) // 2] + "…" + text[len(text) - keep // 2 :]
    return shorter


def _text_lines(
    lines: Sequence[Sequence[tuple[int, str, int | None]]], width: int
) -> NDArray[np.uint8]:
    """Draw lines of `(x, text, class)` on white; a class adds a patch of its colour."""
    paper = Image.new("RGB", (width, _LINE * len(lines) + _MARGIN), "white")
    draw = ImageDraw.Draw(paper)
    for number, line in enumerate(lines):
        middle = _MARGIN // 2 + number * _LINE + _LINE // 2
        for x, text, index in line:
            x += _MARGIN
            if index is not None:
                top = middle - _TEXT // 2
                draw.rectangle((x, top, x + _TEXT - 1, top + _TEXT - 1), class_colour(index))
                x += _TEXT + _MARGIN
            draw.text((x, middle), text, fill="black", font=_font(), anchor="lm")
    return np.asarray(paper)
