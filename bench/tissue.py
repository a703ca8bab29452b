"""Finding tissue: the part of the true cells that is kept, and of the tiles that is predicted.

    python bench/tissue.py --data DIR [--run RUN]

Annotated images of DIR are placed on a large canvas of background or black, and pressed together
without any, as they are and in variants: pale, faded, dark, inked and others. A cell is kept if it
lies in the tiles that are predicted as whole as in all tiles. The area is that of the predicted
tiles, as a part of that of all tiles. With --run, the CPU time of its network too.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
from numpy.typing import NDArray

from cellseg.predict.predictor import Predictor
from cellseg.predict.tiles import choose_tile_size, plan_tiles
from cellseg.read.tiff import read_labels
from cellseg.read.tissue import find_tissue
from cellseg.read.window import read_image
from cellseg.rle import boxes_xyxy, label_map_to_runs

Image = NDArray[np.uint8]
LONGEST_CELL = 81.0  # of the tissue images, in pixels
SCALE = 1.5


def stained(factor: float) -> Callable[[Image], Image]:
    """Return a function that multiplies the optical density."""
    table = (255 * (np.arange(256) / 255) ** factor).round().astype(np.uint8)
    return lambda image: cv2.LUT(image, table)


def lit(*channels: float) -> Callable[[Image], Image]:
    """Return a function that multiplies red, green and blue."""
    return lambda image: (image * np.array(channels)).astype(np.uint8)


def compressed(quality: int) -> Callable[[Image], Image]:
    """Return a function that compresses as JPEG."""

    def compress(image: Image) -> Image:
        done, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert done
        decoded: Any = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        return np.ascontiguousarray(decoded)

    return compress


def noisy(image: Image) -> Image:
    """Add noise of a camera."""
    noise = np.random.default_rng(0).normal(0, 6, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def inked(image: Image) -> Image:
    """Draw with pens of three colours, two of them over the tissue."""
    rng, (height, width) = np.random.default_rng(0), image.shape[:2]
    drawn = image.copy()
    for colour in ((20, 120, 60), (30, 40, 150), (5, 5, 5)):
        points = rng.integers(0, (width, height), (6, 2)).astype(np.int32)
        cv2.polylines(drawn, [points], False, colour, 40, cv2.LINE_AA)
    return (0.3 * image + 0.7 * drawn).astype(np.uint8)


def framed(image: Image) -> Image:
    """Add what was not scanned, in black."""
    side = min(image.shape[:2]) // 16
    return np.pad(image, ((0, side), (0, side), (0, 0)))


def shaded(image: Image) -> Image:
    """Darken the corners by a tenth."""
    y, x = (np.linspace(-1, 1, n) ** 2 for n in image.shape[:2])
    return (image * (1 - 0.05 * (y[:, None] + x))[:, :, None]).astype(np.uint8)


VARIANTS: dict[str, Callable[[Image], Image]] = {
    "as they are": lambda image: image,
    "pale, 0.4 of the stain": stained(0.4),
    "faded, 0.2": stained(0.2),
    "dark, twice": stained(2),
    "inked": inked,
    "pale and inked": lambda image: inked(stained(0.4)(image)),
    "grey light": lit(0.75, 0.75, 0.75),
    "yellow light": lit(0.98, 0.95, 0.87),
    "shaded corners": shaded,
    "JPEG of quality 30": compressed(30),
    "pale, JPEG of quality 10": lambda image: compressed(10)(stained(0.4)(image)),
    "noise": noisy,
    "faded, noise": lambda image: noisy(stained(0.2)(image)),
    "out of focus": lambda image: cv2.GaussianBlur(image, (0, 0), 4),
    "black margin": framed,
    "black and white": lambda image: cv2.cvtColor(
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB
    ),
    "dark background (inverted)": lambda image: 255 - image,
}


@dataclass(frozen=True)
class Piece:
    """An annotated image, the boxes of its cells, XYXY, and where cells are."""

    pixels: Image
    boxes: NDArray[np.int64]
    is_cell: NDArray[np.bool_]

    def without_stroma(self, background: int) -> Piece:
        """Return the cells alone, as in a smear."""
        return replace(self, pixels=np.where(self.is_cell[:, :, None], self.pixels, background))


def read_pieces(data: Path, count: int) -> Iterator[Piece]:
    """Yield annotated images, spread over all."""
    folders = sorted((data / "train").iterdir())
    for folder in folders[:: max(1, len(folders) // count)][:count]:
        maps = [read_labels(path) for path in folder.glob("class*.tif")]
        boxes = np.concatenate([boxes_xyxy(label_map_to_runs(labels)[1]) for labels in maps])
        is_cell = np.logical_or.reduce([labels > 0 for labels in maps])
        yield Piece(read_image(folder / "image.tif"), boxes, is_cell)


def place(pieces: Sequence[Piece], side: int, background: int) -> tuple[Image, NDArray[np.int64]]:
    """Return a canvas with the pieces in places of their own, and the boxes of all cells."""
    rng = np.random.default_rng(0)
    canvas = np.full((side, side, 3), background, np.uint8)
    n = int(np.ceil(len(pieces) ** 0.5))
    boxes = []
    for number, piece in enumerate(pieces):
        height, width = piece.pixels.shape[:2]
        room = side // n - np.array([height, width])
        top, left = np.array(divmod(number, n)) * (side // n) + rng.integers(0, room + 1)
        canvas[top : top + height, left : left + width] = piece.pixels
        boxes.append(piece.boxes + np.array([left, top] * 2))
    return canvas, np.concatenate(boxes)


def press(pieces: Sequence[Piece]) -> tuple[Image, NDArray[np.int64]]:
    """Return the pieces side by side, repeated to more than a few tiles, without background."""
    side = min(min(piece.pixels.shape[:2]) for piece in pieces)
    n = 2600 // side + 1
    canvas = np.empty((n * side, n * side, 3), np.uint8)
    boxes = []
    for number in range(n * n):
        piece = pieces[number % len(pieces)]
        top, left = np.array(divmod(number, n)) * side
        canvas[top : top + side, left : left + side] = piece.pixels[:side, :side]
        inside = piece.boxes[(piece.boxes[:, 2:] <= side).all(axis=1)]
        boxes.append(inside + np.array([left, top] * 2))
    return canvas, np.concatenate(boxes)


def measure(name: str, canvas: Image, boxes: NDArray[np.int64]) -> tuple[int, int]:
    """Print a row of the table, and return the kept cells and all cells."""
    tile, overlap = choose_tile_size(LONGEST_CELL, SCALE)
    plan = plan_tiles((canvas.shape[0], canvas.shape[1]), tile, overlap)
    began = time.process_time()
    tissue = find_tissue(canvas)
    seconds = time.process_time() - began
    kept = plan.restricted_to(tissue.mask, overlap)
    whole = plan.some_tile_contains(boxes)
    n_kept, n = int((kept.some_tile_contains(boxes) & whole).sum()), int(whole.sum())
    share = tissue.mask.area / (canvas.shape[0] * canvas.shape[1])
    background = " ".join(map(str, tissue.background or ("none",)))
    print(
        f"{name:32}{n:7}{n_kept / n:9.4f}{len(kept):5} of {len(plan):<4}"
        f"{kept.area / plan.area:8.3f}{share:8.3f}{seconds:7.2f}  {background}",
        flush=True,
    )
    return n_kept, n


def main() -> None:
    """Run the benchmark and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--images", type=int, default=6, help="on a canvas (6)")
    parser.add_argument("--run", type=Path, metavar="RUN", help="measure its time too")
    parser.add_argument("--side", type=int, default=3600, help="of the canvas, in pixels (3600)")
    args = parser.parse_args()
    pieces = list(read_pieces(args.data, args.images))
    row = f"{'variant':32}{'cells':>7}{'kept':>9}{'tiles':>12}{'area':>8}{'tissue':>8}{'CPU s':>7}"
    canvases = {
        "on white": place(pieces, args.side, 255),
        "on the glass of a slide": place(pieces, args.side, 243),
        "on black, as not scanned": place(pieces, args.side, 0),
        "cells alone": place([piece.without_stroma(243) for piece in pieces], args.side, 243),
        "without background": press(pieces),
    }
    kept = total = 0
    for where, (canvas, boxes) in canvases.items():
        print(f"\n{where}\n{row}  background")
        for name, change in VARIANTS.items():
            counts = measure(name, change(canvas), boxes)
            kept, total = kept + counts[0], total + counts[1]
    print(f"\nin all {kept} of {total} cells kept: {kept / total:.5f}")
    if args.run:
        measure_time(args.run, pieces)


def measure_time(run: Path, pieces: Sequence[Piece]) -> None:
    """Print the time of a run for 4000 x 4000 pixels with 2 % tissue, in one piece and in four."""
    predictor = Predictor.from_run(run)
    print(f"\n{'4000 x 4000 px, 2 % tissue':32}{'all, s':>8}{'tissue, s':>11}{'of it':>8}")
    for name, side, places in (
        ("one piece", 566, [(1700, 1500)]),
        ("four pieces", 283, [(300, 200), (2900, 900), (1100, 2300), (3300, 3500)]),
    ):
        canvas = np.full((4000, 4000, 3), 243, np.uint8)
        for (left, top), piece in zip(places, itertools.cycle(pieces), strict=False):
            repeated = np.pad(piece.pixels, ((0, side), (0, side), (0, 0)), "reflect")
            canvas[top : top + side, left : left + side] = repeated[:side, :side]
        seconds = []
        for all_tiles in (True, False):
            began = time.process_time()
            predictor.predict(canvas, all_tiles=all_tiles)
            seconds.append(time.process_time() - began)
        every, some = seconds
        print(f"{name:32}{every:8.1f}{some:11.1f}{some / every:8.3f}", flush=True)


if __name__ == "__main__":
    main()
