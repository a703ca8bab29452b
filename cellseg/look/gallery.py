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
from cellseg.images import Scene
from cellseg.look.overlay import draw_outlines
from cellseg.outline import Polygon, trace
from cellseg.read.window import open_image_of
from cellseg.score.labelmap import compare

_THUMB = 112  # px, the longer side
_EXAMPLE = 112  # px, both sides
_QUALITY = 88  # of JPEG
# The digits of a number are those of base 32; a digit below 32 is a number's last one.
_DIGITS = np.frombuffer(
    b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_", np.uint8
)
# A cell this many times larger or smaller than the median of its class is odd.
_ODD_SIZE = 10


@dataclass(frozen=True)
class Example:
    """A cell to show by itself.

    Attributes
    ----------
    image
        The place of its image.
    run
        The place of its run, or −1 for a true cell.
    cell
        Its place in the scene.
    """

    image: int
    run: int
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
    cells
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
class Judged:
    """The detections of an image, best score first, and what they found.

    Lower scores never take pixels from higher ones, so a cell of the label map is the
    same at every score threshold at which it is in it, and so is its match. One pass
    without a threshold therefore holds the hits, misses and false alarms of all of them.

    Attributes
    ----------
    order
        `(M,)` int64: their places in the scene.
    match
        `(M,)` int64: the true cell of IoU above 0.5, of any class; −1 for none.
    iou
        `(M,)` float64: with the match; 0 where there is none.
    state
        `(M,)` int64: 0 if it keeps no pixel of its own in the label map, so that it isn't
        there; 1 if it counts; 2 if it is excused, in a crowd region, from being a false
        alarm.
    truth_state
        `(N,)` int64: 0 if it keeps no pixel, 1 if it counts, 2 for a crowd region.
    """

    order: NDArray[np.int64]
    match: NDArray[np.int64]
    iou: NDArray[np.float64]
    state: NDArray[np.int64]
    truth_state: NDArray[np.int64]


def judge(scene: Scene) -> Judged:
    """Match the cells of all scores; pixels that two claim go to the higher score."""
    comparison = compare(scene, -np.inf, "score")
    at, at_iou = comparison.matches()
    match = np.full(len(scene.scores), -1, np.int64)
    iou = np.zeros(len(scene.scores))
    match[comparison.cells[at[:, 1]]] = comparison.truths[at[:, 0]]
    iou[comparison.cells[at[:, 1]]] = at_iou
    state = np.zeros(len(scene.scores), np.int64)
    state[comparison.cells] = 1 + comparison.excused
    truth_state = np.where(scene.crowd, 2, 0)
    truth_state[comparison.truths] = 1
    order = np.argsort(-scene.scores, kind="stable")
    return Judged(order, match[order], iou[order], state[order], truth_state)


def facts(scenes: Sequence[Scene], judged: Sequence[Judged]) -> dict[str, Any]:
    """What the page's tables, sorting and slider need of an image, without its outlines.

    `scenes` are the image in each run, all with the same truth; at least one, which has no
    detections if there is no run.
    """
    scene = scenes[0]
    return {
        "name": scene.name,
        "size": list(scene.size),
        "truth": {
            "classes": scene.truth_classes.tolist(),
            "state": judged[0].truth_state.tolist(),
        },
        "runs": [
            {
                "classes": one.classes[j.order].tolist(),
                "scores": one.scores[j.order].tolist(),
                "match": j.match.tolist(),
                "iou": [round(value, 6) for value in j.iou.tolist()],
                "state": j.state.tolist(),
            }
            for one, j in zip(scenes, judged, strict=True)
        ],
    }


def outlines(scenes: Sequence[Scene], judged: Sequence[Judged]) -> dict[str, Any]:
    """The outlines of the true cells, and of those of each run, best score first."""
    return {
        "truth": encode_outlines(trace(scenes[0].truth_runs)),
        "runs": [
            encode_outlines([cells[i] for i in j.order])
            for cells, j in ((trace(s.runs), j) for s, j in zip(scenes, judged, strict=True))
        ],
    }


def odd_cells(scenes: Sequence[Scene], n_classes: int) -> list[list[tuple[int, str]]]:
    """Find the true cells that are worth a second look.

    Returns
    -------
    For each image `(cell, why)`: of several pieces, with holes, of ten times the median
    area of its class or a tenth of it, or sharing most of its pixels with another. Crowd
    regions are no cells.
    """
    areas = [rle.areas(scene.truth_runs) for scene in scenes]
    classes = [scene.truth_classes for scene in scenes]
    crowd = np.concatenate([np.zeros(0, bool), *(scene.crowd for scene in scenes)])
    all_areas, all_classes = (
        np.concatenate([np.zeros(0, np.int64), *each])[~crowd] for each in (areas, classes)
    )
    medians = [
        float(np.median(all_areas[all_classes == k])) if (all_classes == k).any() else 0.0
        for k in range(n_classes)
    ]
    result = []
    for scene, area, of_class in zip(scenes, areas, classes, strict=True):
        covered = judge(scene).truth_state == 0
        odd = []
        for cell, polygons in enumerate(trace(scene.truth_runs)):
            if scene.crowd[cell]:
                continue
            n_holes = sum(len(polygon) - 1 for polygon in polygons)
            ratio = area[cell] / medians[int(of_class[cell])]
            why = [
                *([f"{len(polygons)} pieces"] if len(polygons) > 1 else []),
                *([f"{n_holes} hole{'s' * (n_holes > 1)}"] if n_holes else []),
                *(["very small"] if ratio * _ODD_SIZE < 1 else []),
                *(["very large"] if ratio > _ODD_SIZE else []),
                *(["covered by other cells"] if covered[cell] else []),
            ]
            if why:
                odd.append((cell, ", ".join(why)))
        result.append(odd)
    return result


def read_pixels(scene: Scene) -> NDArray[np.uint8]:
    """Read an image: `(H, W, 3)` uint8 RGB.

    Raises
    ------
    InputError
        If it can't be read, or is of another size than its cells.
    """
    height, width = scene.size
    with open_image_of(scene.path, scene.size, scene.level) as image:
        return image.read((0, 0, width, height))


def picture(pixels: NDArray[np.uint8], most_bytes: int, most_side: int) -> tuple[bytes, int]:
    """Encode an image as a JPEG that is no larger than allowed, in smaller pixels if need be.

    Parameters
    ----------
    pixels
        `(H, W, 3)` uint8 RGB.
    most_bytes
        Of the file; a picture of less than 64 pixels a side may take more.
    most_side
        px, the longer side.

    Returns
    -------
    The file, and its longer side in px.
    """
    factor = min(1.0, most_side / max(pixels.shape[:2]))
    while True:
        small = _shrink(pixels, factor)
        data = _jpeg(small, _QUALITY)
        if len(data) <= most_bytes or max(small.shape[:2]) <= 64:
            return data, max(small.shape[:2])
        factor *= float(np.clip(0.95 * (most_bytes / len(data)) ** 0.5, 0.5, 0.9))


def thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an image as a small JPEG."""
    return _jpeg(_shrink(pixels, min(1.0, _THUMB / max(pixels.shape[:2]))), 75)


def example_picture(pixels: NDArray[np.uint8], scene: Scene, example: Example) -> bytes:
    """Draw a cell with its outline and what is round it, as a small JPEG."""
    true = example.run < 0
    runs = scene.truth_runs if true else scene.runs
    classes = scene.truth_classes if true else scene.classes
    one = rle.decode([(scene.truth_masks if true else scene.masks)[example.cell]], runs.size)
    left, top, right, bottom = rle.boxes_xyxy(one)[0].tolist()
    side = max(right - left, bottom - top)
    side += max(8, side // 2)
    height, width = scene.size
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
