"""What the report's page knows of an image: its pixels, its outlines, and who found whom."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cellseg import rle
from cellseg.images import EvalImage
from cellseg.look.overlay import draw_outlines
from cellseg.outline import Polygon, trace
from cellseg.read.window import open_image_of_size
from cellseg.score.labelmap import compare_label_maps

_THUMB = 112  # px, the longer side
_EXAMPLE = 112  # px, both sides
_QUALITY = 88  # of JPEG
# The digits of a number are those of base 32; a digit below 32 is a number's last one.
_DIGITS = np.frombuffer(
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_", np.uint8
)
# A cell this many times larger or smaller than the median of its class is odd.
_UNUSUAL_SIZE_FACTOR = 10


@dataclass(frozen=True)
class Example:
    """A cell to show by itself.

    Attributes
    ----------
    image
        The place of its image.
    result
        The place of its run, or −1 for a ground-truth cell.
    cell
        Its place in the image.
    """

    image: int
    result: int
    cell: int


def encode_outlines(cells: Sequence[Sequence[Polygon]]) -> str:
    """Write the outlines of N cells as text of letters, digits, - and _.

    The numbers are, for each cell: the number of its rings; for each of these: the
    number of its steps, x and y of its first point less those of the ring before, then
    the steps: along x, along y, in turn, as pixel edges go; the last one, back to
    the first point, is left out. A number n is `2 n`, or `−2 n − 1` if negative, its
    groups of five bits lowest first, plus 32 if more follow (as in Google's encoded
    polylines, in other letters).

    Parameters
    ----------
    detection_indices
        As `cellseg.outline.trace` gives them.
    """
    numbers: list[NDArray[np.int64]] = []
    before = np.zeros(2, np.int64)
    for polygons in cells:
        rings = [ring for polygon in polygons for ring in polygon]
        numbers.append(np.array([len(rings)]))
        for ring in rings:
            steps = np.diff(ring[:-1], axis=0).sum(axis=1)
            numbers += [np.array([len(steps)]), ring[0] - before, steps]
            before = ring[0]
    value = np.concatenate([np.zeros(0, np.int64), *numbers])
    value = np.where(value < 0, -2 * value - 1, 2 * value)
    n_digits = np.ones(len(value), np.int64)
    bits = 5
    while (more := value >> bits != 0).any():
        n_digits += more
        bits += 5
    owner = np.repeat(np.arange(len(value)), n_digits)
    ends = np.cumsum(n_digits)
    digit = np.arange(len(owner)) - np.repeat(ends - n_digits, n_digits)
    groups: NDArray[np.int64] = (value[owner] >> (5 * digit)) & 31
    groups[digit < n_digits[owner] - 1] |= 32
    return _DIGITS[groups].tobytes().decode("ascii")


@dataclass(frozen=True)
class MatchedDetections:
    """The detections of an image, best score first, and what they found.

    Lower scores never take pixels from higher ones, so a cell of the label map is the
    same at every score threshold at which it is in it, and so is its match. One pass
    without a threshold therefore holds the hits, misses and false positives of all of them.

    Attributes
    ----------
    order
        `(M,)` int64: their places in the image.
    match
        `(M,)` int64: the ground-truth cell of IoU above 0.5, of any class; −1 for none.
    iou
        `(M,)` float64: with the match; 0 where there is none.
    state
        `(M,)` int64: 0 if it keeps no pixel of its own in the label map, so that it isn't
        there; 1 if it counts; 2 if it is ignored, in a crowd region, from being a false
        alarm.
    gt_state
        `(N,)` int64: 0 if it keeps no pixel, 1 if it counts, 2 for a crowd region.
    """

    order: NDArray[np.int64]
    match: NDArray[np.int64]
    iou: NDArray[np.float64]
    state: NDArray[np.int64]
    gt_state: NDArray[np.int64]


def match_detections(eval_image: EvalImage) -> MatchedDetections:
    """Match the cells of all scores; pixels that two claim go to the higher score."""
    comparison = compare_label_maps(eval_image, -np.inf, "score")
    pairs, pair_iou = comparison.matches()
    match = np.full(len(eval_image.scores), -1, np.int64)
    iou = np.zeros(len(eval_image.scores))
    match[comparison.detection_indices[pairs[:, 1]]] = comparison.gt_indices[pairs[:, 0]]
    iou[comparison.detection_indices[pairs[:, 1]]] = pair_iou
    state = np.zeros(len(eval_image.scores), np.int64)
    state[comparison.detection_indices] = 1 + comparison.in_crowd
    gt_state = np.where(eval_image.crowd, 2, 0)
    gt_state[comparison.gt_indices] = 1
    order = np.argsort(-eval_image.scores, kind="stable")
    return MatchedDetections(order, match[order], iou[order], state[order], gt_state)


def image_data(
    eval_images: Sequence[EvalImage], matched: Sequence[MatchedDetections]
) -> dict[str, Any]:
    """What the page's tables, sorting and slider need of an image, without its outlines.

    `eval_images` are the image in each run, all with the same truth; at least one, which has no
    detections if there is no run.
    """
    eval_image = eval_images[0]
    return {
        "name": eval_image.name,
        "size": list(eval_image.size),
        "truth": {
            "classes": eval_image.gt_classes.tolist(),
            "state": matched[0].gt_state.tolist(),
        },
        "runs": [
            {
                "classes": one.classes[j.order].tolist(),
                "scores": one.scores[j.order].tolist(),
                "match": j.match.tolist(),
                "iou": [round(value, 6) for value in j.iou.tolist()],
                "state": j.state.tolist(),
            }
            for one, j in zip(eval_images, matched, strict=True)
        ],
    }


def image_outlines(
    eval_images: Sequence[EvalImage], matched: Sequence[MatchedDetections]
) -> dict[str, Any]:
    """The outlines of the ground-truth cells, and of those of each run, best score first."""
    return {
        "truth": encode_outlines(trace(eval_images[0].gt_runs)),
        "runs": [
            encode_outlines([cells[i] for i in j.order])
            for cells, j in (
                (trace(s.mask_runs), j) for s, j in zip(eval_images, matched, strict=True)
            )
        ],
    }


def unusual_cells(eval_images: Sequence[EvalImage], n_classes: int) -> list[list[tuple[int, str]]]:
    """Find the ground-truth cells that are worth a second look.

    Returns
    -------
    For each image `(cell, why)`: of several pieces, with holes, of ten times the median
    area of its class or a tenth of it, or sharing most of its pixels with another. Crowd
    regions are no cells.
    """
    areas = [rle.areas(eval_image.gt_runs) for eval_image in eval_images]
    classes = [eval_image.gt_classes for eval_image in eval_images]
    crowd = np.concatenate([np.zeros(0, bool), *(eval_image.crowd for eval_image in eval_images)])
    all_areas, all_classes = (
        np.concatenate([np.zeros(0, np.int64), *each])[~crowd] for each in (areas, classes)
    )
    medians = [
        float(np.median(all_areas[all_classes == k])) if (all_classes == k).any() else 0.0
        for k in range(n_classes)
    ]
    result = []
    for eval_image, area, gt_classes in zip(eval_images, areas, classes, strict=True):
        is_covered = match_detections(eval_image).gt_state == 0
        unusual = []
        for cell, polygons in enumerate(trace(eval_image.gt_runs)):
            if eval_image.crowd[cell]:
                continue
            n_holes = sum(len(polygon) - 1 for polygon in polygons)
            ratio = area[cell] / medians[int(gt_classes[cell])]
            why = [
                *([f"{len(polygons)} pieces"] if len(polygons) > 1 else []),
                *([f"{n_holes} hole{'s' * (n_holes > 1)}"] if n_holes else []),
                *(["very small"] if ratio * _UNUSUAL_SIZE_FACTOR < 1 else []),
                *(["very large"] if ratio > _UNUSUAL_SIZE_FACTOR else []),
                *(["covered by other cells"] if is_covered[cell] else []),
            ]
            if why:
                unusual.append((cell, ", ".join(why)))
        result.append(unusual)
    return result


def read_pixels(eval_image: EvalImage) -> NDArray[np.uint8]:
    """Read an image: `(H, W, 3)` uint8 RGB.

    Raises
    ------
    InputError
        If it can't be read, or is of another size than its cells.
    """
    height, width = eval_image.size
    with open_image_of_size(eval_image.path, eval_image.size, eval_image.level) as image:
        return image.read((0, 0, width, height))


def encode_picture(pixels: NDArray[np.uint8], max_bytes: int, max_side: int) -> tuple[bytes, int]:
    """Encode an image as a JPEG that is no larger than allowed, in smaller pixels if need be.

    Parameters
    ----------
    pixels
        `(H, W, 3)` uint8 RGB.
    max_bytes
        Of the file; a picture of less than 64 pixels a side may take more.
    max_side
        px, the longer side.

    Returns
    -------
    The file, and its longer side in px.
    """
    factor = min(1.0, max_side / max(pixels.shape[:2]))
    while True:
        small = _shrink(pixels, factor)
        data = _jpeg(small, _QUALITY)
        if len(data) <= max_bytes or max(small.shape[:2]) <= 64:
            return data, max(small.shape[:2])
        factor *= float(np.clip(0.95 * (max_bytes / len(data)) ** 0.5, 0.5, 0.9))


def thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an image as a small JPEG."""
    return _jpeg(_shrink(pixels, min(1.0, _THUMB / max(pixels.shape[:2]))), 75)


def example_picture(pixels: NDArray[np.uint8], eval_image: EvalImage, example: Example) -> bytes:
    """Draw a cell with its outline and what is round it, as a small JPEG."""
    true = example.result < 0
    mask_runs = eval_image.gt_runs if true else eval_image.mask_runs
    classes = eval_image.gt_classes if true else eval_image.classes
    one = rle.decode(
        [(eval_image.gt_masks if true else eval_image.masks)[example.cell]], mask_runs.size
    )
    left, top, right, bottom = rle.boxes_xyxy(one)[0].tolist()
    side = max(right - left, bottom - top)
    side += max(8, side // 2)
    height, width = eval_image.size
    left = max(0, min((left + right - side) // 2, width - side))
    top = max(0, min((top + bottom - side) // 2, height - side))
    right, bottom = min(left + side, width), min(top + side, height)
    mask = rle.encode(rle.crop_runs(one, (left, top, right, bottom)))
    zoom = max(1, -(-_EXAMPLE // side))
    drawn = draw_outlines(
        np.ascontiguousarray(pixels[top:bottom, left:right]),
        mask,
        classes[example.cell : example.cell + 1],
        zoom=zoom,
    )
    return _jpeg(_shrink(drawn, min(1.0, 2 * _EXAMPLE / max(drawn.shape[:2]))), 80)


def data_uri(jpeg: bytes) -> str:
    """Put a JPEG into an address, so that a page needs no other file."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def _shrink(pixels: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    if factor >= 1:
        return pixels
    size = [max(1, round(side * factor)) for side in pixels.shape[1::-1]]
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()
