"""What the report page shows of an image: its pixels, outlines and matched detections."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cellseg import rle
from cellseg.coarse import Window
from cellseg.images import EvalImage, take_detections
from cellseg.look.overlay import draw_outlines
from cellseg.outline import Polygon, trace_masks
from cellseg.overlap import reach_into
from cellseg.png import encode_jpeg
from cellseg.read.window import WindowedImage
from cellseg.score.labelmap import compare_label_maps

_THUMB = 112  # px, longer side
_EXAMPLE = 112  # px, both sides
_QUALITY = 88  # of JPEG
# Digits of base 32, and the same plus 32 where another digit of the number follows.
_DIGITS = np.frombuffer(
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_", np.uint8
)
# A cell this many times larger or smaller than the median of its class is unusual.
_UNUSUAL_SIZE_FACTOR = 10


@dataclass(frozen=True)
class Example:
    """A cell that the page shows by itself.

    Attributes
    ----------
    image, cell
        Index of the image, and of the cell in it.
    result
        Index of the results, or −1 for a ground-truth cell.
    caption
        The text below its picture.
    """

    image: int
    result: int
    cell: int
    caption: str


def encode_outlines(cells: Sequence[Sequence[Polygon]]) -> str:
    """Encode the outlines of N cells, as `cellseg.outline.trace` returns them, as text.

    The numbers are, for each cell: its number of rings; for each ring: its number of steps,
    x and y of its first point relative to that of the ring before, then the steps, in turn
    along x and y (pixel edges), without the last one back to the first point. A number n is
    written as `2 n`, or `−2 n − 1` if negative, in groups of five bits, lowest first, plus 32
    if more follow (as in Google's encoded polylines, with other letters).
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
    digits, _ = rle.five_bit_digits(value, 5)
    return _DIGITS[digits].tobytes().decode("ascii")


def sort_detections(eval_image: EvalImage) -> EvalImage:
    """Return the image with its detections by falling score, the order of the page."""
    return take_detections(eval_image, np.argsort(-eval_image.scores, kind="stable"))


@dataclass(frozen=True)
class MatchedDetections:
    """The M detections of an image matched with its N ground-truth cells.

    Lower scores never take pixels from higher ones, so a detection keeps its pixels and its
    match at every score threshold that it reaches. One match without a threshold therefore
    gives the true positives, false positives and false negatives at all of them.

    Attributes
    ----------
    match
        `(M,)` int64: the ground-truth cell of IoU above 0.5, of any class; −1 for none.
    iou
        `(M,)` float64: with the match; 0 without one.
    state
        `(M,)` int64: 0 if hidden under detections of higher score, 1 if it counts, 2 if it is
        in a crowd region and never a false positive.
    gt_state
        `(N,)` int64: 0 if hidden under other ground-truth cells, 1 if it counts, 2 for a crowd
        region.
    """

    match: NDArray[np.int64]
    iou: NDArray[np.float64]
    state: NDArray[np.int64]
    gt_state: NDArray[np.int64]


def match_detections(eval_image: EvalImage) -> MatchedDetections:
    """Match the detections of all scores; a shared pixel belongs to the higher score."""
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
    return MatchedDetections(match, iou, state, gt_state)


def image_data(
    eval_images: Sequence[EvalImage], matches: Sequence[MatchedDetections]
) -> dict[str, Any]:
    """Return what the page's tables, sorting, slider and density map need of an image.

    `eval_images` are the image with each of the results, at least one, sorted by score. Cells are
    counted where the middle of their box is, `x` and `y`.
    """
    first = eval_images[0]
    results = []
    for one, matched in zip(eval_images, matches, strict=True):
        result = {
            **_cell_data(one.mask_runs, one.classes, matched.state),
            "scores": one.scores.tolist(),
        }
        if len(first.gt_classes):
            result["match"] = matched.match.tolist()
            result["iou"] = [round(value, 6) for value in matched.iou.tolist()]
        results.append(result)
    return {
        "name": first.name,
        "size": list(first.size),
        "gt": _cell_data(first.gt_runs, first.gt_classes, matches[0].gt_state),
        "results": results,
    }


def _cell_data(
    masks: rle.MaskRuns, classes: NDArray[np.int64], state: NDArray[np.int64]
) -> dict[str, list[int]]:
    boxes = rle.boxes_xyxy(masks)
    x, y = ((boxes[:, :2] + boxes[:, 2:]) // 2).T
    values = {"classes": classes, "state": state, "x": x, "y": y, "area": rle.areas(masks)}
    return {name: each.tolist() for name, each in values.items()}


def unusual_cells(
    eval_images: Sequence[EvalImage], matches: Sequence[MatchedDetections], n_classes: int
) -> list[list[tuple[int, str]]]:
    """Return the ground-truth cells to check, as `(cell, reason)` for each image.

    `matches` are those of `match_detections` for each image.

    A cell is unusual with several pieces or holes, above ten times the median area of its
    class or below a tenth, or hidden under others. Crowd regions are not cells.
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
    for eval_image, matched, area, gt_classes in zip(
        eval_images, matches, areas, classes, strict=True
    ):
        is_hidden = matched.gt_state == 0
        unusual = []
        for cell, polygons in enumerate(trace_masks(eval_image.gt_masks, eval_image.size)):
            if eval_image.crowd[cell]:
                continue
            n_holes = sum(len(polygon) - 1 for polygon in polygons)
            ratio = area[cell] / medians[int(gt_classes[cell])]
            reasons = [
                *([f"{len(polygons)} pieces"] if len(polygons) > 1 else []),
                *([f"{n_holes} hole{'s' * (n_holes > 1)}"] if n_holes else []),
                *(["very small"] if ratio * _UNUSUAL_SIZE_FACTOR < 1 else []),
                *(["very large"] if ratio > _UNUSUAL_SIZE_FACTOR else []),
                *(["hidden under other cells"] if is_hidden[cell] else []),
            ]
            if reasons:
                unusual.append((cell, ", ".join(reasons)))
        result.append(unusual)
    return result


def encode_picture(pixels: NDArray[np.uint8], max_bytes: int, max_side: int) -> tuple[bytes, int]:
    """Encode `(H, W, 3)` uint8 RGB as JPEG, at reduced resolution if it would be too large.

    `max_bytes` limits the file, unless it has less than 64 pixels a side; `max_side` limits the
    longer side. Returns the file and its longer side in pixels.
    """
    factor = min(1.0, max_side / max(pixels.shape[:2]))
    while True:
        small = _shrink(pixels, factor)
        data = encode_jpeg(small, _QUALITY)
        if len(data) <= max_bytes or max(small.shape[:2]) <= 64:
            return data, max(small.shape[:2])
        factor *= float(np.clip(0.95 * (max_bytes / len(data)) ** 0.5, 0.5, 0.9))


def thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an image as a small JPEG."""
    return encode_jpeg(_shrink(pixels, min(1.0, _THUMB / max(pixels.shape[:2]))), 75)


@dataclass(frozen=True)
class Side:
    """The ground truth or the detections of an image: masks as runs, classes and tight boxes.

    `is_shown`, `(N,)` bool, are the cells that are drawn beside a cell of the other side.
    """

    masks: rle.MaskRuns
    classes: NDArray[np.int64]
    boxes: NDArray[np.int64]
    is_shown: NDArray[np.bool_]

    def draw(
        self, pixels: NDArray[np.uint8], window: Window, cells: NDArray[np.int64], zoom: int
    ) -> NDArray[np.uint8]:
        """Draw the outlines of some cells on the pixels of a window, enlarged `zoom` times."""
        cropped = rle.crop_runs(rle.select_masks(self.masks, cells), window)
        return draw_outlines(pixels, rle.encode(cropped), self.classes[cells], zoom=zoom)

    def within(self, window: Window) -> NDArray[np.int64]:
        """Return the shown cells whose box reaches into a window."""
        return np.flatnonzero(reach_into(self.boxes, window) & self.is_shown)


def example_picture(
    image: WindowedImage, side: Side, cell: int, other: Side | None = None
) -> bytes:
    """Draw a cell with its outline and its surroundings; return a small JPEG.

    With an `other` side, its cells there are drawn in a second picture on the right: the ground
    truth beside a detection, or the detections beside a ground-truth cell.
    """
    left, top, right, bottom = side.boxes[cell].tolist()
    length = max(right - left, bottom - top)
    length += max(8, length // 2)
    height, width = image.size
    left = max(0, min((left + right - length) // 2, width - length))
    top = max(0, min((top + bottom - length) // 2, height - length))
    window = left, top, min(left + length, width), min(top + length, height)
    pixels = image.read(window)
    zoom = max(1, -(-_EXAMPLE // length))
    drawn = [side.draw(pixels, window, np.array([cell]), zoom)]
    if other is not None:
        gap = np.full((drawn[0].shape[0], max(1, 4 * drawn[0].shape[0] // _EXAMPLE), 3), 255)
        drawn += [gap.astype(np.uint8), other.draw(pixels, window, other.within(window), zoom)]
    picture = np.hstack(drawn)
    return encode_jpeg(_shrink(picture, min(1.0, 2 * _EXAMPLE / picture.shape[0])), 80)


def data_uri(jpeg: bytes) -> str:
    """Return a JPEG as a data URI, so that the page needs no other file."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def _shrink(pixels: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    if factor >= 1:
        return pixels
    size = [max(1, round(side * factor)) for side in pixels.shape[1::-1]]
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
