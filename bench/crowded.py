"""Crowded images: the cells found at the defaults, by density, cell size and tile size.

    python bench/crowded.py [--engine NAME] [--folder DIR] [--side PIXELS] [KEY VALUE ...]
    python bench/crowded.py --checkpoint RUN --data DIR

The first trains `lite_fpn` on images of discs of 10 to 40 px, loose to tightly packed, unless DIR
has such a run. Then it counts the discs found in images of three diameters and five densities: with
a score of 0.5 or more and a mask IoU of 0.5 or more, one detection per disc. Each image is
predicted whole (the default) and in tiles of 128 and of 256 px. Config keys at the end apply to the
prediction: those of a fixed list, `MODEL.RPN.PRE_NMS_TOPK_TEST 1000`, show what it loses.

The second compares the defaults with the fixed numbers of earlier versions, 1000 proposals and 800
detections, on the test images of a data folder with `test_masks/`: AP50 and CPU seconds, each image
by both in turn.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import pycocotools.mask
import tifffile
from numpy.typing import NDArray

import annotation
import train
from cellseg import runs
from cellseg.device import ENGINES
from cellseg.predict.predictor import Predictor
from cellseg.predictions import Predictions
from cellseg.read.ground_truth import read_ground_truth
from cellseg.read.image_lists import read_test_list
from cellseg.read.pairs import pair_predictions
from cellseg.read.window import read_image
from cellseg.score.ap import mask_ap

DIAMETERS = (12, 20, 32)
FILLED = (0.1, 0.3, 0.5, 0.75, 1.0)  # fraction of the places of a hexagonal lattice
TILES = (0, 256, 128)  # 0 for the default
ITERATIONS = 400


def draw_discs(
    side: int, diameter: float, filled: float, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Draw dark discs near the places of a hexagonal lattice, a fraction of them.

    Returns
    -------
    image
        `(side, side, 3)` uint8 RGB.
    labels
        `(side, side)` int32, 0 for the background.
    """
    pitch = 1.06 * diameter
    rows = np.arange(diameter / 2, side - diameter / 2, pitch * 0.866)
    places = [
        (x, y)
        for n, y in enumerate(rows)
        for x in np.arange(diameter * (1 + n % 2) / 2, side - diameter / 2, pitch)
    ]
    image = np.full((side, side, 3), (228, 190, 215), np.float32)
    labels = np.zeros((side, side), np.int32)
    chosen = rng.permutation(len(places))[: max(1, round(filled * len(places)))]
    for label, place in enumerate(chosen, 1):
        x, y = np.array(places[place]) + rng.normal(0, 0.02 * diameter, 2)
        radius = diameter / 2 * rng.uniform(0.88, 1.0)
        circle = [round(16 * x), round(16 * y)], round(16 * radius)
        cv2.circle(labels, *circle, label, -1, cv2.LINE_8, 4)
        colour = np.array([110, 75, 150]) + rng.normal(0, 14, 3)
        cv2.circle(image, *circle, colour.tolist(), -1, cv2.LINE_AA, 4)
        cv2.circle(image, *circle, (colour * 0.7).tolist(), 1, cv2.LINE_AA, 4)
    image += rng.normal(0, 8, image.shape)
    return cv2.GaussianBlur(image, (0, 0), 0.6).clip(0, 255).astype(np.uint8), labels


def train_run(folder: Path, engine: str) -> Path:
    """Return the run in a folder; train it first if there is none."""
    data, root = folder / "data", folder / engine
    if root.is_dir():
        return runs.find_newest_run(root)
    rng = np.random.default_rng(0)
    for number in range(48):
        diameter = float(np.exp(rng.uniform(np.log(10), np.log(40))))
        image, labels = draw_discs(256, diameter, rng.uniform(0.1, 1.0), rng)
        path = data / "train" / f"{number:02d}"
        path.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path / "image.tif", image)
        tifffile.imwrite(path / "class1.tif", labels)
    annotation.main(["--data", str(data)])
    train.main(
        [
            *("-m", "lite_fpn", "--engine", engine, "--data", str(data), "--device", "cpu"),
            *("--batch_size", "4", "--output_dir", str(root)),
            *("SOLVER.MAX_ITER", str(ITERATIONS), "SOLVER.EMA", "0.98"),
        ]
    )
    return runs.find_newest_run(root)


def count_found(
    labels: NDArray[np.int32], predictor: Predictor, image: NDArray[np.uint8]
) -> tuple[int, int]:
    """Return the detected cells, and the discs that one of them matches."""
    cells = predictor.predict(image).distinct(score_threshold=0.5)
    found = set()
    areas = np.bincount(labels.ravel())
    for mask, (left, top, right, bottom) in zip(cells.masks, cells.boxes.astype(int), strict=True):
        window = np.s_[max(0, top - 1) : bottom + 2, max(0, left - 1) : right + 2]
        pixels = pycocotools.mask.decode(mask)[window] > 0
        shared = np.bincount(labels[window][pixels], minlength=1)
        shared[0] = 0
        best = int(shared.argmax())
        union = areas[best] + int(pixels.sum()) - shared[best]
        if best and 2 * shared[best] >= union:
            found.add(best)
    return len(cells), len(found)


def table(
    run: Path, weights: str | None, side: int, tiles: Sequence[int], options: Sequence[str]
) -> Iterator[str]:
    """Yield the lines of the table."""
    rng = np.random.default_rng(1)
    predictors = {
        tile: Predictor.from_run(run, weights, options=["TEST.TILE", str(tile), *options])
        for tile in tiles
    }
    names = [f"tiles of {tile}" if tile else "whole" for tile in tiles]
    yield "diameter  filled  discs  " + "  ".join(f"{name:>20}" for name in names)
    yield " " * 25 + "  ".join(["  found   all  CPU s"] * len(names))
    for diameter in DIAMETERS:
        for filled in FILLED:
            image, labels = draw_discs(side, diameter, filled, rng)
            cells = []
            for predictor in predictors.values():
                began = time.process_time()
                n, found = count_found(labels, predictor, image)
                took = time.process_time() - began
                cells.append(f"{found / labels.max():7.1%} {n:5d} {took:6.1f}")
            yield f"{diameter:8d}  {filled:6.2f}  {labels.max():5d}  " + "  ".join(cells)


FIXED = [
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "1000", "MODEL.RPN.POST_NMS_TOPK_TEST", "1000"),
    *("TEST.DETECTIONS_PER_IMAGE", "800"),
]
BY_AREA = [word if index % 2 == 0 else "0" for index, word in enumerate(FIXED)]


def compare(run: Path, data: Path, options: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the table of fixed numbers and of those by area."""
    predictors = [Predictor.from_run(run, options=[*keys, *options]) for keys in (FIXED, BY_AREA)]
    ground_truth = read_ground_truth(data / "test_masks", data)
    annotated = {image["id"] for image in ground_truth["images"]}
    images = [image for image in read_test_list(data) if image.id in annotated]
    found: list[dict[int, Predictions]] = [{}, {}]
    seconds = [0.0, 0.0]
    for predictor in predictors:
        predictor.predict(read_image(images[0].path))  # warms up
    for number, image in enumerate(images):
        pixels = read_image(image.path)
        for n in (0, 1) if number % 2 else (1, 0):
            began = time.process_time()
            found[n][image.id] = predictors[n].predict(pixels)
            seconds[n] += time.process_time() - began
    n_classes = len(ground_truth["categories"])
    n_cells = Counter(cell["image_id"] for cell in ground_truth["annotations"])
    fullest = [image_id for image_id, _ in n_cells.most_common(5)]
    yield f"five fullest images: {sum(n_cells[image_id] for image_id in fullest)} cells"
    for name, by_id, cpu in zip(("fixed", "by area"), found, seconds, strict=True):
        ap = mask_ap(pair_predictions(ground_truth, by_id), n_classes)
        n_fullest = sum(int((by_id[image_id].scores >= 0.3).sum()) for image_id in fullest)
        n_limited = sum(bool(cells.limited_by) for cells in by_id.values())
        yield (
            f"{name:8}  AP50 {ap[100].ap50:.4f} at 100, {ap[None].ap50:.4f} without a cap; "
            f"{sum(map(len, by_id.values()))} detections, {n_fullest} of score 0.3 and more in the "
            f"five fullest; {n_limited} images limited; "
            f"{cpu:.1f} CPU s, {cpu / seconds[0]:.2f} x"
        )


def main() -> None:
    """Train if needed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=ENGINES, default="torchvision", help="(torchvision)")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/crowded"), help="of the run")
    parser.add_argument("--side", type=int, default=600, help="of the images in pixels (600)")
    parser.add_argument(
        "--tiles", type=int, nargs="+", default=TILES, help="0: default (0 256 128)"
    )
    parser.add_argument("--weights", help="weights file in the run (the final ones)")
    parser.add_argument("--checkpoint", type=Path, metavar="RUN", help="compare fixed numbers")
    parser.add_argument("--data", type=Path, metavar="DIR", help="test images for --checkpoint")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args()
    if args.checkpoint:
        lines = compare(args.checkpoint, args.data, args.options)
    else:
        run = train_run(args.folder, args.engine)
        lines = table(run, args.weights, args.side, args.tiles, args.options)
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
