"""What the report page shows of an image: its pixels, outlines and matched detections."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
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


def sort_detections(eval_image: EvalImage) -> EvalImage:
    """Return the image with its detections by falling score, the order of the page."""
    order = np.argsort(-eval_image.scores, kind="stable")
    masks = [eval_image.masks[n] for n in order]
    return replace(
        eval_image,
        masks=masks,
        mask_runs=rle.decode(masks, eval_image.size),
        classes=eval_image.classes[order],
        scores=eval_image.scores[order],
        entries=eval_image.entries[order],
    )


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
    """Return what the page's tables, sorting and slider need of an image.

    `eval_images` are the image with each of the results, at least one, sorted by score.
    """
    first = eval_images[0]
    return {
        "name": first.name,
        "size": list(first.size),
        "gt": {"classes": first.gt_classes.tolist(), "state": matches[0].gt_state.tolist()},
        "results": [
            {
                "classes": one.classes.tolist(),
                "scores": one.scores.tolist(),
                "match": matched.match.tolist(),
                "iou": [round(value, 6) for value in matched.iou.tolist()],
                "state": matched.state.tolist(),
            }
            for one, matched in zip(eval_images, matches, strict=True)
        ],
    }


def unusual_cells(eval_images: Sequence[EvalImage], n_classes: int) -> list[list[tuple[int, str]]]:
    """Return the ground-truth cells to check, as `(cell, reason)` for each image.

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
    for eval_image, area, gt_classes in zip(eval_images, areas, classes, strict=True):
        is_hidden = match_detections(eval_image).gt_state == 0
        unusual = []
        for cell, polygons in enumerate(trace(eval_image.gt_runs)):
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


def read_pixels(eval_image: EvalImage) -> NDArray[np.uint8]:
    """Return an image as `(H, W, 3)` uint8 RGB.

    Raises InputError if it can't be read or has another size than its cells.
    """
    height, width = eval_image.size
    with open_image_of_size(eval_image.path, eval_image.size, eval_image.level) as image:
        return image.read((0, 0, width, height))


def encode_picture(pixels: NDArray[np.uint8], max_bytes: int, max_side: int) -> tuple[bytes, int]:
    """Encode `(H, W, 3)` uint8 RGB as JPEG, at reduced resolution if it would be too large.

    `max_bytes` limits the file, unless it has less than 64 pixels a side; `max_side` limits the
    longer side. Returns the file and its longer side in pixels.
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
    """Draw a cell with its outline and its surroundings; return a small JPEG."""
    masks = eval_image.gt_masks if example.result < 0 else eval_image.masks
    classes = eval_image.gt_classes if example.result < 0 else eval_image.classes
    one = rle.decode([masks[example.cell]], eval_image.size)
    left, top, right, bottom = rle.boxes_xyxy(one)[0].tolist()
    side = max(right - left, bottom - top)
    side += max(8, side // 2)
    height, width = eval_image.size
    left = max(0, min((left + right - side) // 2, width - side))
    top = max(0, min((top + bottom - side) // 2, height - side))
    right, bottom = min(left + side, width), min(top + side, height)
    drawn = draw_outlines(
        np.ascontiguousarray(pixels[top:bottom, left:right]),
        rle.encode(rle.crop_runs(one, (left, top, right, bottom))),
        classes[example.cell : example.cell + 1],
        zoom=max(1, -(-_EXAMPLE // side)),
    )
    return _jpeg(_shrink(drawn, min(1.0, 2 * _EXAMPLE / max(drawn.shape[:2]))), 80)


def data_uri(jpeg: bytes) -> str:
    """Return a JPEG as a data URI, so that the page needs no other file."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def _shrink(pixels: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    if factor >= 1:
        return pixels
    size = [max(1, round(side * factor)) for side in pixels.shape[1::-1]]
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    _, data = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()
